"""The independent student."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, Outputs, Progress


class Independent(Method):
    """Trains the student on the labels alone: the baseline that every method has to beat.

    Paper: none; the rows "student", "SI" or "CE" of the published tables.

    Equation:
        L = CE(z_s, y)

    Hyperparameters: none.

    Disagreements:
        RepDistiller reports the last epoch, mdistiller the best epoch on the test set, for the same row.
    """

    batch_terms = "sample"
    takes_mixed = True
    needs_teacher = False

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        return {"ce": hard_label_loss(student.logits, batch)}
