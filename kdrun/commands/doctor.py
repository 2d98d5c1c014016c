"""kdrun doctor: check the installation, and show what `auto` resolves to."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import NoOptions, parse
from kdrun.config.compose import load
from kdrun.config.groups import conf_dir
from kdrun.display import legible, plural, size, untracked
from kdrun.errors import KdrunError, listed, print_error
from kdrun.hardware import available_cores, compiler_missing, cpu_kind, cpu_name
from kdrun.models import hub

HELP = """
usage: kdrun doctor [output_root=FOLDER] [dataset.root=FOLDER]

Checks Python, libraries, CPU and GPU, the C++ compiler that torch.compile needs, the output folder and the data sets
(dataset.root: also your own class folders), lists the published weights that pretrained=true has downloaded, and shows
what device=auto, precision=auto and compile=auto mean on this machine. With output_root= it also reads every file in
that folder and lists those that have changed since they were written. Exit code 1 if runs will not work.
"""

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pillow",
    "scikit-learn",
    "scikit-image",
    "pandas",
    "safetensors",
    "matplotlib",
    "rich",
    "filelock",
)


def command(words: list[str]) -> int:
    parsed = parse("doctor", words, NoOptions, passes=True)
    config = load([*parsed.names, *parsed.overrides], parsed.config_dir)
    rows, problems = libraries()
    rows += hardware_rows()
    root = Path(os.path.expanduser(config.output_root))
    rows += output_rows(root, problems)
    if any(word.startswith("output_root=") for word in parsed.overrides):
        rows += stored_rows(root, problems)
    rows += data_rows(config.dataset.root, problems)
    rows += weights_rows()
    console.table("", ["what", "found", ""], rows)
    for problem in problems:
        print_error(problem)
    data = config.dataset.root
    command = "kdrun train" if data is None else f"kdrun train dataset=folder dataset.root={escape(shlex.quote(data))}"
    console.say("[bold red]runs will not work here[/]" if problems else f"[bold green]all good[/]: {command}")
    return 1 if problems else 0


def libraries() -> tuple[list[list[str]], list[str]]:
    """Return the versions of the libraries, and problems for missing ones."""
    problems = []
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed: pip install {name}")
    python = sys.version.split()[0]
    return [
        ["python", python, sys.executable],
        ["libraries", f"{len(versions)} of {len(LIBRARIES)}", ", ".join(versions)],
        ["configuration", str(conf_dir()), ""],
    ], problems


def hardware_rows() -> list[list[str]]:
    import torch

    from kdrun.training import precision

    device = precision.resolve_device("auto")
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    missing = compiler_missing(device)
    share = precision.resolve_threads()
    return [
        [
            "CPU",
            f"{cpu_name()}, {available_cores()} cores",
            f"{cpu_kind()}: trains in bf16 at {precision.cpu_bf16_speedup():.2f}x the speed of fp32",
        ],
        ["threads=null", str(share.threads), f"for a run started now: {share.reason}"],
        ["GPU", ", ".join(gpus) or "none", ""],
        ["device=auto", device, ""],
        ["precision=auto", precision.resolve_precision("auto", device), "precision=fp32 is the reference"],
        ["compile=auto", "off" if missing else "a timed probe on long runs", missing],
    ]


def output_rows(root: Path, problems: list[str]) -> list[list[str]]:
    """Check that the output folder is writable and has room."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".doctor-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        problems.append(f"output_root={root} cannot be written ({error.strerror}): set output_root=… or KDRUN_OUTPUTS.")
        return [["output_root", str(root), "not writable"]]
    free = shutil.disk_usage(root).free
    if free < 2**30:
        problems.append(f"output_root={root} has only {size(free)} free: a sweep needs more.")
    runs = len(list((root / "runs").glob("*/*/*/*/result.json")))
    teachers = len(list((root / "teachers").glob("*/*/*/result.json")))
    return [
        ["output_root", str(root), f"{size(free)} free, {plural(runs, 'finished run')}, {plural(teachers, 'teacher')}"]
    ]


def stored_rows(root: Path, problems: list[str]) -> list[list[str]]:
    """Compare every file below the output folder with its checksum."""
    from kdrun.evaluation.stored import check_stored

    count, lines = check_stored(root, console.track if console.out.is_terminal else untracked)
    problems += lines
    return [["checksums", f"{count:,} files", f"{len(lines):,} damaged" if lines else "all unchanged"]]


def data_rows(root: str | None, problems: list[str]) -> list[list[str]]:
    """Return the sources of the CIFAR sets, and the class folders in dataset.root."""
    from kdrun.data import cifar

    rows = [["digits", "built in", "the default"]]
    found = False
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        try:
            source = cifar.locate(name, root)
        except KdrunError:
            source = None
        if source is None or (source.trees and len(source.trees[0].class_names) != classes):
            rows.append([name, "not found", f"dataset.root={root} has none"])
            continue
        where = source.archive or (source.trees[0].root.parent if source.trees else None)
        found = found or where is not None
        rows.append(
            [
                name,
                str(where) if where else "not found",
                "" if where else "downloaded on first use; or set dataset.root or KDRUN_DATA",
            ]
        )
    return rows if root is None else [*rows, folder_row(root, found, problems)]


def folder_row(root: str, found: bool, problems: list[str]) -> list[str]:
    """Return the row of dataset=folder. found: True if the folder is valid for another data set."""
    from kdrun.data import folder
    from kdrun.data.overview import names_in_short

    try:
        source = folder.locate(root)
    except KdrunError as error:
        if not found:
            problems.append(str(error))
        return ["class folders", "none" if found else "no data set", "" if found else f"dataset.root={root}"]
    tree, images = source.trees[0], sum(len(tree.paths) for tree in source.trees)
    inside = f"{len(tree.class_names):,} classes ({names_in_short(tree.class_names)}), {images:,} images"
    return ["class folders", legible(source.root), f"{inside}: kdrun data {shlex.quote(root)}"]


def weights_rows() -> list[list[str]]:
    """Return the folders where pretrained=true looks for weights before downloading them, and their contents."""
    repositories, files = hub.cached_names()
    return [
        ["weights of timm", str(hub.hub_cache()), f"{held(repositories)}; HF_HOME or HF_HUB_CACHE changes it"],
        ["weights of torchvision", str(hub.hub_folder()), f"{held(files)}; TORCH_HOME changes it"],
    ]


def held(names: list[str]) -> str:
    """Return the number of names, and the first of them."""
    return listed(names, 4) or "none"
