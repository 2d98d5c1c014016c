"""Identity of a run: a digest of everything that changes its numbers, and of nothing else.

Values enter as requested (`auto` stays `auto`), paths and the user's own code as content, so that the digest needs
neither torch nor a trained teacher, and does not depend on the machine. An option at its dataclass default is left out,
so that a new option does not rename old runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from kdrun.config.method_schema import is_ours, method_of, read_method
from kdrun.config.options import DatasetOptions, ModelOptions, RunConfig, TeacherOptions
from kdrun.config.own_code import module_of
from kdrun.files import sha256_of
from kdrun.runs.checkpoints import weights_file
from kdrun.streams import VERSION as STREAMS

# Settings of location, speed and strictness: they change no number of a finished run.
PLACES = {"root", "workers", "cache", "on_error", "allow_missing_classes"}
CONTROL = "untrained control, norms measured"  # how provenance names such a teacher
TAPS_ONLY = {"preact_last_map"}  # decides what is tapped, not how the network trains


def differing(options: Any, leave_out: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """Return name -> value of the fields that are not at their default."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in leave_out:
            continue
        if dataclasses.is_dataclass(value):
            value = differing(value)
            if not value:
                continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default:
            found[field.name] = value
    return found


def data_identity(options: DatasetOptions, fingerprint: str, leave_out: set[str] | None = None) -> dict[str, Any]:
    return {"content": fingerprint, **differing(options, PLACES | (leave_out or set()))}


def model_identity(options: ModelOptions, role: str, leave_out: set[str] | None = None) -> dict[str, Any]:
    """Return the network's options, with the content of its files in place of their paths."""
    found = differing(options, leave_out or set())
    if options.checkpoint is not None:
        found["checkpoint"] = sha256_of(weights_file(options.checkpoint, f"{role}.checkpoint"))
    if options.pretrained not in ("true", "false"):
        found["pretrained"] = sha256_of(weights_file(options.pretrained, f"{role}.pretrained"))
    return found


def teacher_identity(
    teacher: TeacherOptions, data: DatasetOptions, fingerprint: str, code: Mapping[str, str]
) -> dict[str, Any]:
    """Return a teacher's identity: its code and its checkpoint, or its recipe and its training images; nothing of
    the run that uses it. code: name -> SHA-256 of the user's own files."""
    own = {"code": dict(code)} if code else {}
    if teacher.checkpoint is not None:
        return own | model_identity(teacher, "teacher", {"recipe", "seed", "precision", "flip", *TAPS_ONLY})
    if teacher.random:
        untrained = model_identity(teacher, "teacher", {"recipe", "precision", "flip", *TAPS_ONLY})
        if teacher.pretrained == "false":  # batch norm has the statistics of the training images
            untrained["data"] = data_identity(data, fingerprint, {"augment", "test_limit"})
        return own | untrained | initialised(teacher)
    return own | {
        "model": model_identity(teacher, "teacher", {"flip", *TAPS_ONLY}),
        "data": data_identity(teachers_images(teacher, data), fingerprint, {"test_limit"}),
        "streams": STREAMS,
    }


def teachers_images(teacher: TeacherOptions, data: DatasetOptions) -> DatasetOptions:
    """Return the data set on which the teacher is trained: with the teacher's own flip probability if it has one,
    and without the augmentations that apply to the student only."""
    return dataclasses.replace(data, augment=data.augment.of_teacher(teacher.flip))


def peer_identity(teacher: TeacherOptions) -> dict[str, Any]:
    """Return the identity of a teacher that is trained together with the student: its architecture and its initial
    weights, not its earlier training."""
    found = model_identity(teacher, "teacher", {"recipe", "precision", "flip", *TAPS_ONLY})
    return {**found, **initialised(teacher)}


def initialised(teacher: TeacherOptions) -> dict[str, Any]:
    """Return the settings that determine an untrained teacher's weights."""
    return {"seed": teacher.seed, "streams": STREAMS}


def run_identity(
    config: RunConfig, fingerprint: str, code: Mapping[str, str], teacher_code: Mapping[str, str]
) -> dict[str, Any]:
    """Return everything that decides a run's numbers. code: of all modules that it imports; teacher_code: of its
    teacher alone."""
    method = method_of(config.method)
    identity: dict[str, Any] = {
        "data": data_identity(config.dataset, fingerprint),
        # Without distillation nothing is tapped, so one independent student serves all benchmarks.
        "student": model_identity(config.student, "student", set() if method.needs_teacher else TAPS_ONLY),
        "method": method_identity(config.method),
        "optimizer": {
            **differing(config.optimizer, {"epochs", "batch_size"}),
            "epochs": config.epochs,
            "batch_size": config.batch_size,
        },
        "seed": config.seed,
        "streams": STREAMS,
        "evaluation": [config.eval_batch_size, config.eval_every],
        "numerics": [
            config.device.partition(":")[0],
            config.precision,
            config.compile,
            config.threads,
            config.deterministic,
        ],
    }
    if method.needs_teacher:
        if method.trains_teacher:
            identity["peer"] = peer_identity(config.teacher)
        else:
            identity["teacher"] = digest_of(teacher_identity(config.teacher, config.dataset, fingerprint, teacher_code))
        identity["teacher_taps"] = config.teacher.preact_last_map
        identity["teacher_view"] = config.teacher_view
        if not config.teacher_cache:
            identity["teacher_cache"] = False
    if config.sync_bn:
        identity["sync_bn"] = True
    if config.graphs == "true":
        identity["graphs"] = True
    if code:
        identity["code"] = dict(code)
    return identity


def method_identity(node: dict[str, Any]) -> dict[str, Any]:
    """Return a method's settings, without those of kdrun's own methods that are at their constructor's default.

    Such a setting may be newer than its method; runs from before it was added keep their digests.
    """
    defaults = read_method(node["_target_"]).defaults if is_ours(node["_target_"]) else {}
    kept = {key: value for key, value in node.items() if key not in defaults or value != defaults[key]}
    if "parts" in kept:
        kept["parts"] = [method_identity(part) for part in kept["parts"]]
    return kept


def code_modules(config: RunConfig) -> dict[str, list[str]]:
    """Return part of a run -> the modules that it is imported from and that may be the user's own."""
    method = method_of(config.method)
    nodes = [config.method, *(config.method["parts"] if method.combines else [])]
    return {
        "student": [found] if (found := module_of(config.student.name)) else [],
        "teacher": [found] if (found := module_of(config.teacher.name)) and method.needs_teacher else [],
        "method": [str(node["_target_"]).rpartition(".")[0] for node in nodes],
    }


def digest_of(identity: Any) -> str:
    """Return the SHA-256 of an identity's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def slug(name: str) -> str:
    """Return a name as part of a path: timm:vit_tiny -> timm-vit_tiny."""
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", name).strip("-.") or "x"
