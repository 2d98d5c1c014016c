"""Forecast of the cost of runs: time, memory and disk of each, and the total clock time with the lanes launcher.
Importable without torch, which only measuring needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdrun.config.options import ModelOptions, OptimizerOptions
from kdrun.data.counts import counts_of
from kdrun.data.datasets import STREAMED
from kdrun.display import Track, untracked
from kdrun.runs.identity import digest_of
from kdrun.runs.plan import Plan, output_root
from kdrun.runs.recorded import flat
from kdrun.sweeps.grouping import group_plans, split_to_fill

if TYPE_CHECKING:
    from kdrun.training.costing import Costing, MethodCost, NetworkCost

# Measured on a server core: time for pictures and result.json at a run's end, size of files other than weights, and
# memory of a process that has imported PyTorch.
ENDING, SMALL_FILES, LIBRARIES = 1.0, 100_000, 450 * 2**20  # seconds, bytes, bytes


@dataclass(frozen=True)
class RunCost:
    """Cost of one run. epoch: seconds of an epoch on its own, including evaluation; seconds: of what is left of it;
    shared: part of those that lanes of one group spend only once; memory: of its process, of which `lane` bytes are
    the run's."""

    epoch: float
    seconds: float
    shared: float
    params: int
    flops: int
    extra: int
    memory: int
    lane: int
    disk: int


@dataclass(frozen=True)
class TeacherCost:
    """Cost of a teacher that is still to be trained."""

    name: str
    epochs: int
    params: int
    flops: int
    seconds: float
    disk: int


@dataclass
class Forecast:
    """Forecast of all runs. runs: the unfinished ones, by directory; teachers: by directory; seconds: clock time
    with `processes` processes of `threads` threads; slowdown: as in `Costing`."""

    runs: dict[str, RunCost] = field(default_factory=dict)
    teachers: dict[str, TeacherCost] = field(default_factory=dict)
    seconds: float = 0.0
    work: float = 0.0
    memory: int = 0
    disk: int = 0
    free: int = 0
    processes: int = 1
    threads: int = 1
    numerics: str = ""
    slowdown: float = 1.0
    streamed: bool = False


class Bench:
    """Bench that measures every network and every kind of method once. A method's cost on another pair is scaled in
    proportion to the networks' own cost."""

    def __init__(self, plans: Sequence[Plan], threads: int, track: Track):
        self.plans, self.threads, self.track = plans, threads, track
        self.counts = {key: counts_of(plan.source) for key, plan in self.by_data(plans).items()}
        self.costings: dict[str, Costing] = {}
        self.networks: dict[str, NetworkCost] = {}
        self.methods: dict[str, MethodCost] = {}
        self.ratios: dict[str, tuple[float, MethodCost]] = {}
        self.numerics = ""

    @staticmethod
    def data_key(plan: Plan) -> str:
        return repr((plan.config.dataset, plan.config.teacher_view, plan.config.precision, plan.config.device))

    def by_data(self, plans: Iterable[Plan]) -> dict[str, Plan]:
        return {self.data_key(plan): plan for plan in reversed(list(plans))}

    def measure(self) -> None:
        """Time the networks first, then each kind of method on the smallest of its pairs."""
        jobs = [*self.network_jobs().items()]
        for position in self.track(iter(range(len(jobs))), len(jobs), "measuring networks"):
            key, (plan, options, batch_size, optimizer, trains) = jobs[position]
            self.networks[key] = self.costing(plan).network(options, batch_size, optimizer, trains)
        smallest: dict[str, Plan] = {}
        for plan in sorted(self.plans, key=lambda plan: self.base(plan)):
            smallest.setdefault(method_kind(plan), plan)
        chosen = list(smallest.items())
        for position in self.track(iter(range(len(chosen))), len(chosen), "measuring methods"):
            kind, plan = chosen[position]
            flops = max(network.flops for network in self.networks_of(plan))
            found = self.costing(plan).method(plan.config, flops, plan.method.needs_teacher)
            self.ratios[kind] = found.step / max(self.base(plan), 1e-12), found
            self.methods[kind + pair_key(plan)] = found

    def network_jobs(self) -> dict[str, tuple[Plan, ModelOptions, int, OptimizerOptions, bool]]:
        jobs: dict[str, tuple[Plan, ModelOptions, int, OptimizerOptions, bool]] = {}
        for plan in self.plans:
            config = plan.config
            jobs[self.key(plan, "student")] = (plan, config.student, config.batch_size, config.optimizer, True)
            if plan.method.needs_teacher:
                key, trains = self.key(plan, "teacher"), plan.method.trains_teacher or needs_training(plan)
                trains = trains or (key in jobs and jobs[key][-1])
                jobs[key] = (plan, config.teacher, config.batch_size, config.teacher.recipe, trains)
        return jobs

    def key(self, plan: Plan, role: str) -> str:
        options = plan.config.student if role == "student" else plan.config.teacher
        return repr((self.data_key(plan), shape_of(options), plan.config.batch_size, role))

    def costing(self, plan: Plan) -> Costing:
        """Return the bench for a plan's images and numerics."""
        from kdrun.training.costing import Costing
        from kdrun.training.precision import resolve

        key, config = self.data_key(plan), plan.config
        if key not in self.costings:
            found = resolve(config.device, config.precision, "false", self.threads, config.deterministic)
            numerics = found.numerics
            self.numerics = f"{numerics.device}, {numerics.precision}"
            self.costings[key] = Costing(config, self.counts[key], plan.source.num_classes, numerics)
        self.costings[key].numerics.apply()
        return self.costings[key]

    def networks_of(self, plan: Plan) -> list[NetworkCost]:
        roles = ["student", "teacher"] if plan.method.needs_teacher else ["student"]
        return [self.networks[self.key(plan, role)] for role in roles]

    def base(self, plan: Plan) -> float:
        """Return the seconds per image of a plan's networks without its method."""
        student, *teacher = self.networks_of(plan)
        of_teacher = [cost.step if plan.method.trains_teacher else cost.forward for cost in teacher]
        return student.step + sum(of_teacher)

    def method(self, plan: Plan) -> tuple[float, MethodCost]:
        """Return (seconds of a step per image, the measurement behind it)."""
        ratio, nearest = self.ratios[method_kind(plan)]
        own = self.methods.get(method_kind(plan) + pair_key(plan))
        return (own.step, own) if own is not None else (ratio * self.base(plan), nearest)


def method_kind(plan: Plan) -> str:
    """Return the key of methods with equal cost: all settings except real numbers, which only weight and soften."""
    node = flat(plan.config.method)
    kept = {key: value for key, value in node.items() if not isinstance(value, float) and key != "_name_"}
    return digest_of([kept, plan.config.teacher_view, plan.config.optimizer.name])


def pair_key(plan: Plan) -> str:
    config = plan.config
    return repr((shape_of(config.student), plan.method.needs_teacher and shape_of(config.teacher), config.dataset))


def shape_of(options: ModelOptions) -> tuple[Any, ...]:
    """Return the options that determine a network's size."""
    return options.name, repr(options.kwargs), options.head, options.input_size, options.preact_last_map


def needs_training(plan: Plan) -> bool:
    return plan.teacher_run is not None and not plan.teacher_run.finished


def forecast(plans: Sequence[Plan], processes: int, threads: int, track: Track = untracked) -> Forecast:
    """Measure, and add up the cost of unfinished runs. processes: 0 means this process."""
    bench = Bench(plans, threads, track)
    bench.measure()
    found = Forecast(processes=max(processes, 1), threads=threads, numerics=bench.numerics)
    for plan in plans:
        if needs_training(plan):
            found.teachers.setdefault(str(plan.teacher_run and plan.teacher_run.path), teacher_cost(plan, bench))
        found.runs.setdefault(str(plan.run.path), run_cost(plan, bench))
    schedule(plans, found, bench)
    found.slowdown = max((costing.slowdown for costing in bench.costings.values()), default=1.0)
    found.streamed = any(not counts.in_memory for counts in bench.counts.values())
    found.disk = sum(counts.in_memory for counts in bench.counts.values()) + sum(
        cost.disk for cost in (*found.runs.values(), *found.teachers.values())
    )
    root = output_root(plans[0].config)
    found.free = shutil.disk_usage(next(place for place in (root, *root.parents) if place.exists())).free
    return found


def run_cost(plan: Plan, bench: Bench) -> RunCost:
    config, counts = plan.config, bench.counts[bench.data_key(plan)]
    student, *teacher = bench.networks_of(plan)
    step, found = bench.method(plan)
    shared = 0.0
    if teacher and not plan.method.trains_teacher:
        seen = 1 / config.epochs if sees_the_same(plan) else 1.0
        shared = teacher[0].forward * seen
        step = max(step - teacher[0].forward, 0.5 * student.step) + shared
    tested = (counts.test + counts.val) * student.forward * evaluations(config.epochs, config.eval_every)
    epochs = config.epochs * share_left(plan)
    prepared = found.preparation if share_left(plan) == 1 else 0
    # For a method measured on another pair, use the memory that it added there.
    kept, lane = max(found.kept, student.kept), max(found.lane, student.lane)
    taught = teacher[0].weights if teacher else 0
    memory = LIBRARIES + counts.in_memory + lane + taught + kept * config.batch_size
    return RunCost(
        epoch=counts.train * step + tested / config.epochs,
        seconds=counts.train * step * (epochs + prepared) + tested * share_left(plan) + ENDING + found.made,
        shared=counts.train * shared * epochs,
        params=student.params,
        flops=student.flops,
        extra=found.extra,
        memory=memory,
        lane=lane,
        disk=2 * max(found.weights, student.weights) + max(found.state, student.state) + SMALL_FILES,
    )


def teacher_cost(plan: Plan, bench: Bench) -> TeacherCost:
    options, recipe = plan.config.teacher, plan.config.teacher.recipe
    cost, counts = bench.networks[bench.key(plan, "teacher")], bench.counts[bench.data_key(plan)]
    tested = counts.test * cost.forward * evaluations(recipe.epochs, plan.config.eval_every)
    seconds = counts.train * cost.step * recipe.epochs + tested + ENDING
    disk = 2 * cost.weights + cost.state + SMALL_FILES
    return TeacherCost(options.name, recipe.epochs, cost.params, cost.flops, seconds, disk)


def evaluations(epochs: int, every: int) -> int:
    return -(-epochs // every) if epochs else 1


def sees_the_same(plan: Plan) -> bool:
    """Return True if the teacher's outputs are computed once for all epochs."""
    config = plan.config
    resident = config.dataset.name not in STREAMED
    return config.teacher_cache and resident and config.dataset.augment.same_for_teacher(config.teacher_view)


def share_left(plan: Plan) -> float:
    """Return the fraction of a run's epochs that is still to be trained."""
    rows = plan.run.read_metrics()
    return max(1 - rows[-1][0] / plan.config.epochs, 0.0) if rows and plan.config.epochs else 1.0


def schedule(plans: Sequence[Plan], found: Forecast, bench: Bench) -> None:
    """Assign tasks to processes as the scheduler does: teachers first, groups of lanes as soon as theirs is ready."""
    groups = split_to_fill(group_plans(list(plans)), found.processes)
    rehearsed = sum({method_kind(plan): bench.method(plan)[1].made for plan in plans}.values())
    busy = [rehearsed / found.processes] * found.processes
    ready: dict[str, float] = {}
    for path, teacher in found.teachers.items():
        slot = busy.index(min(busy))
        busy[slot] = ready[path] = busy[slot] + teacher.seconds
    peak = 0
    for group in groups:
        costs = [found.runs[str(plan.run.path)] for plan in group]
        once = max((cost.shared for cost in costs), default=0.0)
        spent = sum(cost.seconds - cost.shared for cost in costs) + once + measured_teacher(group[0], bench)
        slot = busy.index(min(busy))
        taught = group[0].teacher_run
        busy[slot] = max(busy[slot], ready.get(str(taught.path), 0.0) if taught else 0.0) + spent
        found.work += spent
        largest = max(costs, key=lambda cost: cost.memory)
        peak = max(peak, largest.memory - largest.lane + sum(cost.lane for cost in costs))
    found.work += sum(teacher.seconds for teacher in found.teachers.values())
    found.seconds, found.memory = max(busy), peak * found.processes


def measured_teacher(plan: Plan, bench: Bench) -> float:
    """Return the seconds in which a group evaluates its teacher on the test images."""
    networks, counts = bench.networks_of(plan), bench.counts[bench.data_key(plan)]
    return counts.test * networks[1].forward if len(networks) > 1 else 0.0
