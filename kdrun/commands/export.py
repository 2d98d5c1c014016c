"""kdrun export: a trained network as a file for elsewhere, which is measured before it gets its name."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import parse
from kdrun.config.options import setting
from kdrun.errors import ConfigError, RunError
from kdrun.evaluation.deployed import Card, Deployed, deploy, find_target
from kdrun.evaluation.export.gate import CHUNK, Form, clock, compare, deployable, images_of, judge, module_forward
from kdrun.evaluation.loading import numerics_for, open_data
from kdrun.evaluation.targets import Which
from kdrun.files import explain_os_error, sha256_of, write_json
from kdrun.runs.directory import now, short_path

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from kdrun.data.splits import AnySet
    from kdrun.evaluation.targets import Target
    from kdrun.training.build import Data

HELP = """
usage: kdrun export RUN [model=student|teacher] [weights=last|best] [quantize=none|static|dynamic|all] [max_drop=1]
                    [save=FILE|FOLDER] [format=onnx|torchscript|torch_export] [opset=…] [images=N] [dataset.root=…]
       kdrun export FILE student=NAME dataset=NAME save=FILE|FOLDER [key=value …]

RUN is a run directory, a digest prefix, or a directory of teachers/; FILE is a checkpoint, as kdrun eval takes it.

The file takes RGB in [0, 1], float32 [N, 3, S, S] for any N, and returns logits: mean and std are applied inside. Class
names, image size, mean and std are in its metadata, and kdrun predict FILE.onnx reads them.

quantize=static adds an INT8 file (QDQ, weights per channel, calibrated on 512 training images), quantize=dynamic one
whose MatMul and Gemm weights are INT8 (convolutions stay float32: quantised dynamically they become several times
slower). A table then compares every form with the network on the test set (images=N: on N of them): largest difference
of a logit, top-1, size, and the time of one image and of a batch of 64 on this CPU. A file gets its final name
only if it passes: float32 within 1e-4 of the largest logit, INT8 within max_drop points of top-1; else the exit code is
1. Written into exports/ of the run, or to save=.
"""

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}
QUANTIZED = ("none", "static", "dynamic", "all")
CALIBRATED = 512  # training images


@dataclass
class Options(Which):
    quantize: str = setting("none", choices=QUANTIZED, help="INT8 files beside the float32 one")
    format: str = setting("onnx", choices=tuple(FORMATS), help="the kind of file")
    max_drop: float = setting(1.0, low=0, high=100, help="how many points of top-1 an INT8 file may lose")
    images: int | None = setting(None, low=1, help="how many test images are compared; all without it")
    opset: int | None = setting(None, low=18, high=99, help="of ONNX")
    save: Path | None = setting(None, help="instead of exports/ of the run", shows="FILE|FOLDER")

    @property
    def kinds(self) -> tuple[str, ...]:
        return {"none": (), "all": ("static", "dynamic")}.get(self.quantize, (self.quantize,))


def command(words: list[str]) -> int:
    parsed = parse("export", words, Options, passes=True)
    options = parsed.options
    if len(parsed.names) != 1:
        raise ConfigError("export what? Give one run, or one file of weights (kdrun list runs).")
    if options.quantize != "none" and options.format != "onnx":
        raise ConfigError(
            f"quantize={options.quantize} is for format=onnx; {options.format} is written in float32 only."
        )
    target = find_target(parsed.names[0], options, parsed.rest, parsed.config_dir)
    place = destination(target, options)
    if options.format == "onnx":
        from kdrun.evaluation.export.onnx_format import require

        require("onnx")
    return export(target, place, options)


def destination(target: Target, options: Options) -> Path:
    """The float32 file's final path; quantised ones lie beside it as <stem>_static and <stem>_dynamic."""
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
        raise ConfigError(f"save={options.save}: format={options.format} is written as *{ending}.")
    return options.save / f"{name}{ending}"


def export(target: Target, place: Path, options: Options) -> int:
    """Write every form beside its final place, measure, and rename what passes. Returns the exit code."""
    config = target.config
    numerics = numerics_for(replace(config, device="cpu"), "fp32")
    numerics.apply()
    _, data = open_data(config, console.track)
    deployed = deploy(target, numerics)
    if len(data.splits.class_names) != len(deployed.card.class_names):
        raise ConfigError(
            f"{target.label} has {len(deployed.card.class_names)} classes, the data set has "
            f"{len(data.splits.class_names)}."
        )
    model = deployable(deployed.model, deployed.card)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export.", dir=place.parent))
    except OSError as error:
        raise RunError(explain_os_error(error, place)) from error
    try:
        console.say(f"{escape(target.label)}  {escape(deployed.card.network)} as {options.format} …")
        forms = write_forms(model, deployed, data, options, scratch / place.name, numerics.threads)
        compare(forms, test_images(data, options.images), deployed.card, console.track)
        judge(forms, options.max_drop)
        clock(forms, deployed.card)
        files = keep(forms, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report(forms, files, place, deployed.card, options, len(test_images(data, options.images)))


def test_images(data: Data, limit: int | None) -> AnySet:
    """The test set, or `limit` images of it, the same at every call."""
    import numpy as np

    test = data.splits.test
    if limit is None or limit >= len(test):
        return test
    return test.take(np.sort(np.random.default_rng(0).permutation(len(test))[:limit]))


def write_forms(
    model: nn.Module, deployed: Deployed, data: Data, options: Options, path: Path, threads: int
) -> list[Form]:
    """The network itself, then every file that is asked for, in a scratch folder."""
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
    """Batches of training images that a seed chooses; unaugmented."""
    import numpy as np

    train = data.splits.train
    chosen = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[:CALIBRATED]))
    return [image for image, _ in images_of(chosen, card)]


def keep(forms: list[Form], place: Path) -> dict[str, Path]:
    """Give the files that passed their final names, and take these from older ones that others left: form name -> path.
    Nothing passes that was made from a wrong file."""
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
    """What was measured of a form."""
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


def report(forms: list[Form], files: dict[str, Path], place: Path, card: Card, options: Options, images: int) -> int:
    """The table, what did not pass and why, and where the rest is; the same as JSON beside the files."""
    rows = []
    for number, form in enumerate(forms):
        verdict = "" if not number else ("passes" if not form.problem else "fails")
        rows.append(
            [
                form.name,
                f"{form.difference:.2g}" if number else "–",
                f"{form.top1:.2f}",
                f"{form.size / 1e6:.2f}" if number else "–",
                f"{form.one:.2f}",
                f"{form.many:.1f}",
                verdict,
            ]
        )
    console.table("", ["form", "max |Δlogit|", "top-1, %", "size, MB", "1 image, ms", f"{CHUNK} images, ms", ""], rows)
    console.note(f"top-1 on {images:,} test images; max |logit| {forms[1].scale:.3g}; median times on this CPU")
    for form in forms[1:]:
        if form.problem:
            console.say(f"[bold red]fails[/]  {escape(form.name)}: {escape(form.problem)}; no file is written.")
        elif form.name not in files:
            console.say(f"[bold red]left out[/]  {escape(form.name)}: the float32 file it comes from fails.")
    if files:
        about = {"measured_at": now(), "test_images": images, "forms": [facts(form) for form in forms], **asdict(card)}
        write_json(place.with_suffix(".json"), about)
        names = ", ".join(path.name for path in (*files.values(), place.with_suffix(".json")))
        console.note(f"{short_path(place.parent.absolute())}/  ({names})")
    return 1 if len(files) < len(forms) - 1 else 0
