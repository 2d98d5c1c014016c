"""Softmax regression by correlation."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.dist import distv2_loss
from kdrun.methods.srd import SRD


class SRDDist(SRD):
    """Variant of srd in which the cross-network logits are correlated with the teacher's instead of equal to them.

    Paper: P3's table, row SRDwithDIST: Yang et al., ICLR 2021 (see srd), with Huang, You, Wang, Qian, Xu, "Knowledge
        Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.

    Equation:
        L = ce_weight CE(z_s, y) + feature_weight mean (f^ - f_t)^2
            + srd_weight [(1 - mean_n pearson(z^_n, z_t,n)) + (1 - mean_k pearson(z^_k, z_t,k))]
        f^ = ReLU(BN(conv1x1(f_s))),   z^ = classifier_t(mean_hw f^), raw logits

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in P3's table.
        feature_weight: weight of the maps' mean squared error. 1 there (its A).
        srd_weight: weight of the correlation term. 10 there (its B): the checkpoint of the published 80.39 is named
            b10, though a script says 4.
        feature_means: as in srd.

    Disagreements:
        No softmax and no temperature, unlike dist. P3's scripts also pass a weight G that its code ignores. Maps, grids
        and teachers as in srd.
    """

    batch_terms = "batch"
    name = "srd_dist"

    def regression(self, cross: Tensor, teacher: Tensor) -> Tensor:
        return distv2_loss(cross, teacher)
