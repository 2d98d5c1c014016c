"""Shape bias of collected decisions: the CSV files of the public cue-conflict experiments."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from kdrun.errors import DataError
from kdrun.evaluation.bias import ShapeBias

NEEDED = ("subj", "object_response", "imagename")
CUES = re.compile(r"([a-z]+)\d*-([a-z]+)\d*\.\w+$")  # cat7-elephant1.png: shape of a cat, texture of an elephant


def read_decisions(place: Path) -> dict[str, ShapeBias]:
    """Return subject -> shape bias, in order of appearance, from a CSV with columns subj, object_response and
    imagename, as in Geirhos et al. (ICLR 2019) and model-vs-human. Images whose two cues belong to the same class are
    left out.

    Raises DataError if it is not such a file, or if no decision names a cue.
    """
    try:
        with place.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"decisions={place}: cannot be read ({error}).") from error
    lacking = [name for name in NEEDED if not rows or name not in rows[0]]
    if lacking:
        raise DataError(f"decisions={place}: no column {', '.join(lacking)}; expected a CSV with {', '.join(NEEDED)}.")
    subjects: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        subjects.setdefault(row["subj"], []).append((str(row["object_response"]), str(row["imagename"])))
    found = {subject: of_subject(decisions, place) for subject, decisions in subjects.items()}
    if not any(one.shape + one.texture for one in found.values()):
        raise DataError(
            f"decisions={place}: no decision names the shape or the texture of its image; are "
            "object_response and imagename of the same classes?"
        )
    return found


def of_subject(decisions: Iterable[tuple[str, str]], place: Path) -> ShapeBias:
    shape = texture = count = 0
    for response, image in decisions:
        cues = CUES.search(image)
        if cues is None:
            raise DataError(f"decisions={place}: imagename {image}: expected SHAPE-TEXTURE, as in cat7-elephant1.png.")
        if cues[1] == cues[2]:
            continue
        count += 1
        shape += response == cues[1]
        texture += response == cues[2]
    return ShapeBias(shape, texture, count)
