"""What a reader must know of a published value beside ours, and of the teachers behind a table. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kdrun.runs.published import Published

SELECTION, SETTINGS, TEACHER = "†", "‡", "§"  # a remark begins with its mark
RULES = {
    "top1_best": "the best epoch on the test set",
    "top1_val_selected": "the epoch that the validation split chose",
}
TEACHER_BLOCK = re.compile(r"^teacher:\n(?:[ -].*\n)+", re.MULTILINE)


def remarks(
    theirs: Published, value: str, settings: list[str], teacher: tuple[float, float] | None, margin: float
) -> list[str]:
    """Whatever is not alike between ours and a published figure. teacher: (ours, the published one's accuracy)."""
    found = []
    ours, published = RULES.get(value, "the last epoch"), RULES["top1_best"] if theirs.selection == "best" else ""
    if (published or "the last epoch") != ours:
        found.append(f"{SELECTION} published: of {published or 'the last epoch'}; ours: of {ours}")
    if settings:
        found.append(f"{SETTINGS} settings other than the publication's ({'; '.join(settings)})")
    if teacher is not None and abs(teacher[0] - teacher[1]) > margin:
        found.append(f"{TEACHER} the teacher has {teacher[0]:.2f}, the published one {teacher[1]:.2f}")
    return found


def teachers_note(places: Iterable[Iterable[Path]]) -> list[str]:
    """Whether the seeds of a place share one teacher. places: the runs of each place whose method has a teacher that
    learned before."""
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
            "One teacher taught all seeds: ± and intervals hold nothing of what another teacher would change "
            "(teacher.seed=${seed} trains one for each)."
        ]
    return ["Each seed has a teacher of its own: ± and intervals hold the spread of teachers too."] if own else []


def teacher_settings(run: Path) -> str:
    """The teacher's part of a run's config.yaml; nothing where it cannot be read."""
    try:
        found = TEACHER_BLOCK.search((run / "config.yaml").read_text())
    except (OSError, ValueError):
        return ""
    return found[0] if found else ""
