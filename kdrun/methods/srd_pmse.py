"""Softmax regression on probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.srd import SRD


class SRDPMSE(SRD):
    """Variant of srd that compares class probabilities instead of raw logits.

    Paper: P3's code, SRDwithPMSE: Yang et al., ICLR 2021 (see srd).

    Equation:
        L = ce_weight CE(z_s, y) + feature_weight mean (f^ - f_t)^2
            + srd_weight mean (softmax(z^) - softmax(z_t))^2
        f^ = ReLU(BN(conv1x1(f_s))),   z^ = classifier_t(mean_hw f^)

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in P3's code.
        feature_weight: weight of the maps' mean squared error. 1 there (its A).
        srd_weight: weight of the probabilities' mean squared error over samples and classes. 2 there (its B), at which
            the term is tiny: at most 4 / K.
        feature_means: as in srd.

    Disagreements:
        None known. Maps, grids and teachers as in srd.
    """

    batch_terms = "sample"
    name = "srd_pmse"

    def regression(self, cross: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(F.softmax(cross, dim=1), F.softmax(teacher, dim=1))
