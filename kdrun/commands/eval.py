"""kdrun eval: measure a run's network, a stored teacher's, or a file of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun import console
from kdrun.assemble import (
    Data,
    load_data,
    make_job,
    make_loaders,
    make_network,
    make_plan,
    output_root,
)
from kdrun.checkpoint import write_json
from kdrun.compose import load, split_arguments
from kdrun.config import RunConfig, check_value, read_config
from kdrun.errors import ConfigError, suggest
from kdrun.methods.build import make_method
from kdrun.methods.source import read_method
from kdrun.runs import RunDirectory, find_runs, now

if TYPE_CHECKING:
    from torch import nn

    from kdrun.engine import Network
    from kdrun.job import Loaders

HELP = """
usage: kdrun eval RUN … [weights=last|best] [split=test|val|train] [device=… precision=… dataset.root=…]
       kdrun eval FILE student=NAME dataset=NAME [key=value …]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/. Prints top-1, top-5 and negative
log-likelihood (nats) and writes evals/<split>.json into the run. FILE is a checkpoint: safetensors, or a torch file
of RepDistiller's, mdistiller's, timm's or a plain layout.
"""

OWN = {"weights": ("last", "best"), "split": ("test", "val", "train")}
PASSED = ("device", "precision", "dataset.root", "dataset.workers", "eval_batch_size", "threads", "output_root")


def command(words: list[str]) -> int:
    _, overrides, config_dir = split_arguments(words)
    targets = [word for word in overrides if "=" not in word]
    settings = {key: value for key, _, value in (word.partition("=") for word in overrides if "=" in word)}
    own = {name: settings.pop(name, values[0]) for name, values in OWN.items()}
    for name, values in OWN.items():
        check_value(name, own[name], {"choices": values})
    if not targets:
        raise ConfigError("eval what? Give a run directory, a glob, a digest or a checkpoint file (kdrun list runs).")
    rest = [f"{key}={value}" for key, value in settings.items()]
    root = output_root(load([word for word in rest if word.startswith("output_root=")]))
    for target in targets:
        if Path(target).is_file():
            config = load([*rest, f"student.checkpoint={target}", "method=none"], config_dir)
            measure_and_show(config, None, own["split"], target)
            continue
        for run in find_runs(target, root):
            evaluate_run(run, own, settings)
    return 0


def evaluate_run(run: Path, own: dict[str, str], settings: dict[str, str]) -> None:
    """A run's student or a stored teacher, under the run's own configuration."""
    config, resolved = read_config(run)
    role = "teacher" if (run / "teacher.safetensors").is_file() else "student"
    weights = run / f"{role}{'_best' if own['weights'] == 'best' else ''}.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{run} has no {weights.name} yet: it is not finished (kdrun list runs).")
    config.student = replace(config.teacher if role == "teacher" else config.student, pretrained="false")
    if role == "student" and read_method(config.method["_target_"]).deploys:
        config.student.checkpoint = None  # the file holds more than the student, the teacher's part included
        config.teacher = replace(config.teacher, checkpoint=None, pretrained="false")
    else:
        config.student.checkpoint = str(weights)
        config.method = {"_target_": "kdrun.methods.none.Independent"}
    config.precision = str(resolved["precision"])
    for key, value in settings.items():
        set_value(config, key, value)
    evals = run / "evals" / f"{own['split']}{'_best' if own['weights'] == 'best' else ''}.json"
    measure_and_show(config, evals, own["split"], console.short_path(run), weights)


def set_value(config: RunConfig, key: str, value: str) -> None:
    """Settings that may differ from the run's: where it is measured, not what."""
    if key not in PASSED:
        raise ConfigError(f"{key}: eval of a run takes {', '.join(PASSED)}.{suggest(key, PASSED)}")
    owner: Any = config.dataset if key.startswith("dataset.") else config
    setattr(
        owner, key.rpartition(".")[2], int(value) if key in ("eval_batch_size", "threads", "dataset.workers") else value
    )


def deployed_network(config: RunConfig, data: Data, loaders: Loaders, student: Network, weights: Path) -> nn.Module:
    """`student` with what its method keeps at inference, rebuilt and loaded from `weights`."""
    from kdrun.models.weights import load_weights

    teacher = make_network(config.teacher, data, config.seed, student.numerics, config.batch_size)
    job = make_job(run=RunDirectory(weights.parent), digest="", student=student, teacher=teacher,
                   method=make_method(config.method), optimizer=config.optimizer, epochs=config.epochs,
                   seed=config.seed, data=data, loaders=loaders)  # fmt: skip
    load_weights(job.lane.deployed, weights, config.student.name)
    return job.lane.deployed


def measure_and_show(
    config: RunConfig, target: Path | None, split: str, label: str, weights: Path | None = None
) -> None:
    """Load, evaluate, print one line, and write `target` where there is one."""
    from kdrun.engine import evaluate
    from kdrun.numerics import resolve

    plan = make_plan(config, [])
    numerics, _, _ = resolve(config.device, config.precision, "false", config.threads, config.deterministic)
    numerics.apply()
    data = load_data(plan, console.track)
    if split == "train":
        data.splits = replace(data.splits, test=data.splits.train)
    elif split == "val":
        if data.splits.val is None:
            raise ConfigError("split=val: this run had no validation split (dataset.val_fraction=0).")
        data.splits = replace(data.splits, test=data.splits.val)
    network = make_network(config.student, data, config.seed, numerics, config.batch_size)
    loaders = make_loaders(data, config.batch_size, config.seed, "same", numerics)
    model = network.tap.model
    if weights is not None and read_method(config.method["_target_"]).deploys:
        model = deployed_network(config, data, loaders, network, weights)
    found = evaluate(model, network.tap.prepare, loaders.test, numerics)
    console.say(
        f"{label}  {config.student.name} on {config.dataset.name}/{split} ({loaders.test.num_samples:,} images, "
        f"{numerics.precision}): top-1 [bold]{found['top1']:.2f} %[/]  top-5 {found['top5']:.2f} %  "
        f"NLL {found['nll']:.4f} nats"
    )
    if target is not None:
        about = {
            "split": split,
            "samples": loaders.test.num_samples,
            "numerics": numerics.as_dict(),
            "measured_at": now(),
        }
        write_json(target, {"schema": 1, **found, **about})
