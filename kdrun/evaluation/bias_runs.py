"""Predictions behind a bias grid: those of finished runs and their teacher on every test set, measured if missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.options import RunConfig
from kdrun.data.splits import ArraySet
from kdrun.display import Track
from kdrun.errors import DataError, KdrunError
from kdrun.evaluation.bias_grid import CLEAN, Column, Row
from kdrun.evaluation.loading import as_trained, numerics_for, open_data, tell_unreadable
from kdrun.evaluation.predictions import Answers, answer, read_answers, write_answers
from kdrun.evaluation.targets import Target, Which, open_networks, target_of_run
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.cache import Derived, derived_tests, fingerprint, grouped
from kdrun.evaluation.testsets.registry import file_stem, parse, title
from kdrun.evaluation.testsets.sheet import write_sheet
from kdrun.evaluation.trusted import code_now
from kdrun.files import sha256_of
from kdrun.runs.directory import RunDirectory
from kdrun.runs.identity import digest_of
from kdrun.runs.ledger import Cell, Ledger
from kdrun.training.build import Data, make_eval_loader

if TYPE_CHECKING:
    from kdrun.evaluation.examine import Subject


@dataclass
class Questions:
    """Test sets of one data set. sets: title -> (images, labels, textures, identity)."""

    data: Data
    sets: dict[str, tuple[ArraySet, np.ndarray | None, dict[str, Any]]]
    names: dict[str, str]  # title -> the set's name
    stems: dict[str, str]  # title -> stem of the file of predictions


class Answering:
    """Predictions of runs, from their evals/ folders or measured now. settings: where to measure, as for kdrun eval."""

    def __init__(
        self,
        ledger: Ledger,
        root: Path,
        testsets: list[str],
        settings: dict[str, str],
        track: Track,
        trust: bool = False,
    ):
        self.trust = trust
        self.ledger, self.root, self.testsets, self.settings, self.track = ledger, root, testsets, settings, track
        self.questions: dict[str, Questions] = {}  # by data set
        self.notes: list[str] = []
        self.made: dict[str, tuple[NamedSet, Derived, ArraySet, list[str]]] = {}  # stem -> content of a contact sheet
        self.found: dict[str, dict[str, Answers] | str] = {}  # by run: its predictions, or why there are none

    def column(self, name: str) -> Column:
        """Return one column of the grid, as far as its runs are finished."""
        cells = [cell for cell in self.ledger.cells if cell.column == name]
        done = [cell for cell in cells if cell.run is not None and RunDirectory(self.root / cell.run).finished]
        shape = self.ledger.shape
        targets = self.targets(done)
        reference = self.reference(targets)
        rows = {
            cell.row: Row(cell.row, method=cell.method, student=cell.student, teacher=cell.teacher) for cell in cells
        }
        for place in self.track(iter(range(len(done))), len(done), f"predictions of {name}"):
            cell = done[place]
            target = targets.get(str(cell.run))
            answers = None if target is None else self.of_run(str(cell.run), target)
            if answers is None:
                continue
            rows[cell.row].seeds[cell.seed] = answers
            rows[cell.row].control = self.teacher_of(target) != reference
            result = RunDirectory(self.root / str(cell.run)).result()
            if isinstance(result.get("train_seconds"), int | float) and result.get("epochs"):
                rows[cell.row].seconds.append(result["train_seconds"] / result["epochs"])
        learned = next((run for run, target in targets.items() if self.teacher_of(target) == reference), None)
        teacher = None if reference is None or learned is None else self.of_teacher(reference, learned)
        names = {CLEAN: ""}
        for asked in self.questions.values():
            names |= asked.names
        testsets = [CLEAN, *(text for text in self.testsets if text in names)]
        ordered = [*(row for row in shape.rows if row in rows), *(row for row in rows if row not in shape.rows)]
        dataset = cells[0].dataset if cells else ""
        taught = targets[learned].config.teacher.name if reference is not None and learned is not None else None
        return Column(
            name,
            dataset,
            taught,
            teacher,
            [rows[row] for row in ordered],
            testsets,
            names,
            shape.baseline,
            shape.benchmark,
        )

    def write_sheets(self, folder: Path) -> list[Path]:
        """Write the contact sheets of the derived sets next to the grid."""
        for stem, shown in self.made.items():
            write_sheet(folder / f"sheet-{stem}.png", *shown)
        return [folder / f"sheet-{stem}.png" for stem in self.made]

    def targets(self, cells: list[Cell]) -> dict[str, Target]:
        """Return run -> its network; runs that cannot be loaded are added to the notes."""
        found: dict[str, Target] = {}
        for cell in cells:
            try:
                found[str(cell.run)] = target_of_run(self.root / str(cell.run), Which(trust=self.trust), self.settings)
            except KdrunError as error:
                self.notes.append(f"{cell.row}, {cell.column}, seed {cell.seed}: {error}")
        return found

    def teacher_of(self, target: Target | None) -> str | None:
        """Return the stored teacher of a run; None if there is none, and for the untrained control."""
        taught = None if target is None else target.teacher
        return None if taught is None or taught.weights is None else str(taught.weights)

    def reference(self, targets: dict[str, Target]) -> str | None:
        """Return the teacher that most runs of a column were trained with."""
        counts = Counter(found for target in targets.values() if (found := self.teacher_of(target)) is not None)
        return counts.most_common(1)[0][0] if counts else None

    def of_run(self, run: str, target: Target) -> dict[str, Answers] | None:
        """Return test set -> predictions of a student; None, with one note, if it cannot be measured."""
        if run not in self.found:
            try:
                made = RunDirectory(self.root / run).result().get("finished_at")
                self.found[run] = self.answers(self.root / run, target, made)
            except KdrunError as error:
                self.found[run] = str(error)
                self.notes.append(f"{run}: {error}")
        answers = self.found[run]
        return None if isinstance(answers, str) else answers

    def of_teacher(self, weights: str, run: str) -> dict[str, Answers] | None:
        """Return the predictions of the teacher of `run`, stored with the teacher if it is in the store, else in
        caches/answers/."""

        if weights not in self.found:
            try:
                target = target_of_run(self.root / run, Which("teacher", trust=self.trust), self.settings)
                stored = None if target.own is None else target.own.stored
                made = sha256_of(Path(weights)) if stored is None else stored.result().get("finished_at")
                code = code_now(target.config, target.parts)
                if stored is None and code:  # the same weights with edited code are another network
                    made = digest_of([made, code])
                folder = self.root / "caches" / "answers" / str(made)[:12] if stored is None else stored.path
                self.found[weights] = self.answers(folder, target, made)
            except KdrunError as error:
                self.found[weights] = str(error)
                self.notes.append(f"teacher {weights}: {error}")
        answers = self.found[weights]
        return None if isinstance(answers, str) else answers

    def answers(self, folder: Path, target: Target, made: str | None) -> dict[str, Answers]:
        """Return the predictions on every test set, from evals/ if they match in images, weights (`made`) and
        numerics."""
        asked = self.asked(target.config)
        config = target.config
        numerics = numerics_for(config)
        subject: Subject | None = None
        found = {}
        for name, (images, textures, identity) in asked.sets.items():
            place = folder / "evals" / f"{asked.stems[name]}.answers.npz"
            wanted = {
                "schema": 1,
                "images": identity,
                "made": made,
                "precision": numerics.precision,
                "device": numerics.torch_device.type,
            }
            answers = read_answers(place, wanted)
            if answers is None:
                numerics.apply()
                data = as_trained(asked.data, target.run)
                subject = subject or self.subject(target, data, numerics)
                answers = answer(subject, make_eval_loader(data, images, numerics), textures)
                write_answers(place, answers, wanted)
            found[name] = answers
        return found

    def subject(self, target: Target, data: Data, numerics: Any) -> Subject:
        from kdrun.evaluation.examine import Subject

        network, deployed, _ = open_networks(replace(target, teacher=None), data, numerics)
        return Subject(network, deployed)

    def asked(self, config: RunConfig) -> Questions:
        """Return the test sets of a run's data set, created or loaded once. Raises KdrunError if one cannot be
        created."""
        key = repr(config.dataset)
        if key in self.questions:
            return self.questions[key]
        plan, data = open_data(config, self.track)
        tell_unreadable(data)
        test = data.splits.test
        if not isinstance(test, ArraySet):
            raise DataError(
                f"dataset={config.dataset.name} streams its files; derived sets are made of images in "
                "memory (cifar10, cifar100, digits, fake)."
            )
        sets: dict[str, tuple[ArraySet, np.ndarray | None, dict[str, Any]]] = {
            CLEAN: (test, None, {"data": fingerprint(test)})
        }
        names, stems = {}, {CLEAN: "test"}
        for group in grouped([parse(text) for text in self.testsets]):
            try:
                found = derived_tests(group, plan, data.splits, self.track)
            except KdrunError as error:  # the grid continues without it
                self.notes += [f"testset={title(wished)} is left out: {error}" for wished in group]
                continue
            for wished, made in zip(group, found, strict=True):
                text, stem = title(wished), file_stem(wished)
                self.made.setdefault(stem, (wished, made, test, data.splits.class_names))
                sets[text] = (made.data, made.texture_labels, made.manifest)
                names[text], stems[text] = wished.name, stem
        self.questions[key] = Questions(data, sets, names, stems)
        return self.questions[key]
