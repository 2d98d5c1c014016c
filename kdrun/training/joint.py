"""Joint training: one lane's step by several processes that train a run together. Each processes its own images, the
gradients are averaged, and terms that relate images to each other see those of all."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import RunError
from kdrun.methods.base import Forward, Method, check_terms, place_of
from kdrun.shares import Share
from kdrun.structures import Batch, Mixed, Outputs, Progress
from kdrun.training import ranks


class Whole(nn.Module):
    """Module of a method's whole call: however many passes of the student it contains, there is one backward."""

    def __init__(self, student: nn.Module, method: Method):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        terms = self.method(batch, student, teacher, progress)
        check_terms(terms, self.method)
        return terms


class Joint:
    """Student and method, trained jointly with those of the other processes."""

    def __init__(self, student: nn.Module, method: Method):
        from torch.nn.parallel import DistributedDataParallel

        self.method = method
        # find_unused_parameters, since methods may not use all; it also keeps the buckets unchanged, so that a resumed
        # run sums in the same order. Buffers are averaged below.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # about an argument's name
            self.module: Any = DistributedDataParallel(
                Whole(student, method), broadcast_buffers=False, find_unused_parameters=True
            )
        self.statistics = running_statistics(self.module.module)

    def backward(
        self,
        batch: Batch,
        student: Forward,
        teacher: Forward | None,
        progress: Progress,
        every: int,
        updates: bool,
    ) -> dict[str, Tensor]:
        """Return the terms of this process, after backpropagating the mean over the whole batch. every: batches per
        update; updates: True for an update's last batch."""
        share, weight = batch.share, 1 / every
        if share is not None and self.method.batch_terms == "batch":
            batch, student, teacher = gathered(batch, share, student, teacher, self.method)
        elif share is not None:
            weight *= share.own * len(share.counts) / share.total
        with nullcontext() if updates else self.module.no_sync():
            terms = self.module(batch, student, teacher, progress)
            (torch.stack(list(terms.values())).sum() * weight).backward()
        level(self.statistics)
        return terms


def gathered(
    batch: Batch, share: Share, student: Forward, teacher: Forward | None, method: Method
) -> tuple[Batch, Forward, Forward | None]:
    """Return the batch with the labels of all processes, and networks that return the outputs of all."""
    mixed = None if batch.mixed is None else Mixed(*(of_all(tensor, share) for tensor in batch.mixed))
    whole = replace(batch, label=of_all(batch.label, share), index=of_all(batch.index, share), mixed=mixed)

    def joining(forward: Forward) -> Forward:
        def outputs_of(image: Tensor) -> Outputs:
            if len(image) % share.own:
                raise RunError(
                    f"{place_of(method, 'forward')} passes {len(image)} images of a batch of {share.own}: with "
                    'batch_terms = "batch" and several processes it must pass whole batches.'
                )
            return forward(image).apply(lambda tensor: OfAll.apply(tensor, share))  # type: ignore[arg-type]

        return outputs_of

    return whole, joining(student), None if teacher is None else joining(teacher)


class OfAll(torch.autograd.Function):
    """Gathering of the rows of all processes. Each process computes the same loss of the same rows, and DDP averages
    the gradients; so a process returns the gradient of its own rows, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, share: Share) -> Tensor:  # type: ignore[override]
        ctx.share = share
        return of_all(rows, share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        share: Share = ctx.share
        own = grad.unflatten(0, (-1, share.total))[:, share.rows].flatten(0, 1)
        return own * len(share.counts), None


def of_all(rows: Tensor, share: Share) -> Tensor:
    """Return the rows of all processes in the batch's order. rows: this process's, in one or more views, one view
    after the other: [V·n, …] -> [V·N, …]."""
    import torch.distributed as dist

    views = rows.detach().unflatten(0, (-1, share.own))
    size = list(views.shape)
    size[1] = max(share.counts)  # gathering needs equal shapes
    filled = views.new_zeros(size)
    filled[:, : share.own] = views
    parts = [torch.empty_like(filled) for _ in share.counts]
    with ranks.now.reaching():
        dist.all_gather(parts, filled)
    return torch.cat([part[:, :count] for part, count in zip(parts, share.counts, strict=True)], dim=1).flatten(0, 1)


def totals(values: Tensor, right: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Return the means of `values` [T] over all images, given the means over this process's images, and the sum of
    `right`."""
    found = ranks.now.total(torch.cat([values.double() * share.own, right.double()[None]]))
    return (found[:-1] / share.total).to(values.dtype), found[-1]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the statistics that batch norm has from this process's images only."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [
        buffer
        for norm in norms
        if not isinstance(norm, nn.SyncBatchNorm)
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]


@torch.no_grad()
def level(buffers: list[Tensor]) -> None:
    """Replace buffers by their mean over all processes, which is then bitwise equal in all of them."""
    if not buffers:
        return
    flat = ranks.now.total(torch.cat([buffer.flatten() for buffer in buffers])) / ranks.now.size
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
