"""Grouping of a sweep's runs into lanes. A lane is one of several runs that train in one process, on one stream of
batches and one teacher forward. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from kdrun.runs.identity import data_identity, digest_of
from kdrun.runs.plan import Plan


def group_key(plan: Plan) -> str:
    """Return a key that is equal for runs that can be lanes of one group: same batches, same teacher outputs, same
    end."""
    config, method = plan.config, plan.method
    teacher: str | None = plan.teacher_digest
    if method.trains_teacher:  # its peer is not shared
        teacher = str(plan.run.path)
    return digest_of(
        {
            "data": data_identity(config.dataset, plan.source.fingerprint()),
            "teacher": [teacher, config.teacher.preact_last_map] if method.needs_teacher else None,
            "view": config.teacher_view if method.needs_teacher else None,
            "length": [config.epochs, config.batch_size, config.seed],
            "evaluation": [config.eval_batch_size, config.eval_every],
            "numerics": [
                config.device,
                config.precision,
                config.compile,
                config.threads,
                config.deterministic,
                config.teacher_cache,
                config.graphs,
            ],
        }
    )


def group_plans(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Return groups in the order of their first run, each in the given order; a run of several cells occurs once."""
    groups: dict[str, list[Plan]] = {}
    seen: set[str] = set()
    for plan in plans:
        if str(plan.run.path) not in seen:
            seen.add(str(plan.run.path))
            groups.setdefault(group_key(plan), []).append(plan)
    return list(groups.values())


TEACHER_COST = 0.7  # of a teacher forward, in training steps of one student; roughly the middle of the zoo


def split_to_fill(groups: list[list[Plan]], slots: int) -> list[list[Plan]]:
    """Halve some groups, so that `slots` processes end at about the same time; return them, largest first.

    Each halving costs another teacher forward, which is less than an idle core: a group is halved as long as the
    slowest process would end sooner.
    """
    best = tried = sorted((list(group) for group in groups), key=len, reverse=True)
    for _ in range(2 * slots):
        if not tried or len(tried[0]) < 2:
            break
        half = (len(tried[0]) + 1) // 2
        tried = sorted([tried[0][:half], tried[0][half:], *tried[1:]], key=len, reverse=True)
        if longest(tried, slots) < longest(best, slots):
            best = tried
    return best


def longest(groups: list[list[Plan]], slots: int) -> float:
    """Return the work of the busiest process if each takes the largest group that is left."""
    busy = [0.0] * max(slots, 1)
    for group in groups:
        busy[busy.index(min(busy))] += len(group) + TEACHER_COST
    return max(busy)
