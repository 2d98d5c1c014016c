"""kdrun report: the page's content, its charts' geometry, and what a browser makes of it. No network is trained."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kdrun.reporting.html import figures, run_pages
from kdrun.reporting.html.charts import Frame, Mark, frontier, log_ticks, nice_ticks, scatter, thinned
from kdrun.reporting.html.page import report_page
from kdrun.reporting.html.run_files import band_of, differences, read_curves, read_runs, settings_of
from kdrun.reporting.table import table_of
from kdrun.runs.identity import digest_of
from kdrun.runs.ledger import Cell, Ledger, TableShape, write_ledger
from kdrun.runs.result import RESULT_KEYS

HOSTILE = """<img src=x onerror="alert(1)"> & 'kd'</title><script>alert(2)</script>"""
COLUMN = "cifar100 · wrn_40_2 → wrn_40_1"
CONFIG = """student:
  name: wrn_40_1
method:
  _target_: kdrun.methods.{method}.Method
  betas:
  - 0.9
  - 0.99
optimizer:
  lr: {lr}
seed: {seed}
note: "<b>&"
"""


def make_run(
    root: Path,
    method: str,
    seed: int,
    top1: float | None,
    *,
    epochs: int = 30,
    failed: str = "",
    lr: float = 0.05,
    **changes,
) -> str:
    """A run directory as a finished run leaves it; half done, or failed for a reason, where top1 is None."""
    digest = digest_of([method, seed, lr])
    teacher = None if method == "none" else "wrn_40_2"
    place = Path("runs/cifar100") / f"{teacher or 'none'}-wrn_40_1" / method / f"s{seed}-{digest[:8]}"
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(method=method, seed=seed, lr=lr))
    provenance = {
        "started_at": "2026-01-01T00:00:00+00:00",
        "command": ["kdrun", "train", HOSTILE, f"seed={seed}"],
        "kdrun": "0.1.0",
        "python": "3.11.7",
        "libraries": {"torch": "2.8.0"},
        "hardware": {"cpu": "<Some> CPU", "cores": 2, "cpu_kind": "AVX512_BF16"},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    final = top1 or 40.0
    rows = [
        line
        for epoch in range(1, epochs + 1)
        for line in (
            f"{epoch},train,loss,{4 / epoch!r}",
            f"{epoch},train,loss/ce,{4 / epoch!r}",
            f"{epoch},test,top1,{final - 60 / epoch + 60 / epochs!r}",
        )
    ]
    (folder / "metrics.csv").write_text("\n".join(["epoch,split,metric,value", *rows]) + "\n")
    if failed:
        (folder / "failed.txt").write_text(f"2026-01-01T00:00:00+00:00 {failed}\n")
    if top1 is not None:
        result = (
            dict.fromkeys(RESULT_KEYS)
            | {
                "schema": 1,
                "dataset": "cifar100",
                "teacher": teacher,
                "student": "wrn_40_1",
                "method": method,
                "seed": seed,
                "digest": digest,
                "epochs": epochs,
                "precision": "bf16",
                "compile": False,
                "threads": 1,
                "device": "cpu",
                "teacher_top1": 76.46,
                "top1_last": top1,
                "top1_best": top1 + 0.3,
                "top1_best_epoch": 3,
                "top5_last": 90.0,
                "params": 569780,
                "extra_params": 0,
                "flops": 83_000_000,
                "images_per_second": 900.0 - 10 * top1,
                "train_seconds": 60.5,
                "peak_memory": 1_000_000,
                "finished_at": f"2026-01-0{seed + 1}T10:00:00+00:00",
                "overrides": [f"method={method}", f"seed={seed}"],
            }
            | changes
        )
        (folder / "result.json").write_text(json.dumps(result))
    return str(place)


ROWS = {
    "Student": ("none", (71.2, 71.5, 71.3)),
    "KD": ("kd", (73.5, 73.7, 73.6)),
    "SRD": ("srd", (77.7, 77.8, 77.8)),
    HOSTILE: ("dkd", (74.9, 74.1, 74.6)),
}


@pytest.fixture
def ledger(outputs) -> Ledger:
    """Four methods with three seeds each, one that failed and one that was never begun."""
    cells = [
        Cell(
            row,
            COLUMN,
            seed,
            [],
            make_run(outputs, method, seed, top1),
            "cifar100",
            None if method == "none" else "wrn_40_2",
            "wrn_40_1",
            method,
        )
        for row, (method, values) in ROWS.items()
        for seed, top1 in enumerate(values)
    ]
    broken = make_run(outputs, "dist", 0, None, failed='the loss <dist> & "kd" is not finite at step 7', epochs=4)
    cells.append(Cell("DIST", COLUMN, 0, [], broken, "cifar100", "wrn_40_2", "wrn_40_1", "dist"))
    cells.append(Cell("DIST", COLUMN, 1, [], "runs/cifar100/none/x/s1-0", "cifar100", "wrn_40_2", "wrn_40_1", "dist"))
    shape = TableShape([*ROWS, "DIST"], [COLUMN], "top1_last", "Student", "KD", "Teacher", "p3")
    made = Ledger("small", "A <small> table", "kdrun train -m sweep=small 'a<b'", shape, cells)
    write_ledger(outputs, made)
    return made


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and gathers ids, links, text by tag."""

    VOID = {"meta", "link", "br", "img", "path", "rect", "circle", "polyline"}

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags[tag] += 1
        assert not any(name.startswith("on") for name in found), found
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("src", "href", "action", "data") if name in found]
        if tag == "p" and self.open[-1:] == ["p"]:
            self.open.pop()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, text):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(text)


@pytest.fixture
def page(ledger, outputs) -> str:
    return report_page(ledger, outputs)


def test_the_page_is_well_formed_and_asks_for_nothing(page):
    read = Reader(page)
    assert read.tags["script"] == 1 and read.tags["style"] == 1 and read.tags["img"] == 0
    assert all(link.startswith(("#", "data:")) for link in read.links)
    assert {link[1:] for link in read.links if link.startswith("#")} <= set(read.ids)
    assert len(read.ids) == len(set(read.ids))
    assert not re.search(r"https?://|@import|url\(", page.replace("http-equiv", ""))
    assert HOSTILE not in page and html.escape(HOSTILE) in page
    assert "alert(2)" not in read.texts["script"][0]


def test_the_header(page):
    assert "A &lt;small&gt; table (small)" in page
    assert "<code>kdrun train -m sweep=small &#x27;a&lt;b&#x27;</code>" in page
    assert "<b>12</b> of 14 cells done" in page
    assert '<b class="bad">1</b> failed' in page and "<b>1</b> missing" in page
    assert "2026-01-01 10:00 to 2026-01-03 10:00 UTC" in page
    assert "&lt;Some&gt; CPU (AVX512_BF16), 2 cores" in page
    assert "kdrun 0.1.0, Python 3.11.7, PyTorch 2.8.0" in page
    assert "<dd>bf16</dd>" in page


def test_the_cells_say_what_the_table_says(page, ledger, outputs):
    srd = table_of(ledger, outputs).entries["SRD", COLUMN]
    assert srd.best and srd.verdict.word == "differs"
    line = re.search(r'<tr><th scope="row" data-sort="SRD">.*?</tr>', page)[0]
    assert f'data-sort="{srd.mean:.6f}" style="--h:1.00"' in line
    assert "<b>77.77 ± 0.06 (3) ‡</b></a>" in line, "30 epochs are not the published 240"
    assert f"Δ +{srd.mean - 71.3333333:.2f}" in line
    assert f">published {srd.published.value:.2f}</span>" in line and "≠&nbsp;differs" in line
    kd = re.search(r'<tr><th scope="row" data-sort="KD">.*?</tr>', page)[0]
    assert "<b>" not in kd and "✓&nbsp;reproduced" in kd
    assert 'style="--h:0.00"' in re.search(r'data-sort="Student">.*?</tr>', page)[0]
    failed = re.search(r'data-sort="DIST">.*?</tr>', page)[0]
    assert ">failed</a>" in failed and "1 missing" in failed
    assert "the loss &lt;dist&gt; &amp; &quot;kd&quot; is not finite at step 7" in page


def test_a_cell_leads_to_its_runs(page):
    anchor = re.search(r'data-sort="KD">KD</th><td[^>]*><a href="#(p\d+)">', page)[1]
    part = re.search(rf'<details class="place" id="{anchor}">.*?(?=<details class="place"|</section>)', page, re.S)[0]
    assert "<b>KD</b>" in part and part.count('<details class="run"') == 3
    assert part.count("kdrun.methods.kd.Method") == 1, "the configuration once"
    assert "note: &quot;&lt;b&gt;&amp;&quot;" in part
    assert '<th scope="row">seed</th><td>2</td><td>0</td>' in part
    assert part.count("provenance.json: same as") == 2
    assert '<tr><th scope="row">params</th><td class="same" colspan="3">569,780</td></tr>' in part
    assert '<tr><th scope="row">top1_last</th><td>73.5</td><td>73.7</td><td>73.6</td></tr>' in part
    assert '<tr><th scope="row">overrides, shared</th><td class="same" colspan="3">method=kd</td></tr>' in part
    assert "<td>seed=0</td><td>seed=1</td><td>seed=2</td>" in part
    assert part.count('<svg class="chart small') == 6  # accuracy and loss of three runs


def test_other_settings_are_shown_in_full_where_they_are_many(ledger, outputs, monkeypatch):
    monkeypatch.setattr(run_pages, "MAX_DIFFERENCES", 0)
    text = report_page(ledger, outputs)
    assert text.count("kdrun.methods.kd.Method") == 3


def test_the_cap_on_curves_is_said(ledger, outputs, monkeypatch):
    monkeypatch.setattr(run_pages, "MAX_CURVES", 2)
    monkeypatch.setattr("kdrun.reporting.html.page.MAX_CURVES", 2)
    text = report_page(ledger, outputs)
    assert "Curves are drawn for the first 2 of 13 runs" in text
    assert text.count('<svg class="chart small') == 4


def test_shared_runs_are_shown_once(ledger, outputs):
    """A student without a teacher stands in the columns of all its teachers."""
    other = "cifar100 · wrn_16_4 → wrn_40_1"
    ledger.cells += [Cell(**{**vars(cell), "column": other}) for cell in ledger.cells if cell.row == "Student"]
    ledger.shape.columns.append(other)
    text = report_page(ledger, outputs)
    lines = re.search(r'data-sort="Student">.*?</tr>', text)[0]
    first, second = re.findall(r'href="#(p\d+)"', lines)
    assert first == second and text.count("kdrun.methods.none.Method") == 1
    Reader(text)


def test_damaged_files_are_passed_over(ledger, outputs):
    kd = [outputs / cell.run for cell in ledger.cells if cell.row == "KD"]
    (kd[0] / "metrics.csv").write_bytes(b"\xff\x00epoch")
    (kd[0] / "provenance.json").write_text("{")
    (kd[0] / "config.yaml").unlink()
    (kd[1] / "result.json").write_text("[1, 2")
    text = report_page(ledger, outputs, ["notes: not a run (no config.yaml)."])
    Reader(text)
    assert "No config.yaml." in text and "No provenance.json." in text and "No curves in metrics.csv." in text
    assert f"{kd[1].relative_to(outputs)}/result.json: damaged" in html.unescape(text)
    assert "notes: not a run (no config.yaml)." in text and "skipped" in text


def test_an_empty_sweep_has_a_page(outputs):
    shape = TableShape(["KD"], ["one"])
    ledger = Ledger("empty", "Empty", "", shape, [Cell("KD", "one", 0, [], "runs/a/b/c/d", method="kd")])
    text = report_page(ledger, outputs)
    Reader(text)
    assert "<b>0</b> of 1 cell done" in text and "1 missing" in text and "Learning curves" not in text


def test_the_same_results_give_the_same_bytes(page, ledger, outputs):
    assert report_page(ledger, outputs) == page


# the charts


def test_learning_curves_have_a_line_for_each_row(ledger, outputs):
    table = table_of(ledger, outputs)
    places = read_runs(ledger, table, outputs)
    styles = figures.styles_of(table)
    assert styles == {"SRD": "c0", HOSTILE: "c1", "KD": "c2", "Student": "base"}
    (figure,) = figures.learning_curves(table, places, styles)
    lines, bands = figure.svg.count('<polyline class="hit"'), figure.svg.count('<polygon class="band"')
    assert (lines, bands, figure.svg.count('<g class="thin">')) == (5, 4, 12)  # four rows and the teacher
    assert "dash-dotted: the teacher, 76.46 %" in figure.caption
    assert "SRD: 77.77 % test top-1 after epoch 30, 3 seeds" in figure.svg
    assert "the axis begins at" in figure.caption


def test_seeds_that_have_not_ended_are_drawn_dashed(ledger, outputs):
    (figure,) = figures.learning_curves(table := table_of(ledger, outputs), read_runs(ledger, table, outputs), {})
    assert "<title>DIST, seed 0, failed after epoch 4</title>" in figure.svg and figure.svg.count('class="going"') == 1
    assert "dashed: unfinished seeds" in figure.caption
    page = report_page(ledger, outputs)
    assert 'class="key c3"' in page and ">DIST</button>" in page


def test_a_loss_that_an_outlier_flattens_has_a_logarithmic_axis():
    points = [(float(epoch), value) for epoch, value in enumerate((300.0, 2.0, 1.0, 1.0, 0.9, 0.8), 1)]
    line = figures.Line("train", points, "train")
    log = figures.line_chart([line], ("epoch", "loss"), "", log=True)
    assert ">10<" in log and ">100<" in log and ">200<" not in log
    assert Frame((0, 1), (1, 100), log_y=True).down(10) == pytest.approx((10 + 258) / 2)


def test_training_accuracy_stands_in_where_the_test_set_was_seen_once(ledger, outputs):
    for cell in ledger.cells:
        if cell.run is not None and (outputs / cell.run).is_dir():
            rows = "".join(f"{epoch},train,top1,{epoch}.0\n" for epoch in range(1, 4)) + "3,test,top1,50.0\n"
            (outputs / cell.run / "metrics.csv").write_text(f"epoch,split,metric,value\n{rows}")
    table = table_of(ledger, outputs)
    places = read_runs(ledger, table, outputs)
    (figure,) = figures.learning_curves(table, places, figures.styles_of(table))
    assert "train top-1, %" in figure.svg and "the test set was evaluated once, at the end" in figure.caption


def test_costs_that_are_all_equal_draw_nothing(ledger, outputs):
    table = table_of(ledger, outputs)
    places = read_runs(ledger, table, outputs)
    params, flops, speed = figures.cost_charts(table, places, figures.styles_of(table))
    assert params.svg == flops.svg == "" and params.caption == "All runs have 570k parameters."
    assert flops.caption == "All runs have 83M FLOPs."
    assert speed.svg.count('<g class="s dot') == 4
    assert html.escape(f"{HOSTILE}, {COLUMN}: 74.53 ± 0.40 (3) %: 155 images/s") in speed.svg


def test_accuracies_of_different_data_sets_never_share_a_scatter(ledger, outputs):
    for cell in ledger.cells:
        if cell.row == "KD":
            cell.column, cell.dataset = "digits", "digits"
    table = table_of(ledger, outputs)
    charts = figures.cost_charts(table, read_runs(ledger, table, outputs), {})
    captions = [figure.caption for figure in charts if "images/s" in figure.caption]
    assert captions == ["cifar100: top-1 over training images/s", "All runs of digits have 164 images/s."]


def test_a_frame_maps_limits_to_its_edges():
    frame = Frame((1, 11), (0, 100), 480, 300)
    assert (frame.across(1), frame.across(11)) == (46, 468)
    assert (frame.down(0), frame.down(100)) == (258, 10)
    assert frame.place([(6, 50)]) == "257.0,134.0"
    log = Frame((1, 100), (0, 1), log=True)
    assert log.across(10) == pytest.approx((46 + 468) / 2)


def test_ticks():
    assert nice_ticks(0.3, 9.7) == [2, 4, 6, 8]
    assert nice_ticks(94.9, 98.1) == [95, 96, 97, 98]
    assert nice_ticks(-0.1, 0.1, 4) == [-0.1, -0.05, 0, 0.05, 0.1]
    assert log_ticks(30, 700) == [50, 100, 200, 500]
    assert log_ticks(1, 2000) == [1, 10, 100, 1000]


def test_thinning_keeps_both_ends():
    points = [(float(epoch), 0.0) for epoch in range(1, 241)]
    kept = thinned(points, 80)
    assert kept[0] == points[0] and kept[-1] == points[-1] and len(kept) <= 81
    assert thinned(points[:5], 80) == points[:5] and thinned([], 80) == []


def test_the_frontier_is_what_nothing_beats():
    marks = [
        Mark(name, x, y, "rest", name)
        for name, x, y in (("a", 1, 70), ("b", 2, 75), ("c", 2, 72), ("d", 3, 74), ("e", 4, 76))
    ]
    assert [mark.label for mark in frontier(marks, smaller_is_cheaper=True)] == ["a", "b", "e"]
    assert [mark.label for mark in frontier(marks, smaller_is_cheaper=False)] == ["e"]
    assert scatter([marks[1], marks[2]], ("x", "y"), "", True) == ""


# what the files say


def test_settings_of_a_configuration():
    text = "a:\n  b: 1\n  c:\n  - x\n  - y: 2\n  d: ''\ne: 5\n"
    assert settings_of(text) == {"a": "", "a.b": "1", "a.c": "x y: 2", "a.d": "''", "e": "5"}
    assert differences(settings_of(text), settings_of(text.replace("b: 1", "b: 2"))) == [("a.b", "1", "2")]


def test_curves_leave_out_what_is_not_finite_or_cut_short():
    text = "epoch,split,metric,value\n1,test,top1,5.5\n2,test,top1,nan\n3,test,top1,x\n1,train,loss/ce,2\n4,test,top1,7"
    assert read_curves(text) == {("test", "top1"): [(1.0, 5.5)]}


def test_mean_and_band_cover_shared_epochs(ledger, outputs):
    table = table_of(ledger, outputs)
    runs = read_runs(ledger, table, outputs)["KD", COLUMN]
    runs[0].curves["test", "top1"] = [(1.0, 10.0), (2.0, 20.0), (3.0, 30.0)]
    runs[1].curves["test", "top1"] = [(2.0, 30.0), (3.0, 50.0)]
    del runs[2].curves["test", "top1"]
    deviation = pytest.approx(50**0.5), pytest.approx(200**0.5)
    assert band_of(runs, ("test", "top1")) == [(2.0, 25.0, deviation[0]), (3.0, 40.0, deviation[1])]
    assert band_of(runs[:1], ("test", "top1"))[0] == (1.0, 10.0, 0.0) and band_of(runs[2:], ("test", "top1")) == []


# the command


def test_the_command_writes_beside_the_tables(kdrun, ledger, outputs):
    code, out, _ = kdrun("report", "small")
    assert code == 0 and "small.html" in out
    assert (outputs / "tables/small.html").read_text() == report_page(ledger, outputs)
    code, out, _ = kdrun("report", f"{outputs}/runs/cifar100/*/*/*")
    assert code == 0
    text = (outputs / "tables/report.html").read_text()
    assert "wrn_40_2 → wrn_40_1" in text and 'data-sort="srd"' in text


def test_the_command_takes_what_table_takes(kdrun, ledger, outputs, tmp_path):
    code, _, _ = kdrun("report", "small", f"save={tmp_path}/deep/own.html", "value=top1_best", "baseline=kd")
    text = (tmp_path / "deep/own.html").read_text()
    assert code == 0 and "best epoch on the test set" in text and "points above KD" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small", "safe=a.html"], "Did you mean save?"),
        (["small", "save=a.pdf"], "save=a.pdf: give a file that ends in .html or .htm."),
        (["smal"], "Did you mean small?"),
        (["small", "against=KKD"], "Did you mean KD?"),
        ([], "report needs a sweep or runs; sweeps in "),
    ],
)
def test_mistakes_take_one_line(kdrun, ledger, words, said):
    code, _, err = kdrun("report", *words)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_no_torch_to_write_a_report():
    code = "import sys, kdrun.commands.report, kdrun.reporting.html.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# a browser

WATCH = """<script>
const seen = { errors: [] };
addEventListener("error", (event) => seen.errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => seen.errors.push(event.violatedDirective));
</script>"""
LOOK = """<script>
const rows = () => [...document.querySelectorAll("table.heat tbody tr")].map((row) => row.cells[0].textContent);
const heads = [...document.querySelectorAll("table.heat thead th")];
const look = () => ({ rows: rows(), sort: heads.map((head) => head.getAttribute("aria-sort")) });
const click = (place) => { heads[place].querySelector("button").click(); return look(); };
addEventListener("load", () => {
  Object.assign(seen, { before: look(), down: click(1), up: click(1), own: click(1), names: click(0) });
  const last = [...document.querySelectorAll("table.heat a")].pop();
  last.click();
  const target = document.querySelector(last.getAttribute("href"));
  seen.unfolded = target.open;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  for (const part of document.querySelectorAll("details")) part.open = true;
  seen.overflowUnfolded = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.width = innerWidth;
  seen.images = [...document.images].filter((image) => !image.naturalWidth).length;
  seen.charts = [...document.querySelectorAll("svg.chart")].map((chart) => chart.getBoundingClientRect())
    .map((box) => Math.round(Math.min(box.width, box.height)));
  const key = document.querySelector("button.key");
  key.click();
  seen.lit = [...document.querySelectorAll(".s.lit")].map((shape) => shape.dataset.row);
  seen.row = key.dataset.row;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""
WRAPPER = """<!doctype html><pre id="findings"></pre><script>
const found = [];
addEventListener("message", (event) => {
  found.push(JSON.parse(event.data));
  document.getElementById("findings").textContent = JSON.stringify(found);
});
</script>
<iframe src="page.html" style="width:390px;height:800px;border:0"></iframe>
<iframe src="page.html" style="width:1280px;height:800px;border:0"></iframe>"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def findings(page, tmp_path) -> dict[int, dict]:
    """Return what a script inside the page saw, by the page's width, with everything that the browser's console printed."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    watched = page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{LOOK}</body>")
    assert watched.count("<script>") == 3
    (tmp_path / "page.html").write_text(watched)
    (tmp_path / "wrapper.html").write_text(WRAPPER)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *flags, (tmp_path / "wrapper.html").as_uri()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], (done.returncode, done.stderr[-2000:])
    return {seen["width"]: {**seen, "console": said} for seen in json.loads(html.unescape(found[1]))}


def test_in_a_browser(findings, page):
    assert set(findings) == {390, 1280}
    for seen in findings.values():
        assert not seen["errors"] and not seen["console"] and not seen["requests"]
        own = ["Teacher", *ROWS, "DIST"]
        assert seen["before"] == {"rows": own, "sort": ["none", "none"]}
        ranked = ["SRD", "Teacher", HOSTILE, "KD", "Student", "DIST"]
        assert seen["down"] == {"rows": ranked, "sort": ["none", "descending"]}
        assert seen["up"] == {"rows": [*ranked[-2::-1], "DIST"], "sort": ["none", "ascending"]}
        assert seen["own"] == seen["before"]
        assert seen["names"]["rows"][1:] == ["DIST", "KD", "SRD", "Student", "Teacher"]
        assert seen["unfolded"]
        assert (seen["overflow"], seen["overflowUnfolded"]) == (0, 0)
        assert (
            seen["images"] == 0 and len(seen["charts"]) == page.count('<svg class="chart') and min(seen["charts"]) > 100
        )
        assert len(seen["lit"]) == 2 and set(seen["lit"]) == {seen["row"]}  # its line, and its mark over images/s
