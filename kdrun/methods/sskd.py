"""Self-supervised knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.options import OptimizerOptions
from kdrun.methods.base import Forward, Method
from kdrun.methods.features import need_pooled
from kdrun.methods.losses import kl_of_samples
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def rotations(image: Tensor) -> Tensor:
    """Rotate image [N, C, S, S] by 0°, 90°, 180°, 270°: [4N, C, S, S], the N unrotated ones first."""
    turned = [torch.rot90(image, turns, (2, 3)) for turns in range(4)]
    return torch.cat(turned).contiguous(memory_format=torch.channels_last)


def similarity(embedding: Tensor) -> Tensor:
    """Return the cosines of the rotated with the unrotated embeddings: [4N, D] in the order of `rotations` -> [3N,
    N]."""
    unit = F.normalize(embedding, dim=1)
    n = len(unit) // 4
    return unit[n:] @ unit[:n].T


def own_image(rows: int, device: torch.device) -> Tensor:
    """Return the column that each of 3N rows of `similarity` should find: [3N] int64."""
    return torch.arange(rows // 3, device=device).repeat(3)


def rank_of(scores: Tensor, column: Tensor) -> Tensor:
    """Count the entries in each row that beat the true one: scores [R, C], column [R] -> [R], 0 if it is the
    largest."""
    return (scores > scores.gather(1, column[:, None])).sum(dim=1)


def kept_rows(rank: Tensor, dropped: float) -> Tensor:
    """Return 1.0 for rows with rank 0 and for the best-ranked of the others, all but the share `dropped` of them;
    rank [R]."""
    wrong = (rank > 0).sum()
    count = len(rank) - wrong + (wrong.double() * (1 - dropped)).floor()
    place = rank.argsort(stable=True).argsort()
    return (place < count).float()


def kept_divergence(student: Tensor, teacher: Tensor, temperature: float, kept: Tensor | None = None) -> Tensor:
    """Return T²·KL of softened rows [R, C], averaged over the rows that `kept` [R] selects; 0 if it selects none."""
    rows = kl_of_samples(student, teacher, temperature)
    mean = rows.mean() if kept is None else (rows * kept).sum() / kept.sum().clamp(min=1)
    return temperature**2 * mean


def pretext_head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class SSKD(Method):
    """Transfers the teacher's predictions on rotated images and its image similarities, in addition to its class
    probabilities.

    Paper: Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv:2006.07114.

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight KD_T(z_s, z_t) + rotated_weight KD_T(z'_s, z'_t)
            + similarity_weight KD_T'(A_s, A_t)
        KD_T(a, b) = T^2 mean over rows of KL(softmax(b / T) || softmax(a / T))
        z: logits of the images [N, K], z' of their rotations by 90, 180 and 270 degrees [3N, K]
        A = cos(head(pooled'), head(pooled)) [3N, N],   head = Linear(d, d), ReLU, Linear(d, d) per network
        Rotated rows on which the teacher is wrong are ranked by the rank of the true class; the worst are dropped.
        Before the first epoch the teacher's head alone is trained: L = CE(A_t, own image).

    Hyperparameters:
        temperature: T of both KD terms on logits. 4 in the authors' code.
        similarity_temperature: T' of the similarity term. 0.5 there.
        ce_weight: weight of the hard-label term. 0.1 there.
        kd_weight: weight of the soft term on unrotated images. 0.9 there.
        rotated_weight: weight of the soft term on rotated images. 2.7 there.
        similarity_weight: weight of the similarity term. 10 there.
        rotated_dropped: share of the rotated images misclassified by the teacher that is left out. 0 there.
        similarity_dropped: share of the rotated images whose own image the teacher does not find that is left out of
        the similarity term. 0.25 there (they keep 0.75).
        prepare_epochs: epochs of the teacher's head, with SGD (momentum 0.9, weight decay 5e-4) and lr times 0.1 at
            half and at three quarters of them. 60 there; 0 leaves the head as it is initialised.
        prepare_lr: its learning rate. 0.05 there.

    Disagreements:
        The authors train the student on crops without flips and the teacher with them, as the recipe here does;
        elsewhere set dataset.augment.flip=0 teacher.flip=0.5. Their loader rotates the uint8 image; here the normalised
        one is rotated, which is equivalent. Ties of ranks are broken by position, in their code randomly.
    """

    batch_terms = "batch"
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})
    shows_batch = False  # only its rotations

    def __init__(
        self,
        *,
        temperature: float,
        similarity_temperature: float,
        ce_weight: float,
        kd_weight: float,
        rotated_weight: float,
        similarity_weight: float,
        rotated_dropped: float,
        similarity_dropped: float,
        prepare_epochs: int,
        prepare_lr: float,
    ):
        super().__init__()
        self.temperature, self.similarity_temperature = temperature, similarity_temperature
        self.ce_weight, self.kd_weight = ce_weight, kd_weight
        self.rotated_weight, self.similarity_weight = rotated_weight, similarity_weight
        self.rotated_dropped, self.similarity_dropped = rotated_dropped, similarity_dropped
        self.prepare_epochs, self.prepare_lr = prepare_epochs, prepare_lr

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.student_head = pretext_head(need_pooled(student, "student", "sskd"))
        self.teacher_head = pretext_head(need_pooled(teacher, "teacher", "sskd"))

    def preparation(self) -> OptimizerOptions | None:
        if self.prepare_epochs == 0:
            return None
        milestones = [max(1, self.prepare_epochs // 2), max(1, 3 * self.prepare_epochs // 4)]
        return OptimizerOptions(
            name="sgd",
            epochs=self.prepare_epochs,
            batch_size=64,
            lr=self.prepare_lr,
            weight_decay=5e-4,
            schedule="multistep",
            milestones=milestones,
        )

    def prepare_losses(
        self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress
    ) -> dict[str, Tensor]:
        """Compute one step of training the teacher's head to find the unrotated image of each rotated one."""
        assert teacher is not None
        pooled = teacher(rotations(batch.teacher_image)).pooled
        assert pooled is not None
        found = similarity(self.teacher_head(pooled))
        return {"pretext": F.cross_entropy(found, own_image(len(found), found.device))}

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        image = rotations(batch.image)
        seen = image if batch.teacher_image is batch.image else rotations(batch.teacher_image)
        return self.losses(batch, student(image), teacher(seen), progress)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        """Return the terms from the outputs of all 4N images, in the order of `rotations`."""
        assert teacher is not None and teacher.pooled is not None and student.pooled is not None
        n, s, t = len(batch.label), student.logits, teacher.logits
        with torch.no_grad():  # the teacher's head is frozen: without a gradient, not even weight decay changes it
            found_t = similarity(self.teacher_head(teacher.pooled))
        found_s = similarity(self.student_head(student.pooled))
        right = kept_rows(rank_of(t[n:], batch.label.repeat(3)), self.rotated_dropped)
        alike = kept_rows(rank_of(found_t, own_image(3 * n, t.device)), self.similarity_dropped)
        return {
            "ce": self.ce_weight * F.cross_entropy(s[:n], batch.label),
            "kd": self.kd_weight * kept_divergence(s[:n], t[:n], self.temperature),
            "rotated": self.rotated_weight * kept_divergence(s[n:], t[n:], self.temperature, right),
            "similarity": self.similarity_weight
            * kept_divergence(found_s, found_t, self.similarity_temperature, alike),
        }
