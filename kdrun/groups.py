"""Which runs of a sweep can be lanes of one process, on one stream of batches and one teacher forward. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from kdrun.assemble import Plan
from kdrun.identity import data_identity
from kdrun.runs import digest_of


def group_key(plan: Plan) -> str:
    """Equal for runs that see the same batches, ask the same teacher the same questions and end at the same time."""
    config, method = plan.config, plan.method
    teacher: str | None = plan.teacher_digest
    if method.trains_teacher:  # its peer is its own: nothing to share
        teacher = str(plan.run.path)
    return digest_of({
        "data": data_identity(config.dataset, plan.source.fingerprint()),
        "teacher": [teacher, config.teacher.preact_last_map] if method.needs_teacher else None,
        "view": config.teacher_view if method.needs_teacher else None,
        "length": [config.epochs, config.batch_size, config.seed],
        "evaluation": [config.eval_batch_size, config.eval_every],
        "numerics": [config.device, config.precision, config.compile, config.threads, config.deterministic],
    })  # fmt: skip


def group_plans(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Groups in the order of their first run, each in the given order; a run that several cells share comes once."""
    groups: dict[str, list[Plan]] = {}
    seen: set[str] = set()
    for plan in plans:
        if str(plan.run.path) not in seen:
            seen.add(str(plan.run.path))
            groups.setdefault(group_key(plan), []).append(plan)
    return list(groups.values())


def split_to_fill(groups: list[list[Plan]], slots: int) -> list[list[Plan]]:
    """At least as many groups as there are slots, where there are as many runs: the largest are halved. A teacher
    forward more costs less than an idle core. Largest first, so that the last ones to run are short."""
    groups = [list(group) for group in groups]
    while len(groups) < slots:
        largest = max(groups, key=len, default=[])
        if len(largest) < 2:
            break
        groups.remove(largest)
        half = (len(largest) + 1) // 2
        groups += [largest[:half], largest[half:]]
    return sorted(groups, key=len, reverse=True)
