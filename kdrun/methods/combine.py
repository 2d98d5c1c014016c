"""Sums of methods."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from kdrun.config.method_schema import yaml_name
from kdrun.config.options import OptimizerOptions
from kdrun.errors import ConfigError
from kdrun.methods.base import Forward, Method, check_terms, stages_read
from kdrun.methods.factory import make_method
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


class Once:
    """Forward that runs once per image tensor, for all parts together: batch statistics must not be updated twice."""

    def __init__(self, forward: Forward):
        self.forward = forward
        self.seen: list[tuple[Tensor, Outputs]] = []

    def __call__(self, image: Tensor) -> Outputs:
        for known, outputs in self.seen:
            if known is image:
                return outputs
        self.seen.append((image, self.forward(image)))
        return self.seen[-1][1]


class Combine(Method):
    """Adds up the terms of several methods over one hard-label term.

    Paper: Sums such as AT+KD and CRD+KD are listed with single methods in most tables, first in Tian, Krishnan, Isola,
        "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699, table 1 and appendix.

    Equation:
        L = ce_weight CE(z_s, y) + sum_i weight_i (L_i without its own hard-label term)

    Hyperparameters:
        ce_weight: weight of the one hard-label term. 1 in RepDistiller's sums.
        parts: the methods, as names or with weight and settings:
            'method.parts=[kd,{method: crd, weight: 0.8}]', 'method.parts=[{method: at, power: 2, at_weight: 500}]'.
            A part's settings are those of conf/method/NAME.yaml unless given; its weight is 1 unless given.

    Disagreements:
        RepDistiller adds KD with weight 1 to a method of its own weight and keeps CE at 1; the CIFAR-100 table takes
        (1 - alpha) CE + alpha KD and adds the feature term (method=at and method=fitnet_joint are written that way).
    """

    takes_mixed = True
    combines: ClassVar[bool] = True

    def __init__(self, *, ce_weight: float, parts: list[dict[str, Any]]):
        super().__init__()
        self.ce_weight = ce_weight
        self.weights = [float(part["weight"]) for part in parts]
        methods = [make_method({key: value for key, value in part.items() if key != "weight"}) for part in parts]
        self.names = [yaml_name(part) for part in parts]
        for name, method in zip(self.names, methods, strict=True):
            if method.trains_teacher or method.deploys or isinstance(method, Combine):
                raise ConfigError(f"method.parts: {name} cannot be a part: it changes more than the loss.")
        if sum(method.preparation() is not None for method in methods) > 1:
            raise ConfigError(
                f"method.parts={self.names}: at most one part may train something before the first epoch."
            )
        self.parts = nn.ModuleList(methods)
        self.student_needs = frozenset().union(*(method.student_needs for method in methods))  # type: ignore[misc]
        self.teacher_needs = frozenset().union(*(method.teacher_needs for method in methods))  # type: ignore[misc]
        relates = any(method.batch_terms == "batch" for method in methods)
        self.batch_terms = "batch" if relates else "sample"  # type: ignore[misc]
        self.takes_mixed = all(method.takes_mixed for method in methods)  # type: ignore[misc]
        self.views = tuple(sorted({view for method in methods for view in method.views}))  # type: ignore[misc]

    @property
    def methods(self) -> list[Method]:
        return list(self.parts)  # type: ignore[arg-type]

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        for method in self.methods:
            method.build(student, teacher, data)
        self.teacher_stages = stages_read(self.methods)

    def note(self) -> str:
        return "; ".join(line for method in self.methods if (line := method.note()))

    def preparation(self) -> OptimizerOptions | None:
        return next((found for method in self.methods if (found := method.preparation()) is not None), None)

    def prepare_losses(
        self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress
    ) -> dict[str, Tensor]:
        preparing = next(method for method in self.methods if method.preparation() is not None)
        return preparing.prepare_losses(batch, student, teacher, progress)

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        once = Once(student)
        terms = {"ce": self.ce_weight * hard_label_loss(once(batch.image).logits, batch)}
        for name, weight, method in zip(self.names, self.weights, self.methods, strict=True):
            own = method(batch, once, teacher, progress)
            check_terms(own, method, gradient=False)
            for key, term in own.items():
                if key != "ce":
                    unique = key if key == name else f"{name}_{key}"
                    terms[f"{unique}_2" if unique in terms else unique] = weight * term
        return terms
