"""One lane's step where several processes train a run together: each passes its own images, the gradients are averaged,
and what relates images to each other sees those of all."""

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
    """A method's whole call as one module: however many passes of the student are in it, there is one backward."""

    def __init__(self, student: nn.Module, method: Method):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        terms = self.method(batch, student, teacher, progress)
        check_terms(terms, self.method)
        return terms


class Joint:
    """A student and its method among those of the other processes."""

    def __init__(self, student: nn.Module, method: Method):
        from torch.nn.parallel import DistributedDataParallel

        self.method = method
        # Unused parameters are looked for since methods leave some out; it also keeps the buckets as they are, so that
        # a resumed run adds up in the same order. Buffers are levelled below.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of the name of an argument
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
        """Return the terms of this process, after their gradient of the mean over the whole batch. every: batches of an
        update; updates: whether this is its last."""
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
    """The rows of all processes. Each computes the same loss of the same rows, and DDP takes the mean of the gradients:
    the gradient of a process's own rows, times the number of processes, is all that it needs to give."""

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
    """Return the rows of all processes in the batch's order, where `rows` are the own ones of one or more views, one
    view after the other: [V·n, …] -> [V·N, …]."""
    import torch.distributed as dist

    views = rows.detach().unflatten(0, (-1, share.own))
    size = list(views.shape)
    size[1] = max(share.counts)  # gathering takes equal shapes
    filled = views.new_zeros(size)
    filled[:, : share.own] = views
    parts = [torch.empty_like(filled) for _ in share.counts]
    with ranks.now.reaching():
        dist.all_gather(parts, filled)
    return torch.cat([part[:, :count] for part, count in zip(parts, share.counts, strict=True)], dim=1).flatten(0, 1)


def totals(values: Tensor, right: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Return the means of `values` [T], means over the own images, over those of all, and the sum of `right`."""
    found = ranks.now.total(torch.cat([values.double() * share.own, right.double()[None]]))
    return (found[:-1] / share.total).to(values.dtype), found[-1]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return what batch norm keeps of the images of this process alone."""
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
    """Bring buffers to their mean over all processes, in which they are then equal to the last bit."""
    if not buffers:
        return
    flat = ranks.now.total(torch.cat([buffer.flatten() for buffer in buffers])) / ranks.now.size
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
