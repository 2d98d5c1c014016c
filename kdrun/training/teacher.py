"""Teachers as students see them: frozen and shared, or learning along."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdrun.methods.base import Forward
from kdrun.structures import Batch, Outputs, filled
from kdrun.training.network import Network

KEPT = 2  # the usual view of a batch and one more: lanes that need both ask for them in turn


class Teacher:
    """The frozen teacher: eval mode, no gradient. It sees full batches only, so that what it says of an image does not
    depend on the batch.

    cache: what it says of each training image, by index, where it sees the same one in every epoch.
    """

    def __init__(self, network: Network):
        self.network = network
        network.tap.eval().requires_grad_(False)
        self.cache: Callable[[Tensor], Outputs] | None = None

    def __call__(self, image: Tensor) -> Outputs:
        """Return the outputs [N, …] for images [N, 3, H, W]."""
        assert not self.network.tap.training, "something has put the teacher into training mode"
        with torch.no_grad():
            return self.network(filled(image, self.network.batch_size)).apply(lambda rows: rows[: len(image)])

    def for_batch(self, batch: Batch) -> Forward:
        """Return the teacher for the students of one batch: each image tensor is passed once, however many ask for it.
        The outputs, which are large, live as long as what is returned."""
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
    """A teacher that learns along: gradients flow, and it trains with the method that owns it."""

    def __init__(self, network: Network):
        self.network = network

    def __call__(self, image: Tensor) -> Outputs:
        return self.network(image)

    def for_batch(self, batch: Batch) -> Forward:
        """Return the peer itself: its weights differ from lane to lane, and nothing is shared."""
        return self
