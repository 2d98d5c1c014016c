"""Matching of a file's tensors to a network by name: unchanged first, then without the entries and prefixes that
wrappers and projects add, then by the names that other implementations give to the same layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

# Words in the names of file entries and wrapper prefixes: model_state_dict, _orig_mod, student_best, …
WORDS = {
    *(
        "module",
        "orig",
        "mod",
        "fsdp",
        "wrapped",
        "ddp",
        "model",
        "models",
        "net",
        "nets",
        "network",
        "networks",
        "cnn",
    ),
    *("backbone", "encoder", "base", "main", "online", "q", "state", "states", "dict", "sd", "params", "param"),
    *("parameters", "weights", "weight", "checkpoint", "ckpt", "best", "last", "latest", "final", "raw"),
}
# Wrappers of parts of a network: torch.compile, FSDP and activation checkpointing insert them into a name.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
TEACHER, STUDENT = frozenset({"teacher", "t"}), frozenset({"student", "s"})
AVERAGED = frozenset({"ema", "averaged", "average", "avg", "shadow", "swa", "polyak"})
# Entries that have the same names as a network's weights, but are none.
NO_WEIGHTS = re.compile(r"optim|grad|exp_avg|moment|sched|mask|discriminator", re.IGNORECASE)
LEVELS = 12  # deepest nesting of containers in a file, and of prefixes
MAPPINGS = 20_000  # searched in one file

HEADS = re.compile(
    r"^(fc|linear|classifier|head|heads|output|logits|last_linear|out|classifier\.fc|classifier\.linear|head\.fc|"
    r"heads\.head|head\.head|fc\.fc|cls_head\.fc|head\.linear|linear\.linear)\.(weight|bias)$"
)
# Names of the same layers in other ResNets for small images, rewritten to RepDistiller's and torchvision's.
LAYOUTS = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^conv1\.0\.", "conv1."),  # weiaicunzai/pytorch-cifar100
        (r"^conv1\.1\.", "bn1."),
        (r"^conv2_x\.", "layer1."),
        (r"^conv3_x\.", "layer2."),
        (r"^conv4_x\.", "layer3."),
        (r"^conv5_x\.", "layer4."),
        (r"\.residual_function\.0\.", ".conv1."),
        (r"\.residual_function\.1\.", ".bn1."),
        (r"\.residual_function\.3\.", ".conv2."),
        (r"\.residual_function\.4\.", ".bn2."),
        (r"\.residual_function\.6\.", ".conv3."),
        (r"\.residual_function\.7\.", ".bn3."),
        (r"^features\.init_block\.conv\.", "conv1."),  # pytorchcv
        (r"^features\.init_block\.bn\.", "bn1."),
        (r"^features\.stage(\d)\.unit(\d+)\.(?:body\.)?", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
        (r"\.conv(\d)\.conv\.", r".conv\1."),
        (r"\.conv(\d)\.bn\.", r".bn\1."),
        (r"\.identity_conv\.conv\.", ".downsample.0."),
        (r"\.identity_conv\.bn\.", ".downsample.1."),
        (r"\.(shortcut|skip|residual|identity)\.", ".downsample."),
    )
)


@dataclass(frozen=True)
class Misfits:
    """Mismatches of a file and a network: names that are missing, of another shape, or extra."""

    missing: list[str]
    shapes: list[str]
    extra: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.shapes or self.extra)

    @property
    def wrong(self) -> int:
        return len(self.missing) + len(self.shapes)

    @property
    def order(self) -> tuple[int, int]:
        return self.wrong, len(self.extra)


@dataclass(frozen=True)
class Group:
    """Group of tensors: one entry of a file, under the names that are left without its prefixes."""

    place: tuple[str, ...]
    prefix: tuple[str, ...]
    tensors: dict[str, Tensor]
    old: dict[str, str]  # name -> its name in the file
    renamed: dict[str, str] = field(default_factory=dict)  # new name -> previous name
    passed: tuple[str, ...] = ()  # names that a setting ignores
    put: str = ""  # a prefix that the network's own names have

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(kind for part in (*self.place, *self.prefix) for kind in kinds_of(part))

    @property
    def known(self) -> bool:
        return all(map(is_known, (*self.place, *self.prefix)))

    @property
    def path(self) -> str:
        """Return the group's location in the file, as used in notes."""
        return ".".join((*self.place, *self.prefix)) or "its first names"

    def misfits(self, own: Mapping[str, Tensor], free: Collection[str]) -> Misfits:
        """Return what prevents it from being the network's state. free: the classifier's names, if it may stay
        unloaded."""
        here, bound = self.tensors, [key for key in own if key not in free]
        return Misfits(
            [key for key in bound if key not in here and not key.endswith("num_batches_tracked")],
            [key for key in bound if key in here and here[key].shape != own[key].shape],
            [key for key in here if key not in own],
        )


def words_of(part: str) -> list[str]:
    """Split a name into words: model_stateDict -> model, state, dict."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part)
    return [word for word in re.split(r"[_\-\s.]+", split.lower()) if word]


def is_known(part: str) -> bool:
    """Return True if an entry or prefix has a name that projects and wrappers commonly use."""
    words = words_of(part)
    known = WORDS | TEACHER | STUDENT | AVERAGED
    return part.isdigit() or (bool(words) and all(word in known for word in words))


def kinds_of(part: str) -> frozenset[str]:
    """Return which of teacher, student and averaged occur among the words of the part."""
    words = set(words_of(part))
    kinds = {"teacher": TEACHER, "student": STUDENT, "averaged": AVERAGED}
    return frozenset(kind for kind, names in kinds.items() if words & names)


def entries(content: Any, kind: type = Tensor) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield (place, name -> tensor) of every mapping in a file that itself holds tensors, or values of another kind.
    Reference cycles are walked once."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)] if isinstance(content, Mapping | list | tuple) else []
    seen: set[int] = set()
    while waiting and len(seen) < MAPPINGS:
        place, found = waiting.pop(0)
        if id(found) in seen or len(place) > LEVELS:
            continue
        seen.add(id(found))
        items = list(found.items() if isinstance(found, Mapping) else enumerate(found[:16]))
        tensors = {one_line_of(name): value for name, value in items if isinstance(value, kind)}
        if tensors and isinstance(found, Mapping):
            yield place, tensors
        waiting += [
            ((*place, one_line_of(name)), value) for name, value in items if isinstance(value, Mapping | list | tuple)
        ]


def one_line_of(name: object) -> str:
    """Return a name from a file in printable form: without line ends and control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def without_prefixes(names: dict[str, str], depth: int = 0) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Yield (prefixes, name -> name in the file): unchanged first, then below each chain of known prefixes and, beside
    a teacher, a student or an average, of others. Names outside a chain keep theirs, unless they belong to another
    network."""
    yield (), names
    if depth >= LEVELS:
        return
    parts: dict[str, dict[str, str]] = {}
    for name, old in names.items():
        first, _, below = name.partition(".")
        if below:
            parts.setdefault(first, {})[below] = old
    several = any(map(kinds_of, parts))
    for word in parts if several else filter(is_known, parts):
        kinds, kept = kinds_of(word), parts[word]
        twins = {part for part in parts if several and parts[part].keys() >= kept.keys()} | {word}
        rest: dict[str, str] = {}
        for name, old in names.items():
            first, _, below = name.partition(".")
            if (below and first in twins) or is_rival(first, kinds) or (name == "n_averaged" and word == "module"):
                continue
            rest[name] = old
        for chain, inner in without_prefixes(kept, depth + 1):
            yield (word, *chain), {**{name: old for name, old in rest.items() if name not in inner}, **inner}


def is_rival(part: str, kinds: frozenset[str]) -> bool:
    """Return True if names below `part` belong to a different network from those below a prefix of these kinds."""
    return is_known(part) and kinds_of(part) != kinds


def groups(content: Any) -> list[Group]:
    """Return every reading of a file's names, in the file's order."""
    found = []
    for place, tensors in entries(content):
        for prefix, names in without_prefixes({name: name for name in tensors}):
            found.append(Group(place, prefix, {name: tensors[old] for name, old in names.items()}, names))
    return found


def canonical(name: str, is_head: bool) -> str:
    """Return the name by which implementations of one layer are compared, without wrappers of parts of a network."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    if is_head:
        return f"<classifier>.{name.rpartition('.')[2]}"
    for pattern, to in LAYOUTS:
        name = pattern.sub(to, name)
    return name


def rename(group: Group, own: Mapping[str, Tensor], heads: Collection[str]) -> Group:
    """Rename the group to the network's names if another implementation's names stand for the same layers: each for
    exactly one layer of the same shape (a classifier may have another number of classes)."""
    free = [name for name in group.tensors if name not in own]
    lacking = [name for name in own if name not in group.tensors]
    if not free or not lacking:
        return group
    theirs = unique({name: canonical(name, bool(HEADS.match(name))) for name in free})
    ours = unique({name: canonical(name, name in heads) for name in lacking})
    renamed = {}
    for key, name in ours.items():
        other = theirs.get(key)
        if other is None:
            continue
        shape, wanted = group.tensors[other].shape, own[name].shape
        if shape == wanted or (name in heads and shape[1:] == wanted[1:]):
            renamed[name] = other
    if not renamed:
        return group
    names = {name: name for name in group.tensors if name not in renamed.values()} | renamed
    tensors = {name: group.tensors[before] for name, before in names.items()}
    old = {name: group.old[before] for name, before in names.items()}
    return replace(group, tensors=tensors, old=old, renamed=renamed)


def unique(names: Mapping[str, str]) -> dict[str, str]:
    """Return canonical name -> name, for those that only one name has."""
    counts: dict[str, list[str]] = {}
    for name, key in names.items():
        counts.setdefault(key, []).append(name)
    return {key: found[0] for key, found in counts.items() if len(found) == 1}
