"""kdrun export: write a trained network as a file for other programs, which is checked before it gets its final
name."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import parse
from kdrun.errors import ConfigError
from kdrun.evaluation.deployed import find_target
from kdrun.evaluation.export.files import Exported, Options, destination, export
from kdrun.evaluation.export.gate import CHUNK
from kdrun.runs.directory import short_path

HELP = """
usage: kdrun export RUN [model=student|teacher] [weights=last|best] [quantize=none|static|dynamic|all] [max_drop=1]
                    [save=FILE|FOLDER] [format=onnx|torchscript|torch_export] [opset=…] [images=N] [dataset.root=…]
       kdrun export FILE student=NAME dataset=NAME save=FILE|FOLDER [key=value …]

RUN is a run directory, a digest prefix, or a directory of teachers/; FILE is a checkpoint, as for kdrun eval.
The exported model takes RGB in [0, 1], float32 [N, 3, S, S] for any N, and returns logits; it applies mean and std
itself. Its metadata holds class names, image size, mean and std, which kdrun predict FILE.onnx reads.

quantize=static adds an INT8 file (QDQ, weights per channel, calibrated on 512 training images), quantize=dynamic a file
whose MatMul and Gemm weights are INT8 (convolutions stay float32: dynamic quantisation makes them several times
slower). A table then compares every form with the network on the test set (images=N: on N of them): largest difference
of a logit, top-1, size, and the time for one image and for a batch of 64 on this CPU. A file is kept only if it passes:
float32 within 1e-4 of the largest logit, INT8 within max_drop points of top-1; otherwise the exit code is 1. Files are
written into exports/ of the run, or to save=.
"""


def command(words: list[str]) -> int:
    parsed = parse("export", words, Options, passes=True)
    options = parsed.options
    if len(parsed.names) != 1:
        raise ConfigError("export needs one run, or one weights file (kdrun list runs).")
    if options.quantize != "none" and options.format != "onnx":
        raise ConfigError(
            f"quantize={options.quantize} is for format=onnx; {options.format} is written only in float32."
        )
    target = find_target(parsed.names[0], options, parsed.rest, parsed.config_dir)
    place = destination(target, options)
    if options.format == "onnx":
        from kdrun.evaluation.export.onnx_format import require

        require("onnx")
    console.say(f"{escape(target.label)}  {escape(target.options.name)} as {options.format} …")
    found = export(target, place, options, console.track)
    report(found, place)
    return 0 if found.passed else 1


def report(found: Exported, place: Path) -> None:
    """Print the table, the forms that failed with reasons, and the location of the files."""
    forms, files = found.forms, found.files
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
    console.note(f"top-1 on {found.images:,} test images; max |logit| {forms[1].scale:.3g}; median times on this CPU")
    for form in forms[1:]:
        if form.problem:
            console.say(f"[bold red]fails[/]  {escape(form.name)}: {escape(form.problem)}; no file written.")
        elif form.name not in files:
            console.say(f"[bold red]left out[/]  {escape(form.name)}: it is made from the float32 file, which fails.")
    if files:
        names = ", ".join(path.name for path in (*files.values(), place.with_suffix(".json")))
        console.note(f"{short_path(place.parent.absolute())}/  ({names})")
