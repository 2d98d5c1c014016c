"""Execution of a sweep's task by several processes of this machine, which train each of its runs together:
launcher.gpus_per_run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

from kdrun.data.processes import ShieldedContext, ignore_signals
from kdrun.display import Display, PlainDisplay
from kdrun.errors import Interrupted
from kdrun.sweeps.messages import Finished, Report, Task
from kdrun.training.launch import start
from kdrun.training.ranks import together
from kdrun.training.signals import stop_on_signals
from kdrun.training.threads import presence

Work = Callable[[Task, Report, Display], Finished]


def run_on_several(task: Task, report: Report, work: Work) -> Finished:
    """Start the processes, which do `work`; forward the reports of number 0, and a signal that ends them."""
    context = ShieldedContext()
    ours, theirs = context.Pipe(duplex=False)
    with stop_on_signals() as stop, stop.later():
        processes = start(task.processes, serve_one, theirs, replace(task, processes=1), work, context=context)
        theirs.close()
        finished: Finished | None = None
        try:
            while finished is None:
                if ours.poll(0.5):
                    message = ours.recv()
                    finished = message if isinstance(message, Finished) else report(message)
                elif stop.signal:  # repeatedly: a process that is still starting does not receive it yet
                    os.kill(processes[0].pid, signal.SIGTERM)
        except EOFError:
            pass
        for process in processes:
            process.join()
    if finished is not None:
        return finished
    raise RuntimeError(f"the {task.processes} processes of {task.label} ended without a result; see the log")


def serve_one(connection: Connection, task: Task, work: Work) -> None:
    """Run as one of the processes."""
    ignore_signals()  # until the task handles them
    try:
        with presence(), together() as here:
            display = PlainDisplay(sys.stdout if here.main else None, name_runs=True)
            finished = work(task, connection.send if here.main else lambda _: None, display)
            if here.main:
                connection.send(finished)
    except Interrupted as stopped:  # another process died: number 0 has reported it
        sys.exit(stopped.exit_code)
