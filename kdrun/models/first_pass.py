"""First passes of a newly built network: they check it, locate its logits, and report failures in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import ConfigError, KdrunError
from kdrun.models.forward_error import explain
from kdrun.models.logits import Entry, TakeLogits, are_probabilities, described, find_logits
from kdrun.models.memory_layout import Contiguous, Copied, channels_last_problem, restore
from kdrun.models.reproduction import is_random, loses_state, unregistered

COUNT = 2  # images per pass
SIDES = (28, 32, 64, 75, 96, 128, 224, 299, 384)  # usual sizes of images


@dataclass
class Traits:
    """Results of the first passes. notes: lines for the user; training_notes: lines if the network is trained;
    untrainable: the reason if it cannot be trained."""

    channels_last: bool = True
    notes: list[str] = field(default_factory=list)
    training_notes: list[str] = field(default_factory=list)
    untrainable: str = ""


@dataclass(frozen=True)
class Candidate:
    """Network that is to be a run's student or teacher (`role`). side: of its images."""

    model: nn.Module
    role: str
    name: str
    side: int
    classes: int

    def __str__(self) -> str:
        return f"{self.role} {self.name}"

    def image(self, side: int | None = None, count: int = COUNT) -> Tensor:
        """Return images of noise on the network's device, the same at every call."""
        shape = (count, 3, side or self.side, side or self.side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return noise.to(next(self.model.parameters()).device)


def try_out(candidate: Candidate, own: bool) -> Traits:
    """Check `candidate` and adapt it to kdrun's interface: images [N, 3, H, W] in, logits [N, K] out. Its weights are
    unchanged.

    own: True for the user's own network, whose training mode and memory layout must be tried too. Raises ConfigError if
    it cannot be evaluated.
    """
    model, traits = candidate.model, Traits()
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(f"{candidate} is compiled TorchScript, whose layers are not accessible; name its class.")
    if next(model.parameters(), None) is None:
        raise ConfigError(f"{candidate} has no parameters, so there is nothing to train or load.")
    if not any(weight.requires_grad for weight in model.parameters()):
        traits.untrainable = (
            f"{candidate}: all its parameters are frozen (requires_grad=False), so nothing would train."
        )
    widen(candidate, traits)
    separate(candidate.model)
    refuse_other_state(candidate)
    resting = not own and rest_auxiliary(candidate, traits)
    evaluated = logits_of(candidate, False)
    trained = evaluated
    if own or resting:
        try:
            trained = logits_of(candidate, True)
        except ConfigError as error:
            traits.untrainable = traits.untrainable or str(error)
    traits.notes += evaluated.note(candidate, "")
    traits.training_notes += [] if evaluated.others else trained.note(candidate, " in training mode")
    if own:
        warn_of_probabilities(candidate, evaluated, trained, traits)
    if not (evaluated.plain and trained.plain) or (own and not keeps_batch(candidate)):
        model.register_forward_hook(TakeLogits({False: evaluated.entry.route, True: trained.entry.route}))
    if own and (evaluated.overwrites or trained.overwrites):
        model.register_forward_pre_hook(Copied())
    if own:
        reproduce(candidate, traits)
    return traits


def warn_of_probabilities(candidate: Candidate, evaluated: Found, trained: Found, traits: Traits) -> None:
    """Add a note if the network returns probabilities: every loss here takes the softmax of its outputs."""
    for found, notes, mode in (
        (evaluated, traits.notes, "evaluation"),
        (trained, traits.training_notes, "training mode"),
    ):
        if are_probabilities(found.entry.tensor):
            notes.append(
                f"{candidate} returns probabilities in {mode} (none negative, a sum of 1), and is taken as returning "
                "logits, whose softmax is then nearly uniform: leave out its last softmax"
            )
            return


def keeps_batch(candidate: Candidate) -> bool:
    """Return False if the logits of one image have no dimension of the batch, as after squeeze()."""
    try:
        output = passed(candidate.model, candidate.image(count=1), False)
    except Exception:  # it takes larger batches alone, and says so when it gets one image
        return True
    return not isinstance(output, Tensor) or output.dim() == 2


def reproduce(candidate: Candidate, traits: Traits) -> None:
    """Check that passes on the same images agree: a second one, from saved weights, and in channels-last memory."""
    model, image = candidate.model, candidate.image()
    if hidden := unregistered(model):
        traits.notes.append(
            f"{candidate}: the layers in {', '.join(hidden)} are neither trained nor saved, since a plain list or "
            "dictionary does not register them: use nn.ModuleList, nn.ModuleDict or nn.ParameterList"
        )
    if is_random(model, image):
        traits.notes.append(
            f"{candidate} is random in evaluation: two passes on the same images differ, as with dropout that "
            "ignores self.training; every measurement is of one draw"
        )
    elif loses_state(model, image):
        traits.untrainable = traits.untrainable or (
            f"{candidate}: training changes a state that its state_dict does not hold, so its saved weights would "
            "give other results: register it as a buffer (persistent, the default), not as a plain attribute."
        )
    if problem := channels_last_problem(model, image):
        traits.channels_last = False
        model.register_forward_pre_hook(Contiguous())
        traits.notes.append(f"{candidate} runs in contiguous memory, because it fails in channels-last: {problem}")


def rest_auxiliary(candidate: Candidate, traits: Traits) -> bool:
    """Make the auxiliary heads of GoogLeNet and Inception return nothing in training, and return True if there are
    any: no loss uses them, and they need larger images than the network. Their weights are kept, since files of such
    networks hold them."""
    names = [name for name in ("aux1", "aux2", "AuxLogits") if getattr(candidate.model, name, None) is not None]
    for name in names:
        candidate.model.get_submodule(name).forward = nothing
    if names:
        traits.training_notes.append(
            f"{candidate}: its auxiliary heads ({', '.join(names)}) are off, since no loss uses them; "
            f"{candidate.role}.kwargs.aux_logits=false builds it without them"
        )
    return bool(names)


def nothing(image: Tensor) -> None:
    """Replace a head's forward: return None."""


def widen(candidate: Candidate, traits: Traits) -> None:
    """Convert the network's weights to float32, the only type that is trained here."""
    kinds = {weight.dtype for weight in candidate.model.parameters() if weight.dtype.is_floating_point}
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if others:
        candidate.model.float()
        traits.notes.append(
            f"{candidate}: its weights were {' and '.join(others)}, now float32; precision= sets the arithmetic"
        )


def separate(model: nn.Module) -> None:
    """Give each element of an expanded buffer memory of its own: PyTorch cannot copy into it otherwise."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if any(size > 1 and not step for size, step in zip(buffer.shape, buffer.stride(), strict=True)):
                module._buffers[name] = buffer.contiguous()


def refuse_other_state(candidate: Candidate) -> None:
    """Raise ConfigError for a state that is no tensor, which a weights file could not hold."""
    others = [name for name, value in candidate.model.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise ConfigError(
            f"{candidate}: its state_dict has entries that are no tensors ({', '.join(others)}), which a file "
            "of weights cannot hold: let get_extra_state return a tensor, or remove it."
        )


@dataclass(frozen=True)
class Found:
    """Logits located in a network's output. plain: the output is just the logits, [N, K]; overwrites: the network
    modified the input images, which others use after it."""

    entry: Entry
    others: list[Entry]
    plain: bool
    overwrites: bool

    def note(self, candidate: Candidate, mode: str) -> list[str]:
        """Return a note on other entries that might have been meant, if there are any."""
        if not self.others:
            return []
        left = ", ".join(entry.label for entry in self.others)
        return [
            f"{candidate} returns several logits{mode}: {self.entry.label} is used, no loss is on {left} (an entry "
            "named logits is preferred)"
        ]


def logits_of(candidate: Candidate, training: bool) -> Found:
    """Pass images through the network. Raises ConfigError (one line) if it fails, or returns no logits of the data
    set's classes."""
    image = candidate.image()
    try:
        output = passed(candidate.model, image, training)
    except (KdrunError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(failure(candidate, error, training)) from error
    entry, others = find_logits(output, COUNT, candidate.classes)
    if entry is None:
        raise ConfigError(misfit(candidate, output, " in training mode" if training else ""))
    plain = isinstance(output, Tensor) and output.dim() == 2
    return Found(entry, others, plain, not torch.equal(image, candidate.image()))


def passed(model: nn.Module, image: Tensor, training: bool) -> Any:
    """Return the network's output, and restore its state and the random state.

    In evaluation the random state is not restored, since a lazy layer draws its weights now.
    """
    mode = model.training
    try:
        with torch.no_grad():
            model.train(training)  # a statement of its own: the user's train() may return nothing
            if not training:
                return model(image)
            kept = {name: value.clone() for name, value in model.named_buffers()}
            try:
                with torch.random.fork_rng(devices=[]):
                    return model(image)
            finally:
                restore(model, kept)
    finally:
        model.train(mode)


def failure(candidate: Candidate, error: Exception, training: bool) -> str:
    """Return the error line for a pass that raised `error`."""
    mode = " in training mode" if training else ""
    line, advice = explain(error, candidate.model)
    side = None if training or advice else other_side(candidate)
    if side is not None:
        advice = f"It takes images of {side} px: set {candidate.role}.input_size={side}."
    return f"{candidate} fails{mode} on images of {candidate.side} px: {line} {advice}".rstrip()


def other_side(candidate: Candidate) -> int | None:
    """Return an image size that the network accepts if it does not accept its own; the next larger one is tried
    first."""
    smaller = [side for side in SIDES if side < candidate.side]
    for side in [*(side for side in SIDES if side > candidate.side), *reversed(smaller)]:
        try:
            output = passed(candidate.model, candidate.image(side), False)
        except Exception:
            continue
        if find_logits(output, COUNT, candidate.classes)[0] is not None:
            return side
    return None


def misfit(candidate: Candidate, output: Any, mode: str) -> str:
    """Return the error line for an output without logits of the data set's classes."""
    classes = candidate.classes
    if isinstance(output, Tensor) and output.dim() == 2 and len(output) == COUNT:
        return (
            f"{candidate} returns {output.shape[1]} outputs per image{mode}, but the data set has {classes} classes: "
            "build its last layer for num_classes."
        )
    return (
        f"{candidate} returns {described(output)} for {COUNT} images{mode}; none of these are logits "
        f"[{COUNT}, {classes}] of the data set's {classes} classes."
    )
