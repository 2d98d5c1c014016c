"""Strict loading of foreign weights by name, with a report of what was chosen, renamed and ignored."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import CheckpointError, listed, print_note
from kdrun.models.placeholders import Placeholder
from kdrun.models.weight_choice import Choice, Convert, Network, Wanted, choose, fitted, other_than
from kdrun.models.weight_files import read_content
from kdrun.models.weight_names import Group, entries, groups, is_known, one_line_of

AS_STUDENT = Wanted()
# Last part of the names that layers of every kind have; other endings were added by the file's author.
USUAL_ENDINGS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
OPTION_A = re.compile(r"resnet(20|32|44|56|110)")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the first state dict in `path`, with the names in the file."""
    content = read_content(path)
    found = [tensors for place, tensors in entries(content) if all(map(is_known, place))]
    if not found:
        raise CheckpointError(holds_none(path, content))
    return found[0]


def load_weights(
    model: nn.Module,
    path: Path,
    name: str,
    new_head: bool = False,
    wanted: Wanted = AS_STUDENT,
    convert: Convert | None = None,
) -> None:
    """Load `path` into `model` strictly.

    new_head: leave the classifier unloaded if the file's has another number of classes (fine-tuning). convert:
    translates tensors of other projects' layouts; used if the names do not fit. Raises CheckpointError (one line) with
    the mismatch and the way out.
    """
    own, heads = model.state_dict(), head_names(model)
    network = Network(own, heads, heads if new_head else ())
    choice = chosen(path, network, wanted, convert)
    if choice.misfits:
        raise CheckpointError(misfit(path, name, model, choice, network, wanted))
    state = choice.group.tensors
    fresh = sorted(key for key in network.free if key not in state or state[key].shape != own[key].shape)
    state = {key: value for key, value in state.items() if key not in fresh}
    check_values(path, state, own, choice.group)
    if fresh:
        choice.notes.append(f"a new classifier ({fresh[0].rpartition('.')[0]}), of {len(own[fresh[0]])} classes")
    if choice.notes:
        say_once(f"{path}: {'; '.join(choice.notes)}")
    model.load_state_dict({**own, **state})


def chosen(path: Path, network: Network, wanted: Wanted, convert: Convert | None) -> Choice:
    """Return the weights of a file to load. Raises CheckpointError if it holds none."""
    content = read_content(path)
    found = groups(content)
    if not found:
        raise CheckpointError(holds_none(path, content))
    choice = choose(found, network, wanted)
    if convert is not None and (choice is None or choice.misfits):
        converted = [group for each in found if (group := converted_group(each, convert)) is not None]
        other = choose([fitted(group, network, wanted.ignore) for group in converted], network, wanted)
        if other is not None and (choice is None or other.misfits.order < choice.misfits.order):
            choice = other
            choice.notes.append("converted by timm to its own names and sizes")
    if choice is None:
        return Choice(found[0], network.misfits(found[0]))
    if wanted.weights == "raw" and "averaged" in choice.group.kinds:
        raise CheckpointError(
            f"checkpoint {path} holds only an average of weights ({choice.group.path}), no raw ones: leave out "
            f"{wanted.role}.checkpoint_weights=raw."
        )
    return choice


def converted_group(group: Group, convert: Convert) -> Group | None:
    """Return the group as `convert` rewrites it; None if it cannot."""
    try:
        tensors = convert(dict(group.tensors))
    except Exception:  # written for another layout
        return None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        return None
    return Group(group.place, group.prefix, tensors, {name: name for name in tensors})


@cache
def say_once(line: str) -> None:
    """Print a note only once: lanes of a sweep and the dry run of a run load the same file again."""
    print_note(line)


def holds_none(path: Path, content: Any) -> str:
    """Return the error line for a file without named tensors."""
    objects = (type_name(value) for _, named in entries(content, Placeholder) for value in named.values())
    if any(re.fullmatch(r"numpy\..*\._reconstruct", name) for name in objects):
        return f"checkpoint {path} holds NumPy arrays, not tensors: convert them with torch.from_numpy and save again."
    if isinstance(content, Mapping) and not isinstance(content, Placeholder):
        shown = f"its entries are {listed([entry_words(*each) for each in content.items()], 8)}"
        return f"checkpoint {path} holds no state dict; {shown if content else 'it is empty'}."
    kind = "a single tensor" if isinstance(content, Tensor) else f"a {type_name(content)}"
    return f"checkpoint {path} holds {kind}, not a state dict: save model.state_dict() alone."


def entry_words(key: object, value: object) -> str:
    """Return the name of an entry, with its type if that is why nothing was read from it."""
    name = one_line_of(key)
    return f"{name} ({type_name(value)})" if isinstance(value, Placeholder) and not value else name


def type_name(value: object) -> str:
    """Return the name of a type, with its module if it is not imported."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__name__}" if isinstance(value, Placeholder) else kind.__name__


def misfit(path: Path, name: str, model: nn.Module, choice: Choice, network: Network, wanted: Wanted) -> str:
    """Return the error line for weights that do not fit: how many names, the first of each kind, and the way out."""
    lacks, own, here = choice.misfits, network.own, choice.group.tensors
    problems = [
        f"{len(names)} {what}, first {sorted(names)[0]}"
        for names, what in ((lacks.missing, "missing"), (lacks.extra, "unknown"), (lacks.shapes, "of another shape"))
        if names
    ]
    detail = ""
    if lacks.shapes:
        key = sorted(lacks.shapes)[0]
        detail = f" ({tuple(here[key].shape)} in the file, {tuple(own[key].shape)} in the model)"
    out = way_out(path, name, model, choice, network, wanted)
    return f"checkpoint {path} does not fit {name}: {'; '.join(problems)}{detail}{out}."


def way_out(path: Path, name: str, model: nn.Module, choice: Choice, network: Network, wanted: Wanted) -> str:
    """Return what would make the weights fit, if the mismatch shows it; else an empty string."""
    lacks, own, role = choice.misfits, network.own, wanted.role
    if not lacks.wrong:
        if block := further_block(lacks.extra, own):
            return f"; the file's network is larger than {name}, which has no {block}"
        if (other := other_than(role)) in choice.group.kinds:
            return f"; only its {other} ({choice.group.path}) fits: save the {role}'s weights alone"
        return f"; '{role}.checkpoint_ignore=[{','.join(patterns(lacks.extra))}]' ignores the unknown ones"
    if lacks.shapes and not lacks.missing and (side := fitting_side(model, choice.group.tensors, lacks.shapes)):
        return f"; {role}.input_size={side} fits"
    if not lacks.extra and set(lacks.missing + lacks.shapes) <= set(network.heads):
        return f"; {role}.pretrained={path} loads the rest and starts a new classifier"
    shortcuts = [key for key in lacks.missing if re.search(r"\.(downsample|shortcut)\.", key)]
    if OPTION_A.fullmatch(name) and shortcuts and shortcuts == lacks.missing and not lacks.extra:
        return f"; its shortcuts have no weights (option A): {role}={name}a is that network"
    return ""


def further_block(extra: list[str], own: Iterable[str]) -> str:
    """Return the first unknown block of a file that continues the network's own numbered blocks, as layer1.3 does
    layer1.2; else an empty string. Without it another function would be computed."""
    blocks = {block for key in own for block in numbered(key)}
    series = {block.rpartition(".")[0] for block in blocks}
    unknown = (block for key in sorted(extra) for block in numbered(key) if block not in blocks)
    return next((block for block in unknown if block.rpartition(".")[0] in series), "")


def numbered(key: str) -> list[str]:
    """Return the numbered blocks that hold a tensor: layer1.2.conv1.weight -> [layer1.2]."""
    parts = key.split(".")
    return [".".join(parts[: place + 1]) for place, part in enumerate(parts) if place and part.isdigit()]


def patterns(names: list[str]) -> list[str]:
    """Return a few patterns for the unknown tensors of a file: by a last part that no layer has, or by the first."""
    found = []
    for name in sorted(names):
        first, last = name.partition(".")[0], name.rpartition(".")[2]
        whole = "." not in name and last not in USUAL_ENDINGS
        many = sum(other.rpartition(".")[2] == last for other in names) > 1
        found.append(name if whole and not many else f"*{last}" if last not in USUAL_ENDINGS else f"{first}.*")
    return list(dict.fromkeys(found))[:6]


def fitting_side(model: nn.Module, here: Mapping[str, Tensor], shapes: list[str]) -> int | None:
    """Return the image size at which a transformer has the file's number of positions, if nothing else differs."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not patch or any(not key.startswith("pos_embed") or here[key].dim() != 3 for key in shapes):
        return None
    prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
    count = here[shapes[0]].shape[1] - prefix
    side = math.isqrt(max(count, 0))
    return side * int(patch[0]) if side and side * side == count else None


def check_values(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor], group: Group) -> None:
    """Raise CheckpointError for a tensor that is not a plain array of finite numbers, with its name in the file."""
    for key, value in state.items():
        if problem := unfit(value, own[key]):
            raise CheckpointError(f"checkpoint {path}: {group.old.get(key, key)} {problem}.")


def unfit(value: Tensor, own: Tensor) -> str:
    """Return what is wrong with a tensor that is to be loaded into `own`; an empty string if nothing is."""
    if value.is_meta:
        return "has a shape but no data (device meta): save the weights after loading them"
    if value.is_quantized:
        return f"is quantized ({value.dtype}): give the weights from before quantization"
    if value.layout != torch.strided:
        return f"is sparse ({value.layout}): save it dense (.to_dense())"
    if value.is_complex() and not own.is_complex():
        return f"is complex ({value.dtype}), but the network's is {own.dtype}"
    if own.is_floating_point() and not value.is_floating_point():
        return f"holds whole numbers ({value.dtype}), which would round the weights: give them in floating point"
    if not own.is_floating_point() or not torch.isfinite(own).all():
        return ""
    wrong = int((~torch.isfinite(value.to(own.dtype))).sum())
    return (
        f"holds {wrong} of {value.numel()} values that are NaN or infinite: the network was broken when it was saved"
        if wrong
        else ""
    )


def head_names(model: nn.Module) -> set[str]:
    """Return the state-dict names of the last Linear: the classifier that fine-tuning replaces."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # A distilled ViT has two such heads.
    heads = {name for name in last[-2:] if "head" in name} | set(last[-1:])
    return {f"{name}.{part}" for name in heads for part in ("weight", "bias")} & set(model.state_dict())
