"""One run from its configuration to its result: find or train the teacher, train the student, write the files."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun import console
from kdrun.assemble import Plan, load_data, make_job, make_loaders, make_network, make_plan, output_root
from kdrun.config import RunConfig, read_resolved, to_yaml
from kdrun.errors import KdrunError, RunError, one_line
from kdrun.methods.build import make_method
from kdrun.runs import RunDirectory, now, rebuild_results

if TYPE_CHECKING:
    from kdrun.engine import Lane, Network, Teacher
    from kdrun.job import Job, Loaders
    from kdrun.stop import Stop


def train(config: RunConfig, overrides: list[str]) -> dict[str, Any]:
    """One run to its result, or a finished one's result at once. Raises KdrunError in one line."""
    plan = make_plan(config, overrides)
    if plan.run.finished:
        result = plan.run.result()
        show_result("already done", plan, result)
        return result
    announce(plan)
    from kdrun.stop import stop_on_signals

    with plan.run.lock(), stop_on_signals() as stop:
        try:
            result = Training(plan, stop).train_student()
        except RunError as error:
            plan.run.fail(str(error))
            raise
        except KdrunError:
            raise
        except Exception as error:
            plan.run.fail(f"{one_line(error)}\n{traceback.format_exc()}")
            raise
    rebuild_results(output_root(config))
    show_result("done", plan, result)
    return result


PEER_SEED = 1_000_000  # a peer of the student's own architecture must not start as its copy


class Training:
    """One plan on its way to a result: numerics and data, then the teacher, then the student."""

    def __init__(self, plan: Plan, stop: Stop):
        from kdrun.numerics import pinned, resolve

        self.plan, self.config, self.stop = plan, plan.config, stop
        config, recorded = self.config, read_resolved(plan.run.path)
        if recorded is not None:
            self.numerics, note, self.undecided = pinned(recorded, config.device), "", False
        else:
            self.numerics, note, self.undecided = resolve(
                config.device, config.precision, config.compile, config.threads, config.deterministic
            )
        self.data = load_data(plan, console.track)
        for line in (*self.data.notes, note, *warnings(config)):
            if line:
                console.note(line)

    def train_student(self) -> dict[str, Any]:
        """Teacher first, then the student to its last epoch."""
        from kdrun.engine import Teacher, evaluate

        config, plan = self.config, self.plan
        taught, about = self.obtain_teacher() if plan.method.needs_teacher else (None, None)
        self.numerics.apply()
        student = make_network(config.student, self.data, config.seed, self.numerics, config.batch_size)
        method = make_method(config.method)
        loaders = make_loaders(self.data, config.batch_size, config.seed, config.teacher_view, self.numerics,
                               views=method.views)  # fmt: skip
        job = make_job(run=plan.run, digest=plan.digest, student=student, teacher=taught, method=method,
                       optimizer=config.optimizer, epochs=config.epochs, seed=config.seed, data=self.data,
                       loaders=loaders)  # fmt: skip
        teacher = job.lane.peer if job.lane.peer or taught is None else Teacher(taught)
        extra = 0 if method.deploys else method.extra_parameters()
        added = f", and {extra:,} more of {plan.method.name} in training only" if extra else ""
        console.say(f"[bold]student[/] {config.student.name}: {parameters_of(job.lane):,} parameters{added}")
        if method.note():
            console.note(method.note())
        if self.undecided:
            self.decide_compile(job, teacher, loaders, config.epochs)
        self.run_to_end(job, teacher, loaders, "student", about)
        if about is not None and taught is not None and job.lane.peer is not None:
            about["top1"] = evaluate(taught.tap.model, taught.tap.prepare, loaders.test, self.numerics)["top1"]
        result = self.result(job, about, extra)
        draw(plan.run, f"{plan.method.name}: {plan.teacher_name or 'no teacher'} → {config.student.name}, "
                       f"{config.dataset.name}, seed {config.seed}")  # fmt: skip
        plan.run.finish(result)
        return result

    def obtain_teacher(self) -> tuple[Network, dict[str, Any]]:
        """The teacher and what is known of it, its accuracy measured: from a checkpoint, as an untrained control, from
        the store, or trained into the store."""
        from kdrun.engine import evaluate
        from kdrun.models.weights import sha256_of
        from kdrun.teachers import describe, load_stored

        options, stored = self.config.teacher, self.plan.teacher_run
        if self.plan.method.trains_teacher:
            network = make_network(options, self.data, PEER_SEED + options.seed, self.numerics, self.config.batch_size)
            console.say(f"[bold]teacher[/] {options.name}: untrained, learns along with the student")
            return network, describe("learns along", options.name, None, None, options.checkpoint)
        if stored is not None and not stored.finished:
            self.rehearse()  # what cannot run must not cost a teacher's training first
            with stored.lock(wait=True):
                if not stored.finished:
                    self.train_teacher(stored)
        network = make_network(options, self.data, options.seed, self.numerics, self.config.batch_size)
        kind, place, sha256 = "untrained control", None, None
        if stored is not None:
            kind, place, sha256 = "trained", stored.path, load_stored(stored, network.tap.model, options.name)
        elif options.checkpoint is not None:
            place = Path(options.checkpoint).expanduser()
            kind, sha256 = "checkpoint", sha256_of(place)
        self.numerics.apply()
        loaders = make_loaders(self.data, self.config.batch_size, options.seed, "same", self.numerics)
        top1 = evaluate(network.tap.model, network.tap.prepare, loaders.test, self.numerics)["top1"]
        origin = f" from {console.short_path(place)}" if place else ""
        console.say(f"[bold]teacher[/] {options.name} ({kind}): [bold]{top1:.2f} %[/] top-1 on the test set{origin}")
        return network, describe(kind, options.name, top1, sha256, place)

    def rehearse(self) -> None:
        """One step of the method on untrained networks and two images of noise. Raises PairingError."""
        import torch

        from kdrun.batch import Batch, Progress
        from kdrun.engine import Teacher

        config, side = self.config, self.data.splits.image_size
        untrained = replace(config.teacher, checkpoint=None, pretrained="false")
        student = make_network(config.student, self.data, 0, self.numerics, config.batch_size)
        teacher = make_network(untrained, self.data, 1, self.numerics, config.batch_size)
        loaders = make_loaders(self.data, config.batch_size, 0, "same", self.numerics)
        job = make_job(run=self.plan.run, digest="", student=student, teacher=teacher,
                       method=make_method(config.method), optimizer=config.optimizer, epochs=1, seed=0,
                       data=self.data, loaders=loaders)  # fmt: skip
        device = self.numerics.torch_device
        image = torch.randn(2, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
        batch = Batch(image, torch.arange(2, device=device), torch.arange(2, device=device), image, image)
        job.lane.student.tap.train()
        with torch.no_grad():
            job.lane.method(batch, student, Teacher(teacher), Progress(0, 1, 0, 1, torch.Generator(device)))

    def train_teacher(self, run: RunDirectory) -> None:
        """By its own recipe, precision and seed, with the same loop and the labels alone."""
        from kdrun.methods.none import Independent
        from kdrun.numerics import pinned, resolve_precision
        from kdrun.teachers import record_weights

        options, recipe = self.config.teacher, self.config.teacher.recipe
        recorded = read_resolved(run.path)
        numerics = replace(self.numerics, precision=resolve_precision(options.precision, self.numerics.device))
        if recorded is not None:
            numerics = pinned(recorded, self.config.device)
        console.say(
            f"[bold]teacher[/] {options.name} is not trained yet: {recipe.epochs} epochs by its own recipe, once for "
            f"all runs, into {console.short_path(run.path)}"
        )
        numerics.apply()
        network = make_network(options, self.data, options.seed, numerics, recipe.batch_size)
        loaders = make_loaders(self.data, recipe.batch_size, options.seed, "same", numerics)
        job = make_job(run=run, digest=self.plan.teacher_digest or "", student=network, teacher=None,
                       method=Independent(), optimizer=recipe, epochs=recipe.epochs, seed=options.seed,
                       data=self.data, loaders=loaders)  # fmt: skip
        if self.undecided and recorded is None:
            self.decide_compile(job, None, loaders, recipe.epochs)
        self.run_to_end(job, None, loaders, "teacher", None)
        record_weights(run)
        draw(run, f"teacher {options.name} on {self.config.dataset.name}")
        run.finish(self.result(job, None, 0))

    def decide_compile(self, job: Job, teacher: Teacher | None, loaders: Loaders, epochs: int) -> None:
        """Settle `compile=auto` by a timed probe, for the networks of this job."""
        from kdrun.probe import choose_compile, switch

        compiled, note = choose_compile(job, teacher, loaders, epochs)
        switch([job.lane.student] + ([] if teacher is None else [teacher.network]), compiled)
        if note:
            console.note(note)

    def run_to_end(
        self, job: Job, teacher: Teacher | None, loaders: Loaders, what: str, about: dict[str, Any] | None
    ) -> None:
        """Resume or begin, and train to the last epoch. Raises RunError for a failed run, Interrupted for a signal."""
        from kdrun.fit import Failed, fit, keep_as_is, prepare
        from kdrun.provenance import provenance

        numerics, config = job.lane.student.numerics, self.config
        data = {"fingerprint": self.plan.source.fingerprint(), "train": loaders.train.num_samples,
                "test": loaders.test.num_samples, "mean": self.data.stats[0], "std": self.data.stats[1]}  # fmt: skip
        resumed = job.resume(loaders.train.steps_per_epoch)
        if resumed:
            console.note(f"resuming {what} after epoch {job.epoch}" + (f", step {job.step}" if job.step else ""))
        job.run.begin(to_yaml(config, numerics.as_dict()), provenance(numerics, data, about))
        preparation = job.lane.method.preparation()
        if preparation is not None and not resumed:
            title = f"preparing {self.plan.method.name}"
            console.note(f"{title}: {preparation.epochs} epochs before the first")
            with console.TrainingView(title, preparation.epochs, 0) as view:
                for step in prepare(job, preparation, teacher, loaders.train, self.stop):
                    view.show(step)
        epochs = job.lane.epochs
        if epochs == 0:
            keep_as_is(job, loaders)
        save_every = 60 * config.save_every_minutes
        with console.TrainingView(what, epochs, job.epoch + job.step / loaders.train.steps_per_epoch) as view:
            for event in fit([job], teacher, loaders, epochs=epochs, eval_every=config.eval_every,
                             save_every=save_every, stop=self.stop):  # fmt: skip
                if isinstance(event, Failed):
                    raise RunError(f"{what}: {event.reason}")
                view.show(event)

    def result(self, job: Job, teacher: dict[str, Any] | None, extra: int) -> dict[str, Any]:
        """The published keys of result.json, for a student or (job in the teachers' store) a teacher."""
        from kdrun.cost import count_flops, peak_memory

        config, lane, score = self.config, job.lane, job.score
        numerics, is_teacher = lane.student.numerics, job.run.role == "teacher"
        tap = lane.student.tap
        return {
            "schema": 1, "dataset": config.dataset.name,
            "teacher": None if is_teacher else self.plan.teacher_name,
            "student": config.teacher.name if is_teacher else config.student.name,
            "method": "none" if is_teacher else self.plan.method.name,
            "benchmark": config.benchmark, "seed": lane.seed, "digest": job.digest, "epochs": lane.epochs,
            "precision": numerics.precision, "compile": numerics.compile, "threads": numerics.threads,
            "device": numerics.device, "teacher_top1": teacher["top1"] if teacher else None,
            "top1_last": score.last["top1"], "top1_best": score.top1_best, "top1_best_epoch": score.top1_best_epoch,
            "top1_val_selected": score.top1_val_selected, "top5_last": score.last["top5"],
            "params": parameters_of(lane), "extra_params": extra,
            "flops": count_flops(lane.deployed, tap.input_size or tap.image_size),
            "images_per_second": job.images / max(job.train_seconds, 1e-9), "train_seconds": job.train_seconds,
            "peak_memory": peak_memory(numerics.torch_device), "finished_at": now(), "overrides": self.plan.overrides,
        }  # fmt: skip


def parameters_of(lane: Lane) -> int:
    """Of what is deployed: the student, and what its method keeps at inference."""
    return sum(parameter.numel() for parameter in lane.deployed.parameters())


def draw(run: RunDirectory, title: str) -> None:
    from kdrun.report.curves import draw_curves

    draw_curves(run, title)


def warnings(config: RunConfig) -> list[str]:
    """Settings that are legal and probably not meant."""
    found = []
    options = config.optimizer
    beyond = [milestone for milestone in options.milestones if milestone >= config.epochs]
    if options.schedule == "multistep" and beyond == options.milestones:
        found.append(
            f"note: the learning rate never drops: optimizer.milestones={options.milestones} lie beyond "
            f"epochs={config.epochs}. For short runs set optimizer.schedule=cosine or one_cycle."
        )
    return found


def announce(plan: Plan) -> None:
    """What is about to run, and where."""
    config = plan.config
    pair = f"{plan.teacher_name} → {config.student.name}" if plan.teacher_name else config.student.name
    console.say(
        f"[bold]{plan.method.name}[/]  {pair}  {config.dataset.name}  seed {config.seed}  {config.epochs} epochs  "
        f"[dim]{console.short_path(plan.run.path)}[/]"
    )


def show_result(how: str, plan: Plan, result: dict[str, Any]) -> None:
    """The last words of a run."""
    teacher = f", teacher {result['teacher_top1']:.2f} %" if result["teacher_top1"] is not None else ""
    selected = result["top1_val_selected"]
    val = f", validation-selected {selected:.2f} %" if selected is not None else ""
    best = f"best on test {result['top1_best']:.2f} % at epoch {result['top1_best_epoch']}{val}{teacher}"
    arithmetic = result["precision"] + (" compiled" if result["compile"] else "")
    console.say(
        f"[bold green]{how}[/]  {plan.method.name}  {result['student']}: [bold]{result['top1_last']:.2f} %[/] top-1 at "
        f"the last epoch ({best}), {result['images_per_second']:,.0f} images/s, {arithmetic}, "
        f"{console.duration(result['train_seconds'])} of training, peak memory {console.size(result['peak_memory'])}"
    )
    console.say(
        f"      {console.short_path(plan.run.path)}/  (result.json, metrics.csv, curves.png, student.safetensors)"
    )
