"""Untrained teachers, as controls."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kdrun.shares import Part
from kdrun.training import ranks
from kdrun.training.build import Data, make_eval_loader
from kdrun.training.network import Network

IMAGES, BATCH = 512, 64


def measure_norms(network: Network, data: Data, seed: int) -> None:
    """Give an untrained network batch norm's statistics of `IMAGES` training images, drawn by `seed`.

    With the initial mean 0 and variance 1 the activations of a deep residual network grow from block to block: a fresh
    resnet56 gives one class a probability of 1, the same for every image, and is no function of the image any more.
    """
    found = ranks.now.from_main(lambda: statistics(network, data, seed))
    for name, buffer in network.tap.named_buffers():
        if name in found:
            buffer.copy_(found[name])


def statistics(network: Network, data: Data, seed: int) -> dict[str, Tensor]:
    """Return name -> the network's batch-norm statistics, the mean over batches of `BATCH` unaugmented images, computed
    in float32."""
    norms = [norm for norm in network.tap.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    order = np.random.default_rng(seed).permutation(len(data.splits.train))[:IMAGES]
    if len(order) % BATCH == 1:  # a single image may have no variance
        order = order[:-1]
    if not norms or not len(order):
        return {}
    loader = make_eval_loader(data, data.splits.train.take(order), network.numerics, part=Part(), batch_size=BATCH)
    network.tap.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for image, _ in loader.batches():
            network.tap(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    inside = {id(buffer) for norm in norms for buffer in norm.buffers()}
    return {name: buffer.cpu() for name, buffer in network.tap.named_buffers() if id(buffer) in inside}
