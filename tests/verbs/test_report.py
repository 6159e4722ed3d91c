"""`sightline report`: the page states what the folders of runs hold, and needs neither their data nor a network."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.runs.run_documents import read_lines
from sightline.runs.run_records import format_interval, list_differences, note_figures, read_reported_run
from sightline.view import report_samples, run_report
from sightline.view.panels import ImagePanel
from sightline.view.report_samples import make_samples
from sightline.view.run_report import make_report
from sightline.view.stages import Stage, ViewedSample, height_coloring
from tests.cases import run_each
from tests.command import run_here
from tests.trained import trained_run
from tests.view.test_browser import BROWSER, run_in_browser
from tests.view.test_page import data_of

TASKS = ("plain", "boxes3d", "contrast", "detect", "pose", "lidar", "parts", "scenes", "packed")
FINDING = {
    "severity": "warning",
    "code": "class-imbalance",
    "summary": "<few> chairs",
    "measured": "3",
    "expected": "30",
    "action": "weigh classes",
    "where": {},
}

SEEN = """<script>
window.addEventListener("error", (event) => { document.title = "failed: " + event.message; });
resized();
draw();
const pictures = [...document.querySelectorAll("#panels img")];
const told = {
  cloud: !data.subjects[0].clouds[chosen.stage].isFlat && screen.pixels.some((pixel) => pixel),
  pictures: pictures.length > 0 && pictures.every((each) => each.src.startsWith("data:image/")),
};
if (!document.title.startsWith("failed")) document.title = JSON.stringify(told);
</script>"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small classifier with a finding and two pictures."""
    folder = tmp_path / "run"
    shutil.copytree(trained_run("plain"), folder, symlinks=True)
    shutil.rmtree(folder / "predictions")
    for name in ("sessions.jsonl", "findings.json", "train.log"):
        (folder / name).unlink(missing_ok=True)
    environment = json.loads((folder / "environment.json").read_text())
    words = {"command_line": ["sightline", "train", "a b.yaml"], "git": {"commit": "abc", "is_dirty": True}}
    (folder / "environment.json").write_text(json.dumps(environment | words))
    (folder / "findings.json").write_text(json.dumps([FINDING]))
    (folder / "predictions").mkdir()
    for name in ("a", "b"):
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / "predictions" / f"{name}.png")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_page(task: str, tmp_path: Path) -> None:
    page, document = tmp_path / "page.html", tmp_path / "report.json"
    done = run_here("report", trained_run(task), "--out", page, "--json", document)
    assert (done.code, done.err) == (0, f"{page}: open it in a browser\n")
    final, text = json.loads((trained_run(task) / "final.json").read_text()), page.read_text()
    assert len(text) < 5_000_000
    for word in ("http:", "https:", "href=", "@import", "url(", "<script"):
        assert word not in text.replace("http://www.w3.org/2000/svg", ""), word
    assert json.loads(document.read_text())["figures"][0].items() >= final["metrics"].items()
    for name, value in final["metrics"].items():
        assert f"<td>{name}</td><td>{'–' if value is None else f'{value:.4f}'}</td>" in text
    for name, row in final["per_class"].items():
        first = next(iter(row.values()))
        assert f"<td>{name}</td><td>{'–' if first is None else f'{first:.4f}'}</td>" in text
    for intervals in final.get("class_intervals", {}).values():
        assert all(f"<td>{format_interval(interval)}</td>" in text for interval in intervals.values())
    assert ("<h2>Joints</h2>" in text) == (task == "pose")
    assert ("<h2>Confusions</h2>" in text) == ("confusion" in final)


def test_findings_pictures_and_the_command_are_on_the_page(run: Path) -> None:
    assert run_here("report", run).code == 0
    text = (run / "report.html").read_text()
    folded = re.search(r'<details class="marked">\n<summary>(.*)</summary>\n<dl>(.*)</dl>\n</details>', text)
    assert folded is not None
    assert folded[1] == "warning class-imbalance: &lt;few&gt; chairs"
    assert folded[2].startswith("<dt>measured</dt><dd>3</dd><dt>expected</dt><dd>30</dd><dt>action</dt>")
    assert text.count('<img src="data:image/png;base64,') == 2
    assert "<td>command</td><td>sightline train &#39;a b.yaml&#39;</td>" in text
    assert "<td>commit</td><td>abc, with changes that were not committed</td>" in text
    assert f"sightline train {run} --out {run}_again" in text


@pytest.mark.parametrize("task", ["parts", "packed"])
def test_the_commands_on_the_page_name_plugins_and_repeat_what_the_run_is(task: str, tmp_path: Path) -> None:
    run, page = trained_run(task), tmp_path / "page.html"
    assert run_here("report", run, "--out", page).code == 0
    text = html.unescape(page.read_text())
    again = dict(re.findall(r"<td>(\w+) again</td><td>sightline (.+?)</td>", text))
    assert list(again) == (["evaluate"] if task == "packed" else ["train", "evaluate"])
    assert run_here(*shlex.split(again["evaluate"]), "--device", "cpu").code == 0
    options = f" --plugin {run / 'plugins' / 'plugin.py'}" if task == "parts" else ""
    assert task == "packed" or f"All checks: sightline check {run}{options}<" in text
    assert all(f"{run}{options}" in command for command in again.values())


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], "Whether the training was checked is not recorded (no sessions.jsonl). No finding."),
        ([{"checked": True}], "The quick checks ran before the training. No"),
        ([{"checked": True}, {"checked": False}], "1 of 2 sessions of the training were not checked (--no-check). No"),
        ([{}], "1 of 1 sessions of the training were not checked"),
    ],
)
def test_no_finding_of_a_run_that_was_not_checked_is_no_praise(
    run: Path, sessions: list[dict[str, object]], expected: str
) -> None:
    (run / "findings.json").write_text("[]")
    if sessions:
        (run / "sessions.jsonl").write_text("".join(f"{json.dumps(session)}\n" for session in sessions))
    assert run_here("report", run).code == 0
    text = (run / "report.html").read_text()
    assert expected in text
    assert f"<li>All checks: sightline check {run}</li>" in text


def test_what_the_checks_examined_is_on_the_page(run: Path) -> None:
    examined = {"verdict": ["verdict: of 9 relations"], "not_covered": ["10 of 20 samples of the train part"]}
    (run / "checks.json").write_text(json.dumps(examined))
    assert run_here("report", run).code == 0
    text = (run / "report.html").read_text()
    assert "<li>verdict: of 9 relations</li>" in text
    assert "<summary>not covered by a check: 1 points</summary>" in text
    assert "<dd>10 of 20 samples of the train part</dd>" in text


def test_pictures_that_do_not_fit_are_counted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (run / "predictions" / "a.png").stat().st_size
    monkeypatch.setattr(run_report, "MAX_PICTURE_BYTES", int(1.5 * size * 4 / 3))
    assert run_here("report", run).code == 0
    text = (run / "report.html").read_text()
    assert text.count("<img") == 1
    assert f"1 more pictures are in {run / 'predictions'}; the page would be too large." in text


@run_each(
    "name, value, shown",
    [
        ("overall_accuracy", 0.91234, "91.23 %"),
        ("mean_error_mm", 8.756, "8.76 mm"),
        ("uniformity", -2.5, "-2.5000"),
        ("miou", None, "–"),
    ],
)
def test_the_figure_that_chose_the_checkpoint_comes_first(
    tmp_path: Path, name: str, value: float | None, shown: str
) -> None:
    """The title of a numbered folder is the run's name, and the first thing below it the figure with its unit."""
    folder = tmp_path / name / "tour" / "1"
    shutil.copytree(trained_run("plain"), folder, symlinks=True)
    final = json.loads((folder / "final.json").read_text()) | {"metrics": {name: value}}
    final["interval"] = {"figure": "another", "low": 0.0, "high": 0.25, "level": 0.95, "num_samples": 24}
    (folder / "final.json").write_text(json.dumps(final))
    config = (folder / "config.yaml").read_text()
    changed_config, count = re.subn(r"(?m)^  metric: .*", f"  metric: {name}", config)
    assert count == 1
    (folder / "config.yaml").write_text(changed_config)
    assert run_here("report", folder).code == 0
    text = (folder / "report.html").read_text()
    assert "<title>tour/1</title>" in text
    assert re.search(rf'<h1>tour/1</h1>\s*<ul class="figures">\s*<li><strong>{shown}</strong>{name}</li>', text)
    final["interval"] |= {"figure": name}
    (folder / "final.json").write_text(json.dumps(final))
    assert run_here("report", folder).code == 0
    ends = "0.00 mm to 0.25 mm" if name.endswith("_mm") else "0.00 % to 25.00 %"
    assert f"{name}<br>95 % interval {ends}</li>" in (folder / "report.html").read_text()


def test_runs_are_compared_side_by_side(run: Path, tmp_path: Path) -> None:
    page, document = tmp_path / "both.html", tmp_path / "both.json"
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("gradients: false", "gradients: true"))
    done = run_here("report", run, trained_run("packed"), "--out", page, "--json", document)
    assert done.code == 0, done.err
    text, found = page.read_text(), json.loads(document.read_text())
    first, second = (row["overall_accuracy"] for row in found["figures"])
    assert f"<td>overall_accuracy</td><td>{first:.4f}</td><td>{second:.4f}</td>" in text
    assert '<th scope="col">accuracy, run</th><th scope="col">accuracy, packed</th>' in text
    assert found["config_differences"] == {"log.gradients": ["true", "false"]}
    assert found["runs"] == [str(run), str(trained_run("packed"))]


def test_differences_are_those_of_the_leaves(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub(r"lr: \S+", "lr: 0.125", config, count=1))
    runs = [read_reported_run(path, path.name) for path in (run, other)]
    assert [(key, new) for key, _, new in list_differences(runs)] == [("optimizer.lr", "0.125")]


def test_an_unfinished_run_has_no_figures(run: Path) -> None:
    (run / "final.json").unlink()
    done = run_here("report", run)
    assert done.code == 0
    assert "there is no final.json; the page has no figures of it" in done.err
    page = (run / "report.html").read_text()
    last = [line for line in read_lines(run / "metrics.jsonl") if line["split"] != "train"][-1]
    assert f"no final.json: the training is not finished; figures of step {last['step']} on {last['split']}" in page
    assert f"{last['overall_accuracy']:.4f}" in page


def test_shares_of_a_matrix_and_the_list_of_many_classes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = json.loads((run / "final.json").read_text())
    final["confusion"] = {"classes": ["a", "b"], "counts": [[3, 1], [0, 0]]}
    (run / "final.json").write_text(json.dumps(final))
    for most, expected in ((2, [["a", "3", "1"], ["b", "", ""]]), (1, [["a", "b", "1", "25.0%"]])):
        monkeypatch.setattr(run_report, "_MAX_MATRIX", most)
        blocks, _ = make_report([read_reported_run(run, "run")])
        (table,) = (each for each in blocks if getattr(each, "head", [""])[0].startswith("label"))
        assert table.rows == expected  # type: ignore[attr-defined]
        assert table.shares == ([[0.75, 0.25], [0.0, 0.0]] if most == 2 else ())  # type: ignore[attr-defined]


def test_long_curves_keep_their_ends(run: Path) -> None:
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    lines = [json.dumps(line | {"step": step}) for step in range(1, 5001)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    blocks, _ = make_report([read_reported_run(run, "run")])
    (chart,) = (each for each in blocks if each.kind == "chart")
    points = chart.rows[0][0].series[0].points  # type: ignore[attr-defined]
    assert (len(points), points[0][0], points[-1][0]) == (400, 1, 5000)


def linked(name: str) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        elsewhere = run.with_name("elsewhere")
        (run / name).replace(elsewhere)
        (run / name).symlink_to(elsewhere)

    return make


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


MISTAKES = {
    "config of a list": (written("config.yaml", "- a"), "found a list"),
    "cut final": (written("final.json", '{"a'), "final.json: cannot be read"),
    "final of a list": (written("final.json", "[]"), "final.json: does not hold a mapping"),
    "final of nothing": (written("final.json", "{}"), "/final.json: is not of the form"),
    "figures that are none": (written("final.json", '{"metrics": 3}'), "/final.json: is not of the form"),
    "classes that are none": (lambda run: changed(run, "per_class", [1]), "/final.json: is not of the form"),
    "rows that are none": (lambda run: changed(run, "per_class", {"a": 1}), "/final.json: is not of the form"),
    "ragged confusion": (
        lambda run: changed(run, "confusion", {"classes": ["a"], "counts": [[1], [2, 3]]}),
        "/final.json: is not of the form",
    ),
    "lines": (written("metrics.jsonl", "{\n{}\n"), "metrics.jsonl:1"),
    "lines without steps": (written("metrics.jsonl", '{"a": 1}\n'), "/metrics.jsonl: is not of the form"),
    "text as a figure": (
        written("metrics.jsonl", '{"step": 1, "epoch": 0, "split": "a", "b": "c"}\n'),
        "/metrics.jsonl: is not of the form",
    ),
    "findings": (written("findings.json", "{"), "findings.json: cannot be read"),
    "findings of a mapping": (written("findings.json", "{}"), "does not hold a list"),
    "findings of numbers": (written("findings.json", "[1]"), "not of the form"),
    "sessions": (written("sessions.jsonl", "{\n{}\n"), "sessions.jsonl:1"),
    "no environment": (lambda run: (run / "environment.json").unlink(), "environment.json: is missing"),
    "other environment": (written("environment.json", '{"git": 3}'), "/environment.json: is not of the form"),
    "a picture": (written("predictions/a.png", "no"), "a.png"),
    "linked metrics": (linked("metrics.jsonl"), "metrics.jsonl: is a link to"),
    "linked config": (linked("config.yaml"), "config.yaml: is a link to"),
    "linked pictures": (linked("predictions"), "predictions: is a link to"),
    "folder as page": (lambda run: (run / "report.html").mkdir(), "is a folder"),
}


def changed(run: Path, key: str, value: object) -> None:
    final = json.loads((run / "final.json").read_text())
    (run / "final.json").write_text(json.dumps(final | {key: value}))


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, run: Path) -> None:
    make, expected = MISTAKES[name]
    make(run)
    done = run_here("report", run)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err


@pytest.mark.parametrize("task", ["plain", "detect", "pose", "lidar"])
def test_samples_are_on_the_page_of_a_run_whose_data_are_at_hand(task: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    plugins = [word for path in (trained_run(task)).glob("plugins/*.py") for word in ("--plugin", path)]
    done = run_here("report", trained_run(task), "--samples", "0,1", "--device", "cpu", "--out", page, *plugins)
    assert done.code == 0, done.err
    text = page.read_text()
    subjects = data_of(text)["subjects"]
    assert len(subjects) == 2
    assert subjects[0]["clouds"][-1]["stage"] == "prediction"
    assert "<h2>Samples</h2>" in text
    assert len(text) < 5_000_000
    if BROWSER is not None:  # a cloud is drawn, or its pictures are; no script complains
        told = run_in_browser(text, tmp_path, SEEN)
        assert told["cloud"] or told["pictures"]
        assert told["pictures"] or task == "plain"


def test_samples_that_do_not_fit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    stage = Stage("raw", points, (height_coloring(points, "z"),), panels=(ImagePanel("noise", noise),))
    subjects = [ViewedSample(str(number), (stage,)) for number in range(4)]
    monkeypatch.setattr(report_samples, "MAX_SAMPLE_BYTES", 130_000)
    clouds, notes = make_samples(subjects)
    assert len(clouds.data["subjects"]) == 2
    assert len(clouds.encode()) <= 130_000
    assert notes == ["2 samples do not fit into the page"]


@run_each(
    "metrics, further, expected",
    [
        ({"miou": math.nan, "accuracy": 0.5, "pck": None}, {}, ["miou, pck"]),
        ({"miou": 0.25}, {"losses": {"focal": 0.5, "lovasz": math.nan}}, ["loss/lovasz"]),
        ({"ap": math.nan, "ar": math.nan}, {"scored_boxes": {"undefined": {"all": "no label counts"}}}, ["all"]),
        ({"ap": 0.5, "ap_large": None}, {"scored_boxes": {"undefined": {"ap_large": "no label"}}}, ["ap_large"]),
    ],
)
def test_figures_that_are_missing_are_named(
    metrics: dict[str, float | None], further: dict[str, Any], expected: list[str]
) -> None:
    notes = note_figures({"metrics": metrics, **further})
    assert [re.findall(r"^no figure \((.*?)\): ", note) for note in notes] == [[names] for names in expected]


@run_each("ap, is_noted", [(0.0, True), (0.1, False), (None, False)])
def test_an_average_precision_of_zero_is_explained(tmp_path: Path, ap: float | None, is_noted: bool) -> None:
    folder = tmp_path / str(ap)
    shutil.copytree(trained_run("detect"), folder, symlinks=True)
    final = json.loads((folder / "final.json").read_text())
    (folder / "final.json").write_text(json.dumps(final | {"metrics": final["metrics"] | {"ap": ap}}))
    assert run_here("report", folder).code == 0
    assert ("no box was found: AP 0" in (folder / "report.html").read_text()) == is_noted


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_the_page_fits_a_window_and_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    assert run_here("report", run).code == 0
    hands = """<script>document.title = JSON.stringify({
      requests: performance.getEntriesByType("resource").filter((each) => !each.name.startsWith("data:")).length,
      wide: document.documentElement.scrollWidth > window.innerWidth,
      pictures: [...document.images].every((each) => each.complete && each.naturalWidth),
      names: [...document.querySelectorAll("[role=img], img")].every((each) => each.alt || each.ariaLabel),
    });</script>"""
    page = (run / "report.html").read_text().replace("style-src", "script-src 'unsafe-inline'; style-src")
    told = run_in_browser(page, tmp_path, hands)
    assert told == {"requests": 0, "wide": False, "pictures": True, "names": True}
