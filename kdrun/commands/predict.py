"""kdrun predict: classify images in a folder with a trained network."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import Parsed, parse
from kdrun.config.options import LARGEST_BATCH, setting
from kdrun.data.image_tree import class_name
from kdrun.data.inference import Read, find_images, read_batches
from kdrun.display import legible, plural
from kdrun.errors import ConfigError
from kdrun.evaluation.deployed import Card, deploy, find_target
from kdrun.evaluation.loading import numerics_for
from kdrun.evaluation.targets import Which
from kdrun.files import spreadsheet_safe, write_atomically
from kdrun.runs.directory import short_path

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

HELP = """
usage: kdrun predict RUN path=FOLDER|FILE [model=student|teacher] [weights=last|best] [top=5] [save=FILE.csv,FILE.json]
                     [batch_size=64] [device=… precision=… threads=…]
       kdrun predict FILE.onnx path=FOLDER|FILE [top=…] [save=…] [batch_size=…] [threads=…]
       kdrun predict FILE student=NAME dataset=NAME path=FOLDER|FILE [key=value …]

RUN is a run directory, a digest prefix, or a directory of teachers/. FILE.onnx was written by kdrun export. FILE is a
checkpoint, as for kdrun eval. Images in all folders below path are turned upright, converted to RGB, and resized and
normalised exactly as for the run's evaluation.

Shows the first images with their most probable classes, and how often each class was predicted; if the folders are
named like classes, also the accuracy. save= writes every image: image, predicted_class, probability, and probabilities,
the `top` most probable classes with their probabilities (top=all: every class). Images that cannot be read are listed
and left out; the exit code is then 1.
"""

SHOWN = 20  # rows and classes printed
COLUMNS = ("image", "predicted_class", "probability", "probabilities")


class Predictor(Protocol):
    card: Card

    def logits(self, pixels: np.ndarray) -> Tensor: ...


@dataclass
class Options(Which):
    path: Path = setting(help="the images: one file, or a folder", shows="FOLDER|FILE")
    top: int | None = setting(5, low=1, words={"all": None}, help="number of classes written per image")
    batch_size: int = setting(64, low=1, high=LARGEST_BATCH, help="images per batch")
    save: list[Path] = setting([], suffixes=(".csv", ".json"), help="write the predictions for every image")


@dataclass
class Seen:
    """Summary of the images seen, of constant size for any number of images."""

    head: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    right: int = 0
    labelled: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(self.counts.values())


def command(words: list[str]) -> int:
    parsed = parse("predict", words, Options, passes=True)
    if len(parsed.names) != 1:
        raise ConfigError("predict needs one run, checkpoint or ONNX file, and path=FOLDER (kdrun list runs).")
    options = parsed.options
    paths = find_images(options.path)
    predictor, label = make_predictor(parsed)
    card = predictor.card
    images = f"{plural(len(paths), 'image')} of {escape(legible(options.path))}"
    console.say(f"{escape(label)}  {escape(card.network)}, {len(card.class_names)} classes, on {images}")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:  # a JSON line per image keeps memory constant
        seen = predict(predictor, paths, options, spool)
        for place in options.save:
            write_records(place, spool)
    show(seen, card, options)
    return 1 if seen.unreadable else 0


def make_predictor(parsed: Parsed[Options]) -> tuple[Predictor, str]:
    """Return (the network given by the arguments, its name for the screen)."""
    (word,) = parsed.names
    if word.lower().endswith(".onnx"):
        from kdrun.evaluation.export.onnx_format import OnnxNetwork

        threads = parsed.rest.get("threads", "0")
        if parsed.rest.keys() - {"threads"} or not threads.isdigit():
            wrong = next(iter(parsed.rest.keys() - {"threads"}), "threads")
            raise ConfigError(f"{wrong}: an ONNX file takes path, top, batch_size, save and threads (a whole number).")
        place = Path(os.path.expanduser(word))
        if not place.is_file():
            raise ConfigError(f"{word}: no such file; kdrun export RUN creates one.")
        return OnnxNetwork(place, int(threads)), short_path(place)
    target = find_target(word, parsed.options, parsed.rest, parsed.config_dir)
    numerics = numerics_for(target.config)
    numerics.apply()
    return deploy(target, numerics, console.track), target.label


def predict(predictor: Predictor, paths: list[Path], options: Options, spool: IO[str]) -> Seen:
    """Classify every image in order, and write its record to `spool` as a line of JSON."""
    seen = Seen()
    base = options.path if options.path.is_dir() else options.path.parent
    batches = read_batches(paths, predictor.card.preparation, options.batch_size)

    def steps() -> Iterator[int]:
        for number, batch in enumerate(batches):
            for record in records_of(predictor, batch, base, options.top):
                spool.write(json.dumps(record, ensure_ascii=False) + "\n")
                note_record(seen, record, predictor.card)
            seen.unreadable += batch.unreadable
            yield number

    every = steps()
    for _ in console.track(every, -(-len(paths) // options.batch_size), "predicting") if is_long(paths) else every:
        pass
    return seen


def is_long(paths: list[Path]) -> bool:
    return console.out.is_terminal and len(paths) > 1


def records_of(predictor: Predictor, batch: Read, base: Path, top: int | None) -> Iterator[dict[str, Any]]:
    """Yield image, predicted_class, probability and probabilities of each readable image."""
    if not batch.paths:
        return
    names = predictor.card.class_names
    values, labels = predictor.logits(batch.pixels).softmax(1).topk(min(top or len(names), len(names)))
    for path, row, places in zip(batch.paths, values.tolist(), labels.tolist(), strict=True):
        ranked = {names[label]: round(value, 6) for label, value in zip(places, row, strict=True)}
        image = legible(path.relative_to(base).as_posix())
        yield dict(zip(COLUMNS, (image, names[places[0]], round(row[0], 6), ranked), strict=True))


def note_record(seen: Seen, record: dict[str, Any], card: Card) -> None:
    if len(seen.head) < SHOWN:
        seen.head.append(record)
    seen.counts[record["predicted_class"]] += 1
    folders = [name for part in Path(record["image"]).parent.parts if (name := class_name(part)) in card.class_names]
    if folders:
        seen.labelled += 1
        seen.right += folders[-1] == record["predicted_class"]


def write_records(place: Path, spool: IO[str]) -> None:
    """Write the spooled records as CSV (probabilities as JSON in one cell) or as a JSON list."""

    def lines() -> Iterator[dict[str, Any]]:
        spool.seek(0)
        return (json.loads(line) for line in spool)

    def as_csv(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record in lines():
            *plain, ranked = record.values()
            writer.writerow(spreadsheet_safe([*plain, json.dumps(ranked, ensure_ascii=False)]))
        text.flush()
        text.detach()

    def as_json(file: IO[bytes]) -> None:
        for number, record in enumerate(lines()):
            file.write((",\n" if number else "[\n").encode() + json.dumps(record, ensure_ascii=False).encode())
        file.write(b"\n]\n" if spool.tell() else b"[]\n")

    write_atomically(place, as_csv if place.suffix.lower() == ".csv" else as_json)


def show(seen: Seen, card: Card, options: Options) -> None:
    """Print the first images, the classes, the unreadable images, and the location of the rest."""
    width = min(options.top or len(card.class_names), len(card.class_names), 5)
    columns = ["image", "class", "%", *(["runners-up"] if width > 1 else [])]
    rows = []
    for record in seen.head:
        others = list(record["probabilities"].items())[1:width]
        then = ", ".join(f"{name} {100 * value:.2f}" for name, value in others)
        rows.append(
            [
                record["image"],
                record["predicted_class"],
                f"{100 * record['probability']:.2f}",
                *([then] if width > 1 else []),
            ]
        )
    if rows:
        console.table("", columns, rows)
    if seen.images > len(seen.head):
        more = f"… and {seen.images - len(seen.head):,} more; "
        common = [f"{name} {count:,}" for name, count in seen.counts.most_common(SHOWN)]
        rest = len(seen.counts) - len(common)
        others = f" and {plural(rest, 'other class', 'other classes')}" if rest else ""
        console.say(f"{more}predicted: {escape(', '.join(common))}{others}")
    if seen.labelled == seen.images > 0:
        console.say(
            f"the folders are named like classes: [bold]{100 * seen.right / seen.images:.2f} %[/] of "
            f"{plural(seen.images, 'prediction')} agree with them"
        )
    console.unreadable(seen.unreadable, seen.images)
    if options.save:
        console.note(f"wrote {', '.join(short_path(place.absolute()) for place in options.save)}")
    elif seen.images:
        console.note("save=FILE.csv,FILE.json writes the probabilities of every image")
