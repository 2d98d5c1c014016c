"""The seam: what the engine asks of a distillation method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdrun.config.options import OptimizerOptions
from kdrun.errors import RunError
from kdrun.models.features import Tap
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

__all__ = [
    "Batch",
    "DataSpec",
    "Forward",
    "Method",
    "OptimizerOptions",
    "Outputs",
    "Progress",
    "Spec",
]  # of one's own method

Forward = Callable[[Tensor], Outputs]


def stages_read(methods: Iterable[Method]) -> frozenset[int] | None:
    """The teacher's maps that `methods` read between them, after `build`; None: all."""
    stages = [method.teacher_stages for method in methods if method.teacher_needs & {"maps", "preact"}]
    return None if None in stages else frozenset().union(*stages)  # type: ignore[arg-type]


def check_terms(terms: object, method: Method, gradient: bool = True, function: str = "") -> None:
    """Raise RunError unless `terms`, which a method returned, is a dictionary of scalars; with `gradient`, of scalars
    that something trainable moves. function: what returned them, if that is neither `losses` nor `forward`."""
    function = function or ("losses" if type(method).forward is Method.forward else "forward")
    if not isinstance(terms, dict) or not terms:
        wrong = "None" if terms is None else "an empty dictionary" if terms == {} else f"a {type(terms).__name__}"
        raise RunError(f"{place_of(method, function)} returns {wrong}, not a dictionary of loss terms.")
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            wrong = f"of type {type(term).__name__}; a term is a tensor"
        elif term.dim():
            wrong = f"of shape {list(term.shape)}; a term is a scalar: take its mean or sum"
        elif gradient and not term.requires_grad:
            wrong = "without a gradient: it depends neither on the student nor on a part of the method"
        else:
            continue
        raise RunError(f"{place_of(method, function)} returns the term {name!r} {wrong}.")


def place_of(method: Method, function: str) -> str:
    """Return `Class.function (file, line)`."""
    kind = type(method)
    code = inspect.unwrap(getattr(kind, function)).__code__
    return f"{kind.__name__}.{function} ({Path(code.co_filename).name}, line {code.co_firstlineno})"


class Method(nn.Module):
    """One distillation method: trainable parts and a dictionary of weighted loss terms.

    A subclass lives in a file of its own beside a YAML in conf/method. Its constructor takes every hyperparameter by
    keyword, without defaults: the numbers are in the YAML. One that is added to a method later has what the method did
    before as its default, and is left out of the identity of a run that does not change it. The docstring is what
    `kdrun explain` prints: a claim, then the sections Paper, Equation, Hyperparameters and Disagreements.
    """

    # "sample": each term is a mean over samples, of which none looks at another, so that several processes need only
    # average. "batch": a term relates samples to each other, or the method keeps something of each sample; on several
    # processes it gets the outputs of all, with their gradient. What a class does not say itself is "batch".
    batch_terms: ClassVar[Literal["sample", "batch"]] = "batch"
    # False: the method never looks at a teacher, so none is found or trained, and one student serves all pairs.
    needs_teacher: ClassVar[bool] = True
    # True: the teacher starts untrained and learns along, as the submodule `peer` (deep mutual learning).
    trains_teacher: ClassVar[bool] = False
    # True: what is evaluated, counted and stored is more than the student; see `deployed`.
    deploys: ClassVar[bool] = False
    # False: the student's own classifier stays as it was born, so its accuracy in training would say nothing.
    trains_classifier: ClassVar[bool] = True
    # True: of labels it takes `hard_label_loss` alone, so that it runs on mixed images (mixup, CutMix) too.
    takes_mixed: ClassVar[bool] = False
    # Views of each image that the loader makes beside the usual one: "strong" fills `batch.strong`.
    views: ClassVar[tuple[str, ...]] = ()
    # False: the teacher is shown only images that the method makes, and never `batch.teacher_image` itself.
    shows_batch: ClassVar[bool] = True
    # Features of `kdrun.structures.FEATURES` beside the logits, which are always there, in float32.
    student_needs: ClassVar[frozenset[str]] = frozenset()
    teacher_needs: ClassVar[frozenset[str]] = frozenset()
    # Which of the teacher's maps it reads (-1: the last), where it needs maps; None: all. `build` may set it.
    teacher_stages: frozenset[int] | None = None
    # Properties of `kdrun check` that a paper makes untrue, with the reason.
    exceptions: ClassVar[dict[str, str]] = {}
    peer: Tap

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "batch_terms" not in vars(cls):  # what is true of a class need not be of what is derived from it
            cls.batch_terms = "batch"

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        """Make trainable extra modules from measured shapes. Raise PairingError where the method cannot run."""

    def preparation(self) -> OptimizerOptions | None:
        """The recipe of what a paper trains before the first epoch (FitNet's stage 1, SSKD's head), after `build`; its
        `epochs` and learning rates are its own. None: nothing."""
        return None

    def prepare_losses(
        self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress
    ) -> dict[str, Tensor]:
        """One step of the preparation: like `forward`. Whatever gets a gradient is trained, in student and method."""
        raise NotImplementedError

    def deployed(self, student: Tap) -> nn.Module:
        """What maps images to logits after training: the student alone, but for a method that `deploys` more."""
        return student.model

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised. The hard-label term is called `ce`."""
        raise NotImplementedError

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        """One step. Overridden only where one pass of each network over the batch is not what the paper does.

        `student` and `teacher` map images to float32 Outputs; the teacher's pass over `batch.teacher_image` is shared
        between all students that train on the batch.
        """
        taught = None if teacher is None else teacher(batch.teacher_image)
        return self.losses(batch, student(batch.image), taught, progress)

    def note(self) -> str:
        """A line for the user after `build`, such as the size of a memory bank; empty: nothing to say."""
        return ""

    def extra_parameters(self) -> int:
        """How many trainable numbers the method adds in training, a peer among them."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
