"""kdrun taps: show the features that two networks offer to a method, and which of their stages are paired."""

from __future__ import annotations

from typing import Any

from kdrun import console
from kdrun.config.arguments import NoOptions, parse
from kdrun.config.compose import load
from kdrun.config.options import RunConfig
from kdrun.data.datasets import DataSource
from kdrun.training.build import make_tap

HELP = """
usage: kdrun taps [teacher=NAME] [student=NAME] [dataset=NAME] [key=value …]

Builds both networks (untrained), passes one image through each and prints the shape of every feature (tap), then the
pairs of stages that feature methods match.
"""


def command(words: list[str]) -> int:
    parsed = parse("taps", words, NoOptions, passes=True)
    show(load([*parsed.names, *parsed.overrides], parsed.config_dir))
    return 0


def show(config: RunConfig) -> None:
    from kdrun.models.features import measure, pair_maps

    classes = DataSource(config.dataset).num_classes
    specs: dict[str, Any] = {}
    for role, options in (("teacher", config.teacher), ("student", config.student)):
        tap = make_tap(options, classes, config.dataset.image_size, None)
        specs[role] = measure(tap, classes)
        count = sum(parameter.numel() for parameter in tap.model.parameters())
        console.say(
            f"[bold]{role}[/] {options.name}: {count:,} parameters, {classes} classes, "
            f"{options.input_size or config.dataset.image_size} px"
        )
        describe(specs[role])
    pairs = pair_maps(specs["student"], specs["teacher"])
    if not pairs:
        console.say("no stages to pair: one of the networks has no maps; methods on logits and pooled vectors work.")
        return
    rows = [[f"f{a}", shape(specs["student"].maps[a]), f"f{b}", shape(specs["teacher"].maps[b])] for a, b in pairs]
    console.table("pairs, shallow to deep", ["student", "shape", "teacher", "shape "], rows)


def describe(spec: Any) -> None:
    rows = [
        [f"f{number}", "stem" if number < spec.stems else "stage map", shape(item)]
        for number, item in enumerate(spec.maps)
    ]
    if spec.pooled is not None:
        rows.append([f"f{len(spec.maps)}", "pooled, before the classifier", str(spec.pooled)])
    if spec.tokens is not None:
        rows.append(["tokens", f"patch tokens (and {spec.prefix} prefix)", f"{spec.tokens[0]} x {spec.tokens[1]}"])
    if spec.attention is not None:
        rows.append(["attention", "q, k, v of the last block", " x ".join(map(str, spec.attention))])
    if spec.preact is not None:
        rows.append(["preact", "the stage maps before their last activation", f"{len(spec.preact)} maps"])
    rows += [[name, "further logits", str(spec.num_classes)] for name in spec.heads]
    rows.append(["logits", "", str(spec.num_classes)])
    console.table("", ["tap", "what", "shape"], rows)
    console.say("")


def shape(item: tuple[int, int, int]) -> str:
    return f"{item[0]} x {item[1]} x {item[2]}"
