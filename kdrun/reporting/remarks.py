"""Remarks on published values shown with ours, and on the teachers behind a table. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kdrun.runs.published import Published

SELECTION, SETTINGS, TEACHER = "†", "‡", "§"  # each remark begins with its mark
RULES = {
    "top1_best": "the best epoch on the test set",
    "top1_val_selected": "the epoch chosen on the validation split",
}
TEACHER_BLOCK = re.compile(r"^teacher:\n(?:[ -].*\n)+", re.MULTILINE)


def remarks(
    theirs: Published, value: str, settings: list[str], teacher: tuple[float, float] | None, margin: float
) -> list[str]:
    """Return all differences between ours and a published value. teacher: (our teacher's, the published teacher's
    accuracy)."""
    found = []
    ours, published = RULES.get(value, "the last epoch"), RULES["top1_best"] if theirs.selection == "best" else ""
    if (published or "the last epoch") != ours:
        found.append(f"{SELECTION} published: {published or 'the last epoch'}; ours: {ours}")
    if settings:
        found.append(f"{SETTINGS} settings differ from the publication's ({'; '.join(settings)})")
    if teacher is not None and abs(teacher[0] - teacher[1]) > margin:
        found.append(f"{TEACHER} the teacher has {teacher[0]:.2f}, the published one {teacher[1]:.2f}")
    return found


def teachers_note(places: Iterable[Iterable[Path]]) -> list[str]:
    """Return a note on whether the seeds of a place share one teacher. places: the runs of each place whose method
    has a pretrained teacher."""
    shared = own = 0
    for runs in places:
        teachers = [teacher for run in runs if (teacher := teacher_settings(run))]
        if len(teachers) > 1:
            shared += len(set(teachers)) < len(teachers)
            own += len(set(teachers)) == len(teachers)
    if shared and own:
        return [f"Of {shared + own} cells, {own} have a teacher for each seed, {shared} one teacher for several seeds."]
    if shared:
        return [
            "All seeds share one teacher: ± and intervals do not include the variation between teachers "
            "(teacher.seed=${seed} trains one for each seed)."
        ]
    return ["Each seed has its own teacher: ± and intervals include the variation between teachers."] if own else []


def teacher_settings(run: Path) -> str:
    """Return the teacher's part of a run's config.yaml; an empty string if it cannot be read."""
    try:
        found = TEACHER_BLOCK.search((run / "config.yaml").read_text())
    except (OSError, ValueError):
        return ""
    return found[0] if found else ""
