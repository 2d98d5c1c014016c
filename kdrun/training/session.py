"""Training sessions: obtain the teacher, train the students, write the results.

A single run is a session with one lane; runs that share data, teacher, length and numerics are lanes of one session.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kdrun.config.own_code import located
from kdrun.display import Display, EpochEnd, Step, plural
from kdrun.errors import CheckpointError, DiskFull, KdrunError, RunError, listed
from kdrun.files import sha256_of
from kdrun.methods.base import Method
from kdrun.methods.factory import make_method
from kdrun.methods.none import Independent
from kdrun.models.own_import import unfollowed
from kdrun.runs.checkpoints import weights_file
from kdrun.runs.directory import RunDirectory, short_path
from kdrun.runs.identity import CONTROL
from kdrun.runs.plan import Plan
from kdrun.runs.recorded import read_resolved
from kdrun.streams import Streams
from kdrun.training import ranks
from kdrun.training.build import data_spec, load_data, make_lane, make_loaders, make_network
from kdrun.training.checkpoint import save_weights
from kdrun.training.control import measure_norms
from kdrun.training.cost import forget_peak, free_memory
from kdrun.training.loggers import check_loggers, log
from kdrun.training.loop import evaluate
from kdrun.training.network import Network
from kdrun.training.precision import Resolved, on_own_device, pinned, resolve, resolve_precision
from kdrun.training.rehearsal import rehearse
from kdrun.training.result import open_loggers, parameters_of, result_of, warnings
from kdrun.training.run_curves import GrowingCurves, draw
from kdrun.training.setup import begin, decide_compile, keep_outputs, shares_in_words
from kdrun.training.signals import Stop
from kdrun.training.teacher import Teacher
from kdrun.training.teacher_store import check_loaded, describe, load_stored, record_weights
from kdrun.training.threads import claim
from kdrun.training.trainer import Failed, Remark, fit, store_pretrained
from kdrun.training.training_run import Loaders, TrainingRun

Ended = Callable[[Plan, dict[str, Any] | KdrunError], None]


class Session:
    """Session of plans that share data, teacher, length and requested numerics.

    `ended(plan, outcome)` is called once per plan, as soon as its result or error has been written to its directory.
    Errors that end all plans are raised instead; the caller must record them.
    """

    def __init__(self, plans: list[Plan], stop: Stop, display: Display, ended: Ended, memory_share: float = 0.5):
        """Set up numerics and data. memory_share: fraction of the free memory for the lanes' own memory; the rest is
        for one step's activations."""
        self.plans, self.stop, self.display, self.ended = plans, stop, display, ended
        self.memory_share, self.left = memory_share, []
        self.told: set[str] = set()
        self.plan, self.config = plans[0], plans[0].config
        config = self.config
        check_loggers(config.logger)
        settled = ranks.now.from_main(self.settle)
        self.numerics, self.undecided = on_own_device(settled.numerics, config.device), settled.undecided
        claim(self.numerics.threads)
        for line in settled.notes:
            self.display.note(line)
        with ranks.now.main_first():
            self.data = load_data(self.plan, display.track, fill_cache=True)
        self.display.fact(*self.data.overview)
        for line in (*(f"note: {line}" for line in self.data.notes), *warnings(config, self.data.splits)):
            self.display.note(line)

    def settle(self) -> Resolved:
        """Return the numerics to which a started run is pinned, or the best ones on this machine."""
        config = self.config
        recorded = next((found for plan in self.plans if (found := read_resolved(plan.run.path)) is not None), None)
        if recorded is not None:
            return Resolved(pinned(recorded, config.device), [], False)
        return resolve(
            config.device, config.precision, config.compile, config.threads, config.deterministic, config.graphs
        )

    def run(self) -> None:
        """Obtain the teacher, then train the students to their last epoch."""
        taught, about = self.obtain_teacher() if self.plan.method.needs_teacher else (None, None)
        self.numerics.apply()
        trainings, loaders = self.make_students(taught, about)
        if not trainings:
            return
        if names := unfollowed():
            self.display.note(f"note: no import statement names {listed(names)}, so changes there will not be noticed")
        frozen = None if taught is None or self.plan.method.trains_teacher else Teacher(taught)
        if frozen is not None:
            keep_outputs(frozen, trainings, loaders, self.config, self.display)
        teacher = trainings[0].lane.peer or frozen
        if self.undecided:
            decide_compile(trainings, teacher, loaders, self.display)
        for training, error in self.run_to_end(trainings, teacher, loaders, "student"):
            if error is not None:
                self.ended(training.plan, error)
                continue
            if about is not None and taught is not None and training.lane.peer is not None:
                about["top1"] = evaluate(taught.tap.model, taught.tap.prepare, loaders.test, self.numerics)["top1"]
            self.finish(training)

    def finish(self, training: TrainingRun) -> None:
        """Draw the curves, then write result.json, whose presence marks the run as finished."""
        result = result_of(training)
        draw(training)
        training.run.finish(result)
        self.ended(training.plan, result.as_dict())

    def make_students(self, taught: Network | None, about: dict[str, Any] | None) -> tuple[list[TrainingRun], Loaders]:
        """Create every plan's lane, on loaders with the views of all their methods. A plan that cannot be created
        ends; those that do not fit into memory stay in `left`."""
        methods: list[tuple[Plan, Method]] = []
        for plan in self.plans:
            with self.ending(plan):
                methods.append((plan, make_method(plan.config.method)))
        views = tuple(dict.fromkeys(view for _, method in methods for view in method.views))
        config, streams = self.config, Streams("student", self.config.seed)
        loaders = make_loaders(self.data, config.batch_size, streams, config.teacher_view, self.numerics, views=views)
        spec = data_spec(self.data, loaders.train)
        trainings: list[TrainingRun] = []
        room = self.memory_share * ranks.now.from_main(lambda: free_memory(self.numerics.torch_device))
        for position, (plan, method) in enumerate(methods):
            if trainings and sum(training.lane.memory() for training in trainings) > room:
                self.left = [plan for plan, _ in methods[position:]]
                self.display.note(f"memory holds {plural(position, 'lane')} at once; {len(self.left)} more follow")
                break
            with self.ending(plan):
                network = make_network(plan.config.student, self.data, streams, self.numerics, config.batch_size)
                self.tell(network, trains=True)
                lane = make_lane(
                    student=network,
                    teacher=taught,
                    method=method,
                    optimizer=plan.config.optimizer,
                    epochs=plan.config.epochs,
                    streams=streams,
                    spec=spec,
                    sync_norm=config.sync_bn,
                )
                self.say_once(shares_in_words(lane, config))
                extra = 0 if method.deploys else method.extra_parameters()
                added = f", and {extra:,} more of {plan.method.name} in training only" if extra else ""
                self.display.fact("student", f"{plan.config.student.name}: {parameters_of(lane):,} parameters{added}")
                if method.note():
                    self.display.note(method.note())
                trainings.append(TrainingRun(plan, plan.run, plan.digest, lane, extra, about))
        return trainings, loaders

    @contextmanager
    def ending(self, plan: Plan) -> Iterator[None]:
        """End only this plan on an error, if there are others. Raises errors that end all of them."""
        try:
            yield
        except Exception as error:
            if len(self.plans) == 1 or ranks.now.size > 1 or isinstance(error, DiskFull):
                raise
            ours = isinstance(error, KdrunError)
            plan.run.fail(str(error) if ours else f"{located(error)}\n{traceback.format_exc()}")
            self.ended(plan, error if ours else RunError(located(error)))

    def obtain_teacher(self) -> tuple[Network, dict[str, Any]]:
        """Return the teacher and its description, with measured accuracy: from a checkpoint, as an untrained
        control, from the store, or trained into the store."""
        options, stored = self.config.teacher, self.plan.teacher_run
        if self.plan.method.trains_teacher:
            network = make_network(
                options, self.data, Streams("peer", options.seed), self.numerics, self.config.batch_size
            )
            self.tell(network, trains=True)
            self.display.fact("teacher", f"{options.name}: untrained, trained together with the student")
            return network, describe("learns along", options.name, None, None, options.checkpoint)
        if stored is not None and ranks.now.from_main(lambda: not stored.finished):
            self.rehearse()  # find what cannot run before training a teacher
            with stored.lock(lambda who: self.display.note(f"waiting for {who} to train {short_path(stored.path)}")):
                if ranks.now.from_main(lambda: not stored.finished):
                    self.train_teacher(stored)
            ranks.now.most(0)  # wait until its weights are written
        streams = Streams("teacher", options.seed)
        network = make_network(options, self.data, streams, self.numerics, self.config.batch_size)
        self.tell(network, trains=False)
        self.numerics.apply()
        kind, place, sha256 = "pretrained" if options.pretrained != "false" else CONTROL, None, None
        if stored is not None:
            kind, place, sha256 = "trained", stored.path, load_stored(stored, network.tap.model, options.name)
        elif options.checkpoint is not None:
            place = weights_file(options.checkpoint, "teacher.checkpoint")
            kind, sha256 = "checkpoint", sha256_of(place)
        elif kind == CONTROL:
            measure_norms(network, self.data, options.seed)
        loaders = make_loaders(self.data, self.config.batch_size, streams, "same", self.numerics)
        top1 = evaluate(network.tap.model, network.tap.prepare, loaders.test, self.numerics)["top1"]
        origin = f" from {short_path(place)}" if place else ""
        self.display.fact("teacher", f"{options.name} ({kind}): {top1:.2f} % top-1 on the test set{origin}")
        return network, describe(kind, options.name, top1, sha256, place)

    def tell(self, network: Network, trains: bool) -> None:
        """Print the notes on a network, each line only once."""
        traits = network.tap.traits
        for line in [*traits.notes, *(traits.training_notes if trains else [])]:
            self.say_once(line)

    def say_once(self, line: str) -> None:
        if line and line not in self.told:
            self.told.add(line)
            self.display.note(line)

    def rehearse(self, plan: Plan | None = None) -> None:
        """Try one step of the method. Raises PairingError or ConfigError."""
        rehearse(plan or self.plan, self.data, self.numerics)

    def train_teacher(self, run: RunDirectory) -> None:
        """Train the teacher by its own recipe, precision and seed, with the same loop, on the labels alone."""
        options, recipe = self.config.teacher, self.config.teacher.recipe
        recorded = ranks.now.from_main(lambda: read_resolved(run.path))
        numerics = replace(self.numerics, precision=resolve_precision(options.precision, self.numerics.device))
        if recorded is not None:
            numerics = pinned(recorded, self.config.device)
        self.display.fact(
            "teacher",
            f"{options.name} is not trained yet: {plural(recipe.epochs, 'epoch')} by its own recipe, "
            f"once for all runs, into {short_path(run.path)}",
        )
        numerics.apply()
        streams = Streams("teacher", options.seed)
        network = make_network(options, self.data, streams, numerics, recipe.batch_size)
        if recipe.epochs == 0:
            again = make_network(options, self.data, Streams("peer", options.seed), numerics, recipe.batch_size)
            check_loaded(network.tap.model, again.tap.model, self.data.splits.num_classes)
        self.tell(network, trains=True)
        loaders = make_loaders(self.data.for_teacher(), recipe.batch_size, streams, "same", numerics)
        lane = make_lane(
            student=network,
            teacher=None,
            method=Independent(),
            optimizer=recipe,
            epochs=recipe.epochs,
            streams=streams,
            spec=data_spec(self.data, loaders.train),
            sync_norm=numerics.torch_device.type == "cuda",  # the store holds what one process would train
        )
        training = TrainingRun(self.plan, run, self.plan.teacher_digest or "", lane)
        if self.undecided and recorded is None:
            decide_compile([training], None, loaders, self.display)
        for _, error in self.run_to_end([training], None, loaders, "teacher"):
            if error is not None:
                raise error
        record_weights(run)
        draw(training)
        run.finish(result_of(training))

    def begin_all(
        self, trainings: list[TrainingRun], teacher: Teacher | None, loaders: Loaders, what: str
    ) -> Generator[tuple[TrainingRun, KdrunError | None], None, list[TrainingRun]]:
        """Resume or start each run; yield those that need no training or cannot start, and return the others."""
        waiting: list[TrainingRun] = []
        for training in trainings:
            try:
                begin(training, teacher, loaders, what, data=self.data, display=self.display, stop=self.stop)
                store_pretrained(training, loaders)
            except (RunError, CheckpointError) as error:  # a damaged last.pt affects only this lane
                if isinstance(error, DiskFull) or ranks.now.size > 1:
                    raise
                training.run.fail(str(error))
                yield training, error
                continue
            if training.epoch == training.lane.epochs:
                save_weights(training.run.weights_path, training.lane.evaluated.state_dict())  # missing or damaged
                yield training, None
            else:
                waiting.append(training)
        return waiting

    def run_to_end(
        self, trainings: list[TrainingRun], teacher: Teacher | None, loaders: Loaders, what: str
    ) -> Iterator[tuple[TrainingRun, KdrunError | None]]:
        """Resume or start the runs, and train to the last epoch; yield each run as it ends, with its error if it
        failed.

        Raises Interrupted for a signal, DiskFull if no run can continue.
        """
        epochs, steps = trainings[0].lane.epochs, loaders.train.steps_per_epoch
        forget_peak(self.numerics.torch_device)  # the teacher's training had its own
        waiting = yield from self.begin_all(trainings, teacher, loaders, what)
        if not waiting:
            return
        first = min(training.epoch + training.step / steps for training in waiting)
        growing = GrowingCurves()
        with open_loggers(waiting) as loggers, self.display.training(what, epochs, first) as show, self.stop.later():
            for event in fit(
                waiting,
                teacher,
                loaders,
                epochs=epochs,
                eval_every=self.config.eval_every,
                save_every=60 * self.config.save_every_minutes,
                stop=self.stop,
            ):
                if isinstance(event, Step):
                    show(event)
                elif isinstance(event, Remark):
                    self.display.note(event.text)
                elif isinstance(event, Failed):
                    yield event.training, RunError(f"{what}: {event.reason}")
                else:
                    run, best = event.training.run.path, event.training.score.top1_best
                    show(EpochEnd(run, event.epoch, event.metrics, best))
                    log(loggers[run], event.epoch, event.metrics)
                    growing.after(event.training)
                    if event.epoch == epochs:
                        yield event.training, None
