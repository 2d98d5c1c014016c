"""Plans: resolved configurations with their digests and directories, made quickly and without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from kdrun.config.method_schema import MethodSource, method_of
from kdrun.config.options import RunConfig
from kdrun.config.own_code import digests, own_code
from kdrun.data.datasets import DataSource
from kdrun.errors import listed
from kdrun.runs.code_record import Code, Siblings
from kdrun.runs.directory import RunDirectory, short_path
from kdrun.runs.identity import code_modules, digest_of, run_identity, slug, teacher_identity


@dataclass
class Plan:
    """Plan of a run: its configuration, its digest, its teacher, and the directories of both."""

    config: RunConfig
    overrides: list[str]
    source: DataSource
    method: MethodSource
    digest: str
    run: RunDirectory
    code: Code
    teacher_digest: str | None
    teacher_run: RunDirectory | None  # where the teacher is stored once trained; None for checkpoints and controls
    teacher_code: Code
    other_images: str  # digest of all but the images' content: unchanged if only the images in dataset.root change
    teacher_other_images: str

    @property
    def cache(self) -> Path:
        return output_root(self.config) / "caches" / "data"

    @property
    def teacher_name(self) -> str | None:
        return self.config.teacher.name if self.method.needs_teacher else None


def output_root(config: RunConfig) -> Path:
    return Path(os.path.expanduser(config.output_root)).resolve()


def make_plan(config: RunConfig, overrides: list[str]) -> Plan:
    """Locate the data and the code, compute the digests, and name the directories. Raises KdrunError if something is
    missing."""
    source = DataSource(config.dataset)
    fingerprint = source.fingerprint()
    method = method_of(config.method)
    modules = code_modules(config)
    files, teacher_files = own_code(chain(*modules.values())), own_code(modules["teacher"])
    hashes, teacher_hashes = digests(files), digests(teacher_files)
    digest = digest_of(run_identity(config, fingerprint, hashes, teacher_hashes))
    code = Code(files, digest_of(run_identity(config, fingerprint, {}, {})))
    place_of_images = str(Path(os.path.expanduser(config.dataset.root or "")).resolve())
    other_images = digest_of([place_of_images, run_identity(config, "", hashes, teacher_hashes)])
    root, data = output_root(config), slug(config.dataset.name)
    teacher = slug(config.teacher.name) if method.needs_teacher else "none"
    place = root / "runs" / data / f"{teacher}-{slug(config.student.name)}" / slug(method.name)
    run = RunDirectory(place / f"s{config.seed}-{digest[:8]}")
    teacher_digest, teacher_run, teacher_code, teacher_other_images = None, None, Code({}, ""), ""
    if method.needs_teacher and not method.trains_teacher:
        teacher_digest = digest_of(teacher_identity(config.teacher, config.dataset, fingerprint, teacher_hashes))
        if config.teacher.checkpoint is None and not config.teacher.random:
            folder = root / "teachers" / data / slug(config.teacher.name)
            teacher_run = RunDirectory(folder / f"s{config.teacher.seed}-{teacher_digest[:8]}", role="teacher")
            settings = digest_of(teacher_identity(config.teacher, config.dataset, fingerprint, {}))
            teacher_code = Code(teacher_files, settings)
            of_any_images = teacher_identity(config.teacher, config.dataset, "", teacher_hashes)
            teacher_other_images = digest_of([place_of_images, of_any_images])
    return Plan(
        config,
        overrides,
        source,
        method,
        digest,
        run,
        code,
        teacher_digest,
        teacher_run,
        teacher_code,
        other_images,
        teacher_other_images,
    )


def images_only(config: RunConfig) -> RunConfig:
    """Return the configuration of the data set alone, which refers to no teacher and no weights file."""
    return replace(
        config,
        method={"_target_": "kdrun.methods.none.Independent"},
        student=replace(config.student, checkpoint=None, pretrained="false"),
    )


def code_notes(plans: list[Plan]) -> list[str]:
    """Return one line for the runs, and one for the teachers, that are new only because the user's own code changed."""
    siblings = Siblings()
    runs = {plan.run.path: plan.code for plan in plans if not plan.run.begun}
    teachers = {
        plan.teacher_run.path: plan.teacher_code
        for plan in plans
        if plan.teacher_run is not None and not plan.teacher_run.begun
    }
    lines = []
    for new, one, several in (
        (runs, "this is a new run", "these are {} new runs"),
        (teachers, "the teacher is trained again", "{} teachers are trained again"),
    ):
        found = [outdated for path, code in new.items() if (outdated := siblings.outdated(path, code))]
        if found:
            names = sorted({name for _, changed in found for name in changed})
            since = f"{'' if new is runs else 'teacher '}{found[0][0]}" + (" and others" if len(found) > 1 else "")
            so = one if len(found) == 1 else several.format(len(found))
            lines.append(f"note: {listed(names)} {'has' if len(names) == 1 else 'have'} changed since {since}, so {so}")
    return lines


def image_notes(plans: list[Plan]) -> list[str]:
    """Return one line for the runs, and one for the teachers, that are new only because the images changed, with the
    way to continue an unfinished one."""
    siblings = Siblings()
    runs = {plan.run.path: (plan.run, plan.other_images) for plan in plans if not plan.run.begun}
    teachers = {
        plan.teacher_run.path: (plan.teacher_run, plan.teacher_other_images)
        for plan in plans
        if plan.teacher_run is not None and not plan.teacher_run.begun
    }
    lines = []
    for new, so in ((runs, "this is a new run"), (teachers, "the teacher is trained again")):
        found = [
            (run, RunDirectory(old, run.role))
            for path, (run, other_images) in new.items()
            if (old := siblings.of_other_images(path, other_images))
        ]
        if not found:
            continue
        run, old = found[0]
        since = old.path.name + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        line = f"note: the images have changed since {since}, so {so}"
        if old.state_path.is_file() and not old.finished:
            epochs = max((row[0] for row in old.read_metrics()), default=0)
            line += f"; to continue from its epoch {epochs} instead: mv {short_path(old.path)} {short_path(run.path)}"
        lines.append(line)
    return lines
