"""One run, asked for by itself: announced, trained under its lock, and shown."""

from __future__ import annotations

import traceback
from typing import Any

from kdrun.config.schema import RunConfig
from kdrun.errors import KdrunError, RunError, reason_of
from kdrun.models.own_import import pinned
from kdrun.runs.directory import rebuild_results
from kdrun.training.build import make_plan, output_root
from kdrun.training.result import announce, show_result
from kdrun.training.session import Session, training_view
from kdrun.training.threads import presence


def train(config: RunConfig, overrides: list[str]) -> dict[str, Any]:
    """One run to its result, or a finished one's result at once. Raises KdrunError in one line."""
    plan = make_plan(config, overrides)
    if plan.run.finished:
        result = plan.run.result()
        show_result("already done", plan, result)
        return result
    announce(plan)
    from kdrun.training.signals import stop_on_signals

    outcome: list[dict[str, Any] | KdrunError] = []
    with presence(), plan.run.lock(), pinned(plan.code.files.values()), stop_on_signals() as stop:
        try:
            Session([plan], stop, training_view, lambda _, found: outcome.append(found)).run()
        except RunError as error:
            plan.run.fail(str(error))
            raise
        except KdrunError:
            raise
        except Exception as error:
            plan.run.fail(f"{reason_of(error)}\n{traceback.format_exc()}")
            raise
    result = outcome[0]
    if isinstance(result, KdrunError):
        raise result
    rebuild_results(output_root(config))
    show_result("done", plan, result)
    return result
