"""Base class of distillation methods: everything that the engine asks of one."""

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
]  # for user-defined methods

Forward = Callable[[Tensor], Outputs]


def stages_read(methods: Iterable[Method]) -> frozenset[int] | None:
    """Return the teacher's maps that any of `methods` reads, after `build`; None: all."""
    stages = [method.teacher_stages for method in methods if method.teacher_needs & {"maps", "preact"}]
    return None if None in stages else frozenset().union(*stages)  # type: ignore[arg-type]


def check_terms(terms: object, method: Method, gradient: bool = True, function: str = "") -> None:
    """Raise RunError unless `terms`, returned by a method, is a dictionary of scalars; with `gradient`, of scalars that
    depend on something trainable.

    function: the function that returned them, if that is neither `losses` nor `forward`.
    """
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
            wrong = "without a gradient: it depends neither on the student nor on a module of the method"
        else:
            continue
        raise RunError(f"{place_of(method, function)} returns the term {name!r} {wrong}.")


def place_of(method: Method, function: str) -> str:
    """Return `Class.function (file, line)`."""
    kind = type(method)
    code = inspect.unwrap(getattr(kind, function)).__code__
    return f"{kind.__name__}.{function} ({Path(code.co_filename).name}, line {code.co_firstlineno})"


class Method(nn.Module):
    """Base class of a distillation method: trainable modules and a dictionary of weighted loss terms.

    A subclass has a file of its own, and a YAML in conf/method. Its constructor takes every hyperparameter by keyword,
    without defaults: the numbers are in the YAML. A hyperparameter that is added later has the previous behaviour as
    its default, and is left out of the identity of runs that keep it. `kdrun explain` prints the docstring: a claim,
    then the sections Paper, Equation, Hyperparameters and Disagreements.
    """

    # "sample": each term is a mean over independent samples, so that several processes only need to average. "batch": a
    # term relates samples to each other, or the method stores something per sample; on several processes it gets the
    # outputs of all samples, with their gradient. A class that does not set it itself has "batch".
    batch_terms: ClassVar[Literal["sample", "batch"]] = "batch"
    # False: the method uses no teacher, so none is loaded or trained, and one student serves all pairs.
    needs_teacher: ClassVar[bool] = True
    # True: the teacher starts untrained and is trained together with the student, as the submodule `peer` (deep mutual
    # learning).
    trains_teacher: ClassVar[bool] = False
    # True: more than the student is evaluated, counted and stored; see `deployed`.
    deploys: ClassVar[bool] = False
    # False: the student's classifier is never trained; training accuracy is then not reported.
    trains_classifier: ClassVar[bool] = True
    # True: it uses labels only in `hard_label_loss`, so that it also runs on mixed images (mixup, CutMix).
    takes_mixed: ClassVar[bool] = False
    # Views of each image that the loader makes in addition to the usual one: "strong" fills `batch.strong`.
    views: ClassVar[tuple[str, ...]] = ()
    # False: the teacher sees only images that the method makes, never `batch.teacher_image` itself.
    shows_batch: ClassVar[bool] = True
    # Features of `kdrun.structures.FEATURES`, in addition to the logits, which are always returned; all in float32.
    student_needs: ClassVar[frozenset[str]] = frozenset()
    teacher_needs: ClassVar[frozenset[str]] = frozenset()
    # The teacher's maps that it reads (-1: the last), if it needs maps; None: all. `build` may set it.
    teacher_stages: frozenset[int] | None = None
    # Properties of `kdrun check` that do not hold for the published method, with the reason.
    exceptions: ClassVar[dict[str, str]] = {}
    peer: Tap

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "batch_terms" not in vars(cls):  # a property of a class need not hold for its subclasses
            cls.batch_terms = "batch"

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        """Create the trainable modules from the measured shapes. Raises PairingError if the method cannot run on
        this pair."""

    def preparation(self) -> OptimizerOptions | None:
        """Return the recipe of training before the first epoch (FitNet's stage 1, SSKD's head), after `build`; None
        if there is none. Its `epochs` and learning rates are its own."""
        return None

    def prepare_losses(
        self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress
    ) -> dict[str, Tensor]:
        """Compute one step of the preparation, like `forward`. Everything that gets a gradient is trained, in
        student and method."""
        raise NotImplementedError

    def deployed(self, student: Tap) -> nn.Module:
        """Return the module that maps images to logits after training: the student alone, unless the method
        `deploys` more."""
        return student.model

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        """Return named scalar terms, already weighted; their sum is minimised. The hard-label term is called `ce`."""
        raise NotImplementedError

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        """Compute one step. Override it only if the method needs other than one pass of each network over the batch.

        `student` and `teacher` map images to float32 Outputs; the teacher's pass over `batch.teacher_image` is shared
        between all students that train on the batch.
        """
        taught = None if teacher is None else teacher(batch.teacher_image)
        return self.losses(batch, student(batch.image), taught, progress)

    def note(self) -> str:
        """Return a line for the user after `build`, such as the size of a memory bank; an empty string for none."""
        return ""

    def extra_parameters(self) -> int:
        """Return the number of trainable parameters that the method adds in training, including a peer."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
