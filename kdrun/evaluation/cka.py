"""Linear CKA: similarity of two networks' representations of the same images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MINIBATCH = 64  # the estimate is unbiased from FEWEST on; a fixed size makes it repeatable
FEWEST = 4  # images from which the unbiased estimator is defined


def unbiased_gram(features: Tensor) -> Tensor:
    """Return the linear Gram matrix [N, N], float64, U-centred: zero diagonal, and every row sums to zero.

    features: [N, ...], flattened, N ≥ 4. Equation: with the diagonal of K set to zero,
        K_ij − row_i / (N − 2) − column_j / (N − 2) + total / ((N − 1)(N − 2)) for i ≠ j
    (Székely, Rizzo 2014, arXiv:1310.2926). The mean product of two such matrices is Song et al.'s (2012) HSIC_1.
    """
    flat = features.flatten(1).double()
    flat = flat - flat[0]  # a shift changes only the rounding, and constant features become exact zeros
    flat = flat - flat.mean(dim=0)
    gram = flat @ flat.T
    count = len(gram)
    gram.fill_diagonal_(0)
    rows = gram.sum(dim=0) / (count - 2)
    gram = gram - rows[:, None] - rows[None, :] + gram.sum() / ((count - 1) * (count - 2))
    return gram.fill_diagonal_(0)


class CKAMeter:
    """Meter of the linear CKA between every stage of one network and every stage of another, from minibatches.

    Equation: CKA = m(X, Y) / sqrt(m(X, X) m(Y, Y)), m the mean over minibatches of the unbiased HSIC_1 of linear Gram
    matrices (Kornblith, Norouzi, Lee, Hinton, ICML 2019, arXiv:1905.00414; in minibatches Nguyen, Raghu, Kornblith,
    ICLR 2021, arXiv:2010.15327), so that memory does not grow with the number of images. 1 for stages that are equal up
    to rotation and scale; an estimate near 0 may fall below it. The images must come in random order: minibatches of
    one class contain no variation between classes.
    """

    def __init__(self, student: int, teacher: int, device: torch.device):
        """Set up the sums. student, teacher: number of stages of each."""
        self.cross = torch.zeros(student, teacher, dtype=torch.float64, device=device)
        self.own = torch.zeros(student, dtype=torch.float64, device=device)
        self.other = torch.zeros(teacher, dtype=torch.float64, device=device)

    def update(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Add stages [N, ...] of the same images. A remainder of fewer than four images is ignored."""
        for start in range(0, len(student[0]), MINIBATCH):
            window = slice(start, start + MINIBATCH)
            count = len(student[0][window])
            if count < FEWEST:
                continue
            ours = torch.stack([unbiased_gram(item[window]).flatten() for item in student])
            theirs = torch.stack([unbiased_gram(item[window]).flatten() for item in teacher])
            share = 1 / (count - 3)  # HSIC_1 has 1 / (N (N − 3)); each minibatch is weighted by its N images
            self.cross += share * (ours @ theirs.T)
            self.own += share * ours.square().sum(dim=1)
            self.other += share * theirs.square().sum(dim=1)

    def result(self) -> list[list[float | None]]:
        """Return CKA by (student stage, teacher stage); None if a stage is constant over the images, or there were
        too few."""
        values = self.cross / (self.own[:, None] * self.other[None, :]).sqrt()
        return [[value if value == value else None for value in row] for row in values.tolist()]
