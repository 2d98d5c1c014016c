"""Softmax regression by divergence."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.losses import kl_divergence
from kdrun.methods.srd import SRD


class SRDKL(SRD):
    """Variant of srd in which the cross-network logits match the teacher's class probabilities.

    Paper: P3's code, SRDwithKL: Yang et al., ICLR 2021 (see srd), with the divergence of Hinton et al. 2015,
        arXiv:1503.02531, at T = 1.

    Equation:
        L = ce_weight CE(z_s, y) + feature_weight mean (f^ - f_t)^2
            + srd_weight mean_n KL(softmax(z_t) || softmax(z^))
        f^ = ReLU(BN(conv1x1(f_s))),   z^ = classifier_t(mean_hw f^)

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in P3's code.
        feature_weight: weight of the maps' mean squared error. 1 there (its A).
        srd_weight: weight of the divergence. 2 there (its B).
        feature_means: as in srd.

    Disagreements:
        P3's code hands probabilities to a loss that takes the softmax again, which leaves almost no signal; kdrun
        takes it once. Maps, grids and teachers as in srd.
    """

    batch_terms = "sample"
    name = "srd_kl"

    def regression(self, cross: Tensor, teacher: Tensor) -> Tensor:
        return kl_divergence(cross, teacher, 1.0)
