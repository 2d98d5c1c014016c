"""The lanes launcher: groups a sweep's runs into tasks, and assigns tasks to processes, one for each core or GPU."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from kdrun.data.processes import ShieldedContext
from kdrun.display import Display, plural
from kdrun.errors import RunError, listed
from kdrun.hardware import available_cores, environment
from kdrun.runs.plan import Plan
from kdrun.sweeps.grouping import group_plans, split_to_fill
from kdrun.sweeps.messages import Begun, Ended, Finished, Message, ShowMessage, Task
from kdrun.sweeps.worker import end, run_task, serve
from kdrun.training.signals import Stop, stop_on_signals


@dataclass
class Slot:
    """Slot of one process: a share of the CPU's cores, or a GPU."""

    number: int
    environment: dict[str, str]
    process: Any = None
    connection: Any = None  # a multiprocessing connection
    task: Task | None = None


CONTEXT = ShieldedContext()
HERE = Slot(0, {})  # this process itself


@dataclass
class Outcome:
    """Outcome of a sweep's runs, by directory."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    stopped: str = ""
    disk_full: bool = False


def gpu_numbers() -> list[str]:
    """Return the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [word.strip() for word in visible.split(",") if word.strip() not in ("", "-1")]
    found = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted((name for name in found if name.isdigit()), key=int)


def make_slots(plans: list[Plan], requested: str, most: int, per_run: int = 1) -> list[Slot]:
    """Return the slots for `launcher.processes` (auto or a number), at most `most`.

    auto: one process per GPU, or per core if no run requests a GPU. per_run: GPUs, or shares of the cores, of each.
    """
    cores = available_cores()
    gpus = [] if all(plan.config.device == "cpu" for plan in plans) else gpu_numbers()
    threads = max((plan.config.threads or 1 for plan in plans), default=1)
    count = int(requested) if requested != "auto" else max((len(gpus) or cores // threads) // per_run, 1)
    count = min(count, max(most, 1)) if count else 0
    share = max(cores // max(count * per_run, 1), 1)
    slots = []
    for number in range(count):
        # PyTorch reads this at start-up: `threads=null` then means this process's share of the cores.
        environment = {"OMP_NUM_THREADS": str(share)}
        if gpus and {plan.config.device for plan in plans} <= {"auto", "cuda"}:
            first = number * per_run
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                dict.fromkeys(gpus[(first + place) % len(gpus)] for place in range(per_run))
            )
        slots.append(Slot(number, environment))
    return slots


def fresh(plan: Plan) -> bool:
    """Return True if the run has never been started. A started run needs no dry run: it either passed one, or
    recorded why it cannot train."""
    return not plan.run.begun


class Scheduler:
    """Scheduler: dry runs first, then teachers and students, each group as soon as its teacher is ready."""

    def __init__(
        self, plans: list[Plan], processes: str, logs: Path, show: ShowMessage, display: Display, per_run: int = 1
    ):
        """Set up the slots. per_run: processes that train each run together."""
        self.per_run = per_run
        self.show, self.display, self.logs, self.outcome = show, display, logs, Outcome()
        self.groups = group_plans(plans)
        self.slots = make_slots(plans, processes, sum(len(group) for group in self.groups), per_run)
        self.pending: list[Task] = []
        self.teacher_failures: dict[str, str] = {}
        self.twins: dict[str, list[Plan]] = {}
        self.stop = Stop()

    def run(self) -> Outcome:
        """Run everything. A signal or a full disk ends it with everything saved."""
        with stop_on_signals() as self.stop, self.stop.later():
            try:
                self.work(self.rehearsals())
                kept = [
                    [plan for plan in group if str(plan.run.path) not in self.outcome.failures] for group in self.groups
                ]
                groups = split_to_fill([group for group in kept if group], len(self.slots))
                share = 0.5 / (max(len(self.slots), 1) * self.per_run)
                lanes = [Task("lanes", group, label_of(group), share, processes=self.per_run) for group in groups]
                self.work(self.teachers(groups) + lanes)
            finally:
                self.shut_down()
        if self.stop.signal and not self.outcome.disk_full:  # the processes report the forwarded signal
            self.outcome.stopped = f"stopped by {self.stop.signal}; saved."
        return self.outcome

    @property
    def ending(self) -> bool:
        """Return True if no new task may start."""
        return bool(self.stop.signal or self.outcome.stopped)

    def rehearsals(self) -> list[Task]:
        """Return dry runs of every distinct (teacher, student, method) among the runs that never started, spread
        over the slots."""
        distinct: dict[str, list[Plan]] = {}
        for plan in (plan for group in self.groups for plan in group if fresh(plan)):
            distinct.setdefault(pairing_of(plan), []).append(plan)
        self.twins = {str(plans[0].run.path): plans[1:] for plans in distinct.values()}
        by_data: dict[str, list[Plan]] = {}
        for plans in distinct.values():
            by_data.setdefault(repr(plans[0].config.dataset), []).append(plans[0])
        shares = split_to_fill(list(by_data.values()), len(self.slots))
        return [Task("rehearse", share, f"checking {plural(len(share), 'pairing')}") for share in shares]

    def teachers(self, groups: list[list[Plan]]) -> list[Task]:
        """Return one task for each teacher that is not yet in the store."""
        missing: dict[str, Plan] = {}
        for plan in (group[0] for group in groups):
            if plan.teacher_run is not None and not plan.teacher_run.finished:
                missing.setdefault(str(plan.teacher_run.path), plan)
        return [
            Task("teacher", [plan], f"teacher {plan.config.teacher.name}", processes=self.per_run)
            for plan in missing.values()
        ]

    def work(self, tasks: list[Task]) -> None:
        """Assign tasks to free slots until none is left."""
        self.pending = list(tasks)
        while self.pending or any(slot.task for slot in self.slots):
            self.give_out()
            for slot in self.listen():
                slot.task = None

    def teachers_due(self) -> set[str]:
        """Return the teachers that are still to be trained."""
        tasks = [*self.pending, *(slot.task for slot in self.slots if slot.task is not None)]
        return {teacher_of(task) for task in tasks if task.kind == "teacher"}

    def give_out(self) -> None:
        """Assign ready tasks to free slots, or run them here if there are no slots."""
        due = self.teachers_due()
        for task in list(self.pending):
            if self.ending:
                self.pending = []
                return
            teacher = teacher_of(task)
            if task.kind == "lanes" and teacher in due:
                continue
            slot = next((slot for slot in self.slots if slot.task is None), None)
            if self.slots and slot is None:
                return
            self.pending.remove(task)
            if task.kind == "lanes" and teacher in self.teacher_failures:
                for plan in task.plans:
                    reason = f"its teacher {plan.config.teacher.name} failed: {self.teacher_failures[teacher]}"
                    end(plan, reason, lambda report, task=task: self.take(HERE, task, report))
            elif slot is None:
                self.take(
                    HERE, task, run_task(task, lambda report, task=task: self.take(HERE, task, report), self.display)
                )
                due.discard(teacher)
            else:
                self.start(slot)
                slot.task = task
                assert slot.connection is not None
                slot.connection.send(task)
                self.show(slot.number, task, Begun())

    def start(self, slot: Slot) -> None:
        """Start a process for this slot, unless it has one."""
        if slot.process is not None and slot.process.is_alive():
            return
        slot.connection, theirs = CONTEXT.Pipe()
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"process-{slot.number}.log"
        with environment(slot.environment):
            slot.process = CONTEXT.Process(target=serve, args=(theirs, str(log)), daemon=True)
            slot.process.start()
        theirs.close()

    def listen(self) -> list[Slot]:
        """Receive reports from the processes, for at most half a second; return the slots whose task is over."""
        busy: dict[Any, Slot] = {slot.connection: slot for slot in self.slots if slot.task is not None}
        if not busy:
            return []
        free = []
        for connection in wait(list(busy), timeout=0.5):
            slot = busy[connection]
            assert slot.connection is not None and slot.task is not None
            try:
                report = slot.connection.recv()
            except (EOFError, ConnectionResetError):
                self.handle_dead_worker(slot)
                free.append(slot)
                continue
            self.take(slot, slot.task, report)
            if isinstance(report, Finished):
                free.append(slot)
        if self.ending:
            # Repeatedly: a process that is still starting does not receive it yet.
            for slot in self.slots:
                if slot.task is not None and slot.process is not None and slot.process.is_alive():
                    os.kill(slot.process.pid, signal.SIGTERM)
        return free

    def take(self, slot: Slot, task: Task, report: Message) -> None:
        """Record a report, and show it."""
        if isinstance(report, Ended):
            if task.kind == "teacher":
                self.teacher_failures[teacher_of(task)] = report.reason
            elif report.result is not None:
                self.outcome.results[report.run] = report.result
            elif report.elsewhere:
                self.outcome.elsewhere.add(report.run)
            else:
                self.outcome.failures[report.run] = report.reason
                for twin in self.twins.get(report.run, []) if task.kind == "rehearse" else []:
                    self.outcome.failures[str(twin.run.path)] = report.reason
                    with suppress(RunError):
                        twin.run.fail(report.reason)
        elif isinstance(report, Finished) and report.stopped and not self.outcome.disk_full:
            # After a full disk, the other processes stop only because they are asked to.
            self.outcome.stopped, self.outcome.disk_full = report.stopped, report.disk_full
        self.show(slot.number, task, report)

    def handle_dead_worker(self, slot: Slot) -> None:
        """Handle the death of a process: its work is retried once, from its checkpoints. If the system killed a
        process with several lanes, these are split into two halves, since memory may have been short."""
        assert slot.task is not None
        slot.process.join()
        code, task = slot.process.exitcode, slot.task
        unfinished = [
            plan for plan in task.plans if not plan.run.finished and str(plan.run.path) not in self.outcome.failures
        ]
        if self.stop.signal or not unfinished:
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL and task.kind == "lanes" and len(unfinished) > 1:
            half = len(unfinished) // 2
            again = [
                replace(task, plans=part, label=label_of(part), memory_share=task.memory_share / 2)
                for part in (unfinished[:half], unfinished[half:])
            ]
        else:
            again = [] if task.again else [replace(task, plans=unfinished, again=True)]
        if again:
            self.pending += again
            self.display.note(f"{task.label}: its process ended with {how}; resuming from its last checkpoint")
            return
        reason = f"its process ended with {how}; see the end of {self.logs}/process-{slot.number}.log."
        for plan in unfinished:
            end(plan, reason, lambda report: self.take(slot, task, report), record=task.kind == "lanes")

    def shut_down(self) -> None:
        """Shut down the processes. One that still has a task is terminated; its runs can be resumed."""
        for slot in self.slots:
            if slot.process is None or slot.connection is None:
                continue
            if slot.task is None and slot.process.is_alive():
                try:
                    slot.connection.send(None)
                    slot.process.join(timeout=5)
                except (BrokenPipeError, OSError):
                    pass
            if slot.process.is_alive():
                slot.process.terminate()
                slot.process.join(timeout=5)
            if slot.process.is_alive():
                slot.process.kill()


def teacher_of(task: Task) -> str:
    """Return the directory of the stored teacher that a task's runs need, or an empty string."""
    run = task.plans[0].teacher_run
    return "" if run is None else str(run.path)


def pairing_of(plan: Plan) -> str:
    """Return a key that is equal for runs of which one dry run shows whether all can train."""
    config = plan.config
    return repr((config.dataset, config.teacher, config.student, config.method, config.optimizer.ema_decay))


def label_of(plans: list[Plan]) -> str:
    """Return a group's name for the screen."""
    config, names = plans[0].config, [plan.method.name for plan in plans]
    pairs = {
        f"{plan.teacher_name} → {plan.config.student.name}" if plan.teacher_name else plan.config.student.name
        for plan in plans
    }
    what = pairs.pop() if len(pairs) == 1 else f"{len(pairs)} pairs"
    return f"{what} seed {config.seed}: {listed(names, 4)}"
