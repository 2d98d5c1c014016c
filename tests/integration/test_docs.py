"""README and docs: every command in them is accepted, every figure is in the file next to it, generated pages are
current, links lead somewhere."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdrun.cli import COMMANDS
from kdrun.config.arguments import NoOptions, parse
from kdrun.evaluation.stats import mean_std, verdict
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
GENERATED = ("settings.md", "methods.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Too slow for every run of the tests: their settings are read here, and slow tests run them.
READ_ONLY = ("bench", "bias", "check", "diagnose", "export", "gradcam", "testset", "tune")
PLACEHOLDER = re.compile(r"…|\b(NAME|KEY|COMMAND|FILE|FOLDER)\b")
NUMBER = re.compile(r"\d+\.\d+")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of these languages."""
    return [body for language, body in BLOCK.findall(page.read_text()) if language in languages]


def command_lines(page: Path) -> list[str]:
    """Return the command lines of a page: of its shell blocks, and of code in its text that begins with kdrun."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    printed = [line for block in blocks(page, "console") if "error:" not in block for line in block.splitlines()]
    lines += [line.removeprefix("$ ") for line in printed if line.startswith("$ ")]
    text = BLOCK.sub("", page.read_text()) if page.name not in GENERATED else ""
    inline = [line.replace("\\|", "|") for line in re.findall(r"`(kdrun [^`]+)`", text)]
    lines += [line for line in inline if not PLACEHOLDER.search(line)]
    return [re.split(r"\s+#\s", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


def test_every_published_file_is_committed():
    """A file that only lies in the working tree is missing from every clone."""
    tracked = subprocess.run(["git", "ls-files", "outputs"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    lying = {str(file.relative_to(ROOT)) for file in (ROOT / "outputs/published").iterdir()}
    assert lying == set(tracked.stdout.split())


@pytest.fixture
def user(home, tmp_path, monkeypatch, image_folder) -> Path:
    """A folder like a reader's: outputs with finished runs, photos, and the code that the pages print."""
    shutil.copytree(home, tmp_path / "outputs")
    image_folder("photos", size=(16, 16))
    (tmp_path / "image.png").write_bytes(next((tmp_path / "photos").rglob("*.png")).read_bytes())
    write_printed_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("kdrun.commands.train.train", lambda config, overrides: {})
    monkeypatch.setattr("kdrun.commands.train.dry_run", lambda config, overrides: 0)
    monkeypatch.setattr("kdrun.commands.train.dry_sweep", compose_first)
    monkeypatch.setattr("kdrun.sweeps.run.run_sweep", compose_first)
    return tmp_path


def write_printed_files(folder: Path) -> None:
    """Write the code and YAML of README and docs whose first line is a comment with a file's name."""
    for page in PAGES:
        for block in blocks(page, "python", "yaml"):
            if named := re.match(r"# (\S+\.(?:py|yaml))\n", block):
                path = folder / named.group(1)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)


def compose_first(sweep: Any, launcher: dict[str, str], *rest: Any) -> int:
    """Compose one cell of a sweep instead of training all. rest: of dry_sweep (config_dir), of run_sweep (command,
    config_dir, display)."""
    from kdrun.config.compose import load

    load(sweep.specs[0].overrides, rest[0] if len(rest) == 1 else rest[1])
    return 0


def try_line(line: str, kdrun, user: Path) -> list[str]:
    """Run a command line of kdrun on the reader's folder, or read its settings where it is slow; return what fails."""
    if "$(" in line:
        line = line[line.index("$(") + 2 : line.rindex(")")]
    words = shlex.split(line)
    words = words[words.index("kdrun") + 1 :]
    if not words or words[0].startswith("-"):
        return []
    runs = iter(sorted(map(str, (user / "outputs").glob("runs/*/*/*/s[01]-*"))))
    words = [next(runs) if word == "RUN" else word.replace("digits/*", "fake/*") for word in words]
    if words[0] in ("table", "report"):
        words = [word.replace("digits_table", "mine") for word in words]
        words = [word for word in words if not word.startswith(("evaluate", "against", "figures"))]
    if "--help" in words:
        words = [words[0], "--help"]
    if (words[0] == "eval" and any(word.endswith(".pth") for word in words)) or words[-1].endswith("student.onnx"):
        return []
    if words[0] in READ_ONLY or "student.onnx" in words or "output_root=outputs" in words:
        module = importlib.import_module(f"kdrun.commands.{words[0]}")
        parse(words[0], words[1:], getattr(module, "Options", NoOptions), passes=True)
        return []
    code, out, err = kdrun(*words)
    allowed = (0, 1) if words[0] in ("where", "doctor") else (0,)
    return [] if code in allowed else [f"{line}\n{out[-2000:]}{err}"]


def test_every_command_of_kdrun_is_explained_somewhere():
    named = {shlex.split(line)[1] for page in PAGES for line in command_lines(page) if line.startswith("kdrun ")}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("name", [name for name in NAMES if command_lines(ROOT / name)])
def test_commands_of_the_pages_are_accepted(name, kdrun, user):
    refused: list[str] = []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in command_lines(ROOT / name):
        first = line.split()[0]
        if first.startswith(("scripts/", ".ci/")):
            assert (ROOT / first).is_file(), line
        elif first == "pip":
            assert set(re.findall(r"kdrun\[(\w+)\]", line)) <= set(extras), line
        elif "kdrun" in line.split() or "$(kdrun" in line:
            refused += try_line(line, kdrun, user)
    assert not refused, "\n".join(refused)


def test_printed_errors_are_those_that_are_printed(kdrun, user):
    shown = 0
    for page in PAGES:
        for block in blocks(page, "console"):
            command, _, output = block.removeprefix("$ ").partition("\n")
            if "error:" in output:
                _, _, err = kdrun(*shlex.split(command)[1:])
                assert err == output
                shown += 1
    assert shown


def test_the_demo_trains_a_sweep_that_exists(kdrun, user):
    lines = (ROOT / "scripts" / "demo").read_text().splitlines()
    lines = [line.split("|")[0] for line in lines if line.lstrip(" exc").startswith(".venv/bin/kdrun")]
    assert len(lines) == 3
    words = shlex.split(lines[0].replace('"$@"', ""))
    assert kdrun(*words[words.index(".venv/bin/kdrun") + 1 :])[0] == 0


def test_python_of_the_guide_runs(user):
    (block,) = [block for block in blocks(ROOT / "docs" / "guide.md", "python") if "kdrun.load" in block]
    run = next((user / "outputs").glob("runs/*/*/*/s0-*"))
    names: dict[str, object] = {}
    exec(block.replace('"RUN"', repr(str(run))), names)
    assert tuple(names["logits"].shape) == (1, 4)  # type: ignore[attr-defined]
    assert len(names["table"]) == 2  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["make_docs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(make_docs):
    for path, content in make_docs.pages().items():
        assert path.read_text() == content, f"run scripts/make_docs.py: {path.name} is not what it writes"


# --- figures ---


def passages(page: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield (text, published files linked in it) of each table row, and of each paragraph, list item and quotation with
    the table below it."""
    text = BLOCK.sub("", page.read_text())
    linked: list[Path] = []
    for part in re.split(r"\n\s*\n|\n(?=[|\-] )", text):
        files = [
            (page.parent / target).resolve() for target in re.findall(r"\]\(([^()\s]*outputs/published/[\w.]+)\)", part)
        ]
        files = [file for file in files if file.suffix in (".csv", ".md") and file.name != "README.md"]
        linked = files or ([] if part.startswith("#") else linked)
        if linked:
            yield part, linked


def figures_of(file: Path) -> set[str]:
    """Return every number of a published file, as it is and rounded, and means and deviations of its seeds."""
    text = file.read_text()
    thousands = [word.replace(",", "") for word in re.findall(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text)]
    values = [float(word) for word in [*re.findall(r"\d+(?:\.\d+)?", text), *thousands]]
    if file.name == "precision_digits_10.csv":
        cells: dict[tuple[str, str], list[float]] = {}
        for line in text.splitlines()[1:]:
            fields = line.split(",")
            cells.setdefault((fields[3], fields[4]), []).append(float(fields[8]))
        values += [value for cell in cells.values() for value in mean_std(cell) if value is not None]
    return {f"{value:.{digits}f}" for value in values for digits in (1, 2)}


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/bias.md"])
def test_figures_are_in_the_files_next_to_them(name):
    compared = 0
    for text, files in passages(ROOT / name):
        known = set().union(*map(figures_of, files))
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)
        for figure in NUMBER.findall(plain):
            assert figure in known or figure in allowed(text), (
                f"{figure} is not in {[file.name for file in files]}: {text[:200]}"
            )
            compared += 1
    assert compared > 10


def test_the_printed_end_of_the_demo_is_the_measured_one():
    (block,) = [block for block in blocks(ROOT / "README.md", "console") if "scripts/demo" in block]
    known = figures_of(ROOT / "outputs" / "published" / "demo.md")
    found = NUMBER.findall(block.partition("report  ")[0])
    assert len(found) > 10 and set(found) <= known


def allowed(text: str) -> set[str]:
    """Return differences that are printed next to the two figures that they are the difference of."""
    return {"0.02"} if "resnet56" in text else set()


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_verdicts_on_p1_are_those_of_its_file_and_of_todays_rule(name):
    with (ROOT / "outputs" / "published" / "tutorial.csv").open() as file:
        measured = {f"{float(row['mean']):.2f}": row["verdict"] for row in csv.DictReader(file)}
    rows = re.findall(
        r"^\|[^|]*\| (\d+\.\d+) ± (\d+\.\d+) \| (\d+\.\d+) \|.*\b(reproduced|unclear|differs) \|",
        (ROOT / name).read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 3
    for mean, std, published, word in rows:
        low, high = float(mean) - float(std), float(mean) + float(std)
        assert measured[mean] == word
        assert verdict([low, float(mean), high], float(published), 0.5).word == word


# --- the reader's first hour, on tiny settings ---


@pytest.mark.slow
def test_the_journey_of_the_readme(home, kdrun, tmp_path, monkeypatch, image_folder):
    """Everyday commands and an own method, from README and docs, as typed but for the settings that make them small."""
    image_folder("photos", count=8, size=(16, 16))
    write_printed_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = [word for word in TINY if not word.startswith("dataset")] + ["dataset.image_size=16", "epochs=1"]

    def run(*words: str) -> str:
        code, out, err = kdrun(*words)
        assert code == 0, f"{words}\n{out[-3000:]}{err}"
        return out

    run("train", "-m", "method=none,kd", "seed=0,1", "name=mine", *TINY, "epochs=1", "launcher.processes=0")
    assert "kd" in run("table", "mine")
    run("report", "mine")
    run("train", "method=dkd", "dry_run=true", *TINY, "epochs=1")
    run("data", "photos", "save=sheet.png")
    run("train", "dataset=folder", "dataset.root=photos", *small)
    mine = str(next((tmp_path / "outputs").glob("runs/folder/*/kd/s0-*")))
    run("predict", mine, "path=photos", "save=out.csv")
    run("export", mine)
    run("diagnose", mine)
    run("gradcam", mine, "images=2", "overlap=4")
    run("check", "method=logit_mse", "--config-dir", "my_conf")
    run("train", "method=logit_mse", "--config-dir", "my_conf", *TINY, "epochs=1")
    run(
        "train",
        "student=my_package.models:TinyNet",
        "student.kwargs.depth=2",
        *[w for w in TINY if w != "student=resnet8"],
        "epochs=1",
    )
    run("testset", "scramble", "dataset=digits", "grid=4", "dataset.test_limit=20")
    run("eval", str(next((tmp_path / "outputs").glob("runs/fake/*/kd/s0-*"))), "testset=noise")
