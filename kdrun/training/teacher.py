"""Teachers as students see them: frozen and shared, or trained together with the student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdrun.methods.base import Forward
from kdrun.structures import Batch, Outputs, filled
from kdrun.training.network import Network

KEPT = 2  # the usual view of a batch and one more, for lanes that need both alternately


class Teacher:
    """Frozen teacher: eval mode, no gradient. It sees only full batches, so that its output for an image does not
    depend on the batch.

    cache: its outputs for each training image, by index, if it sees the same images in every epoch.
    """

    def __init__(self, network: Network):
        self.network = network
        network.tap.eval().requires_grad_(False)
        self.cache: Callable[[Tensor], Outputs] | None = None

    def __call__(self, image: Tensor) -> Outputs:
        """Return the outputs [N, …] for images [N, 3, H, W]."""
        assert not self.network.tap.training, "the teacher was put into training mode"
        count = len(image)
        with torch.no_grad():
            return self.network(filled(image, self.network.batch_size)).apply(lambda rows: rows[:count])

    def for_batch(self, batch: Batch) -> Forward:
        """Return the teacher for the students of one batch: each image tensor passes only once, for all callers. The
        outputs, which are large, live as long as the returned function."""
        kept: list[tuple[Tensor, Outputs]] = []

        def outputs_of(image: Tensor) -> Outputs:
            for position, (seen, outputs) in enumerate(kept):
                if seen is image:
                    kept.append(kept.pop(position))
                    return outputs
            known = self.cache is not None and image is batch.teacher_image
            outputs = self.cache(batch.index) if known and self.cache is not None else self(image)
            kept[:] = [*kept[1 - KEPT :], (image, outputs)]
            return outputs

        return outputs_of


class Peer(Teacher):
    """Teacher that is trained together with the student: gradients flow, and it belongs to its method."""

    def __init__(self, network: Network):
        self.network = network

    def __call__(self, image: Tensor) -> Outputs:
        return self.network(image)

    def for_batch(self, batch: Batch) -> Forward:
        """Return the peer itself: its weights differ from lane to lane, so nothing is shared."""
        return self
