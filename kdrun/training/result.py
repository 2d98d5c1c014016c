"""What a run says of itself: its result, its announcement, its last words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kdrun import console
from kdrun.config.schema import RunConfig
from kdrun.runs.code_record import Siblings
from kdrun.runs.directory import RunDirectory, now, short_path
from kdrun.training.build import Plan

if TYPE_CHECKING:
    from kdrun.training.loggers import Logger
    from kdrun.training.loop import Lane
    from kdrun.training.training_run import Job


@dataclass
class Student:
    """One lane of a session, and what its result says beside its scores."""

    plan: Plan
    job: Job
    extra: int
    about: dict[str, Any] | None = None


def loggers_of(student: Student) -> list[Logger]:
    from kdrun.training.loggers import make_loggers

    job, config = student.job, student.plan.config
    return make_loggers(config.logger, job.run.path, asdict(config), job.digest, job.epoch)


def result_of(student: Student) -> dict[str, Any]:
    """The published keys of result.json, for a student or (job in the teachers' store) a teacher."""
    from kdrun.training.flops import count_flops, peak_memory

    plan, job, teacher = student.plan, student.job, student.about
    config, lane, score = plan.config, job.lane, job.score
    numerics, is_teacher = lane.student.numerics, job.run.role == "teacher"
    tap = lane.student.tap
    return {
        "schema": 1, "dataset": config.dataset.name,
        "teacher": None if is_teacher else plan.teacher_name,
        "student": config.teacher.name if is_teacher else config.student.name,
        "method": "none" if is_teacher else plan.method.name,
        "benchmark": config.benchmark, "seed": lane.streams.seed, "digest": job.digest, "epochs": lane.epochs,
        "precision": numerics.precision, "compile": numerics.compile, "threads": numerics.threads,
        "device": numerics.device, "teacher_top1": teacher["top1"] if teacher else None,
        "top1_last": score.last["top1"], "top1_best": score.top1_best, "top1_best_epoch": score.top1_best_epoch,
        "top1_val_selected": score.top1_val_selected, "top5_last": score.last["top5"],
        "params": parameters_of(lane), "extra_params": student.extra,
        "flops": count_flops(lane.deployed, tap.input_size or tap.image_size),
        "images_per_second": job.images / max(job.train_seconds, 1e-9), "train_seconds": job.train_seconds,
        "peak_memory": peak_memory(numerics.torch_device), "finished_at": now(), "overrides": plan.overrides,
    }  # fmt: skip


def parameters_of(lane: Lane) -> int:
    """Of what is deployed: the student, and what its method keeps at inference."""
    return sum(parameter.numel() for parameter in lane.deployed.parameters())


def draw(run: RunDirectory, title: str) -> None:
    from kdrun.runs.curves import draw_curves

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


def code_notes(plans: list[Plan]) -> list[str]:
    """One line for the runs, and one for the teachers, that are new for nothing but a change in the user's own code."""
    siblings = Siblings()
    runs = {plan.run.path: plan.code for plan in plans if not plan.run.begun}
    teachers = {plan.teacher_run.path: plan.teacher_code for plan in plans
                if plan.teacher_run is not None and not plan.teacher_run.begun}  # fmt: skip
    lines = []
    for new, one, several in ((runs, "this is a new run", "these are {} new runs"),
                              (teachers, "the teacher is trained anew", "{} teachers are trained anew")):  # fmt: skip
        found = [outdated for path, code in new.items() if (outdated := siblings.outdated(path, code))]
        if found:
            names = sorted({name for _, changed in found for name in changed})
            since = f"{'' if new is runs else 'teacher '}{found[0][0]}" + (" and others" if len(found) > 1 else "")
            so = one if len(found) == 1 else several.format(len(found))
            lines.append(f"note: {listed(names)} {'has' if len(names) == 1 else 'have'} changed since {since}, so {so}")
    return lines


def listed(names: list[str]) -> str:
    """a, b, c and 4 more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def announce(plan: Plan) -> None:
    """What is about to run, and where."""
    config = plan.config
    pair = f"{plan.teacher_name} → {config.student.name}" if plan.teacher_name else config.student.name
    console.say(
        f"[bold]{plan.method.name}[/]  {pair}  {config.dataset.name}  seed {config.seed}  {config.epochs} epochs  "
        f"[dim]{short_path(plan.run.path)}[/]"
    )
    for line in code_notes([plan]):
        console.note(line)


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
    console.say(f"      {short_path(plan.run.path)}/  (result.json, metrics.csv, curves.png, student.safetensors)")
