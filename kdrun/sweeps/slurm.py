"""The SLURM launcher: every group of lanes is a job of its own (through submitit), which saves and requeues itself."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kdrun.display import Display, PlainDisplay, plural
from kdrun.errors import ConfigError, one_line
from kdrun.runs.directory import short_path
from kdrun.runs.plan import Plan
from kdrun.sweeps.grouping import group_plans
from kdrun.sweeps.messages import Task
from kdrun.sweeps.scheduler import label_of, teacher_of
from kdrun.sweeps.worker import run_task
from kdrun.training.ranks import together

CLUSTERS = {"slurm": "slurm", "submitit_local": "local"}


class Submission:
    """Content of a job. Before its time runs out (or on preemption) it receives a signal, saves between two steps,
    and lets submitit requeue the same job, which then resumes bit for bit."""

    def __init__(self, task: Task):
        self.task = task

    def __call__(self) -> int:
        from submitit.core.job_environment import JobEnvironment

        number = JobEnvironment._usr_sig()
        requeue = signal.getsignal(number)  # submitit's own handler, which run_task's replaces while it trains
        export_ranks()
        with together() as here:
            display = PlainDisplay(sys.stdout if here.main else None, name_runs=True)
            finished = run_task(self.task, lambda message: print(message, flush=True) if here.main else None, display)
        if finished.stopped and not finished.disk_full and here.main:  # submitit lets the first task alone requeue
            signal.signal(number, requeue)
            os.kill(os.getpid(), number)
            time.sleep(60)  # the handler ends this process
        return sum(plan.run.finished for plan in self.task.plans)

    def checkpoint(self) -> Any:
        """Return the same work again: finished parts are skipped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def export_ranks() -> None:
    """Set torchrun's environment variables for the job's processes. A single process gets none."""
    from submitit.core.job_environment import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"


def per_node(settings: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """Return the settings with `gpus_per_run` translated for SLURM: one process for each GPU, evenly over the nodes.
    Raises ConfigError if they cannot be divided evenly."""
    count, nodes = settings.pop("gpus_per_run", 1), settings.get("nodes", 1)
    if count == 1:
        return settings
    if count % nodes:
        raise ConfigError(f"launcher.gpus_per_run={count}: cannot be spread evenly over launcher.nodes={nodes}.")
    found = {"tasks_per_node": count // nodes, **({} if on_cpu else {"gpus_per_node": count // nodes})}
    return {**settings, "nodes": nodes, **found}


def submit(
    name: str, plans: list[Plan], root: Path, cluster: str, settings: dict[str, str], display: Display
) -> list[str]:
    """Submit every group, dependent on its teacher's job, and return the jobs' ids. Raises ConfigError without
    submitit."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(f"launcher={cluster} needs submitit: pip install 'kdrun[slurm]'.") from error
    folder = root / "sweeps" / name / "jobs"
    values = {key: int(value) if value.lstrip("-").isdigit() else value for key, value in settings.items()}
    values = per_node(values, all(plan.config.device == "cpu" for plan in plans))
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=CLUSTERS[cluster])
        executor.update_parameters(name=f"kdrun-{name}", **values)
    except (NameError, RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"launcher={cluster}: {one_line(error)}") from error
    groups = group_plans(plans)
    teachers: dict[str, str] = {}
    jobs = []
    for group in groups:
        task = Task("lanes", group, label_of(group))
        run = group[0].teacher_run
        if run is not None and not run.finished and teacher_of(task) not in teachers:
            job = executor.submit(Submission(Task("teacher", group[:1], f"teacher {group[0].config.teacher.name}")))
            teachers[teacher_of(task)] = job.job_id
            jobs.append(job.job_id)
        if cluster == "slurm" and teacher_of(task) in teachers:  # locally the teacher's lock makes the others wait
            executor.update_parameters(
                slurm_additional_parameters={"dependency": f"afterany:{teachers[teacher_of(task)]}"}
            )
        job = executor.submit(Submission(task))
        jobs.append(job.job_id)
        if cluster == "slurm":
            executor.update_parameters(slurm_additional_parameters={})
    listed = ", ".join(jobs[:8]) + (" …" if len(jobs) > 8 else "")
    display.fact(
        plural(len(jobs), "job"), f"for {plural(len(groups), 'group')} of lanes: {listed}  {short_path(folder)}"
    )
    display.fact("progress:", f"kdrun status {name}")
    return jobs
