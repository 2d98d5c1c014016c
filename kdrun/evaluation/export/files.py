"""Export of a trained network: files are written to a scratch folder, measured, and renamed only if they pass."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.config.options import setting
from kdrun.display import Track
from kdrun.errors import ConfigError, RunError
from kdrun.evaluation.deployed import Card, Deployed, deploy
from kdrun.evaluation.export.gate import CHUNK, Form, clock, compare, deployable, images_of, judge, module_forward
from kdrun.evaluation.loading import numerics_for, open_data, tell_foreign
from kdrun.evaluation.targets import Which
from kdrun.files import explain_os_error, sha256_of, write_json
from kdrun.runs.directory import now

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from kdrun.data.splits import AnySet
    from kdrun.evaluation.targets import Target
    from kdrun.training.build import Data

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}
QUANTIZED = ("none", "static", "dynamic", "all")
CALIBRATED = 512  # training images for calibration


@dataclass
class Options(Which):
    """Options of kdrun export."""

    quantize: str = setting("none", choices=QUANTIZED, help="INT8 files to write in addition to the float32 one")
    format: str = setting("onnx", choices=tuple(FORMATS), help="file format")
    max_drop: float = setting(1.0, low=0, high=100, help="largest loss of top-1 of an INT8 file, in points")
    images: int | None = setting(None, low=1, help="number of test images to compare on; default: all")
    opset: int | None = setting(None, low=18, high=99, help="ONNX opset version")
    save: Path | None = setting(None, help="output file or folder; default: exports/ of the run", shows="FILE|FOLDER")

    @property
    def kinds(self) -> tuple[str, ...]:
        return {"none": (), "all": ("static", "dynamic")}.get(self.quantize, (self.quantize,))


@dataclass(frozen=True)
class Exported:
    """Result of an export: every form with its measurements on `images` test images, and the files that passed: form
    name -> path."""

    forms: list[Form]
    files: dict[str, Path]
    images: int

    @property
    def passed(self) -> bool:
        return len(self.files) == len(self.forms) - 1


def export(target: Target, place: Path, options: Options, track: Track) -> Exported:
    """Write every form to a scratch folder, measure, and rename what passes; measurements go into a JSON next to the
    files."""
    config = target.config
    numerics = numerics_for(replace(config, device="cpu"), "fp32")
    numerics.apply()
    plan, data = open_data(config, track, target.run)
    tell_foreign(target.label, target.run, plan.source)
    deployed = deploy(target, numerics)
    card, names = deployed.card, data.splits.class_names
    if len(names) != len(card.class_names):
        raise ConfigError(f"{target.label} has {len(card.class_names)} classes, the data set has {len(names)}.")
    model, images = deployable(deployed.model, card), test_images(data, options.images)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export.", dir=place.parent))
    except OSError as error:
        raise RunError(explain_os_error(error, place)) from error
    try:
        forms = write_forms(model, deployed, data, options, scratch / place.name, numerics.threads)
        compare(forms, images, card, track)
        judge(forms, options.max_drop)
        clock(forms, card)
        files = keep(forms, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if files:
        about = {"measured_at": now(), "test_images": len(images), "forms": [facts(form) for form in forms]}
        write_json(place.with_suffix(".json"), {**about, **asdict(card)})
    return Exported(forms, files, len(images))


def test_images(data: Data, limit: int | None) -> AnySet:
    """Return the test set, or `limit` images of it, always the same ones."""
    import numpy as np

    test = data.splits.test
    if limit is None or limit >= len(test):
        return test
    return test.take(np.sort(np.random.default_rng(0).permutation(len(test))[:limit]))


def write_forms(
    model: nn.Module, deployed: Deployed, data: Data, options: Options, path: Path, threads: int
) -> list[Form]:
    """Return the network itself, then every requested file, written to a scratch folder."""
    reference = Form("PyTorch, fp32", module_forward(model), exact=True)
    if options.format != "onnx":
        from kdrun.evaluation.export.torch_format import write_torch_file

        return [
            reference,
            Form(options.format, write_torch_file(model, deployed.card, path, options.format), True, path),
        ]
    from kdrun.evaluation.export.onnx_format import OnnxNetwork, quantise_dynamic, quantise_static, write_onnx

    write_onnx(model, deployed.card, path, options.opset)
    forms = [reference, Form("ONNX, fp32", OnnxNetwork(path, threads).run, True, path)]
    for kind in options.kinds:
        quantised = path.with_name(f"{path.stem}_{kind}{path.suffix}")
        if kind == "static":
            quantise_static(path, quantised, deployed.card, calibration_images(data, deployed.card))
        else:
            quantise_dynamic(path, quantised, deployed.card)
        forms.append(Form(f"ONNX, INT8 {kind}", OnnxNetwork(quantised, threads).run, False, quantised))
    return forms


def calibration_images(data: Data, card: Card) -> list[np.ndarray]:
    """Return batches of unaugmented training images, chosen with a fixed seed."""
    import numpy as np

    train = data.splits.train
    chosen = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[:CALIBRATED]))
    return [image for image, _ in images_of(chosen, card)]


def keep(forms: list[Form], place: Path) -> dict[str, Path]:
    """Give the files that passed their final names, and remove outdated files under these names: form name -> path.
    Nothing passes that was made from a file that failed."""
    files = {}
    for form in forms[1:]:
        assert form.path is not None
        final = place.with_name(form.path.name)
        if form.problem or forms[1].problem:
            final.unlink(missing_ok=True)
        else:
            os.replace(form.path, final)
            form.path = files[form.name] = final
    return files


def facts(form: Form) -> dict[str, Any]:
    """Return the measurements of a form."""
    return {
        "form": form.name,
        "file": None if form.path is None else form.path.name,
        "sha256": None if form.path is None or not form.path.is_file() else sha256_of(form.path),
        "max_logit_difference": form.difference,
        "top1": form.top1,
        "size": form.size,
        "milliseconds_of_1": form.one,
        f"milliseconds_of_{CHUNK}": form.many,
        "problem": form.problem or None,
    }


def destination(target: Target, options: Options) -> Path:
    """Return the float32 file's final path; quantised files are next to it as <stem>_static and <stem>_dynamic."""
    ending = FORMATS[options.format]
    name = f"{options.model}{'_best' if options.weights == 'best' else ''}"
    if target.folder is not None and target.weights is not None and target.weights.name.startswith("teacher"):
        name = name.replace("student", "teacher")
    if options.save is None:
        if target.folder is None:
            raise ConfigError("save is not set: a checkpoint's export needs save=FILE or save=FOLDER.")
        return target.folder.parent / "exports" / f"{name}{ending}"
    if options.save.suffix == ending:
        return options.save
    if options.save.suffix in FORMATS.values():
        raise ConfigError(f"save={options.save}: format={options.format} needs a file *{ending}.")
    return options.save / f"{name}{ending}"
