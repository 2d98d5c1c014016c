"""Provenance of a run: everything except its numbers (who, where, and with what)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kdrun import __version__
from kdrun.config.method_schema import MethodSource
from kdrun.config.options import RunConfig
from kdrun.hardware import cpu_kind, cpu_name
from kdrun.runs.code_record import Code, about_method
from kdrun.runs.directory import now
from kdrun.streams import VERSION as STREAMS
from kdrun.training.precision import Numerics

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pandas",
    "scikit-learn",
    "scikit-image",
)


def provenance(
    numerics: Numerics,
    data: dict[str, Any],
    teacher: dict[str, Any] | None,
    method: MethodSource | None,
    code: Code,
    other_images: str,
    config: RunConfig,
) -> dict[str, Any]:
    """Return command, revision, versions, hardware, resolved numerics, data fingerprint, the teacher's weights, the
    method's requirements, the user's own code, and every setting, by which an edited config.yaml is detected.
    method: None for a teacher that is trained alone."""
    return {
        "started_at": now(),
        "command": sys.argv,
        "kdrun": __version__,
        "git": git_revision(),
        "python": sys.version.split()[0],
        "libraries": {name: version for name in LIBRARIES if (version := version_of(name))},
        "hardware": hardware(),
        "numerics": numerics.as_dict(),
        "streams": STREAMS,
        "data": data,
        "teacher": teacher,
        "method": None if method is None else about_method(method),
        **code.about(),
        "other_images": other_images,
        "config": asdict(config),
    }


@cache
def version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def git_revision() -> str | None:
    """Return the checkout's commit when first called, with + if files differ from it; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        revision = _git(here, "rev-parse", "HEAD")
        return revision + ("+" if _git(here, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def hardware() -> dict[str, Any]:
    """Return a description of the machine, for provenance and tables."""
    found = {"cpu": cpu_name(), "cpu_kind": cpu_kind(), "cores": os.cpu_count(), "system": platform.platform()}
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found
