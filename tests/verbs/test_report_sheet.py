"""`sightline report --png`: the sheet states what the run's records hold, for every task, and draws it without them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.draw.page import PageBlock, PageChart, PageFigures, PageImage, PageTable, PageText
from sightline.draw.page_picture import WIDTH_PX
from sightline.runs.run_documents import read_lines
from sightline.runs.run_records import NO_FIGURE, format_with_unit, read_reported_run
from sightline.view.run_sheet import make_sheet
from tests.cases import run_each
from tests.command import run_here
from tests.trained import break_off, trained_run

TASKS = ("plain", "boxes3d", "contrast", "detect", "pose", "lidar", "parts", "scenes", "packed")
WITHOUT_PICTURES = ("contrast", "packed")
MOST_FIGURES, MOST_CLASSES, MOST_PANELS, MOST_IMAGES = 9, 24, 4, 4


def sheet_of(run: Path) -> list[PageBlock]:
    return [block for row in make_sheet(read_reported_run(run, run.name)) for block in row]


def rows_of(blocks: list[PageBlock], kind: str) -> list[list[str]]:
    """Rows of the tables whose head begins with this word."""
    tables = [block for block in blocks if isinstance(block, PageTable) and block.head[0] == kind]
    return [[str(cell) for cell in row] for table in tables for row in table.rows]


def notes_of(blocks: list[PageBlock]) -> list[str]:
    return [line for block in blocks if isinstance(block, PageText) for line in block.lines]


def shown(value: float | None) -> str:
    return NO_FIGURE if value is None else f"{value:.4f}"


def pixels_of(file: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(trained_run("plain"), folder, symlinks=True)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_the_sheet_of_every_task_has_the_figures_of_its_records(task: str, tmp_path: Path) -> None:
    path = trained_run(task)
    blocks, final = sheet_of(path), json.loads((path / "final.json").read_text())
    stated = rows_of(blocks, "")
    metrics = [[name, shown(value)] for name, value in final["metrics"].items()]
    assert [row for row in stated if row in metrics] == metrics[:MOST_FIGURES]
    facts = {name: value for name, value in stated if [name, value] not in metrics}
    assert facts["evaluated"].startswith(f"last checkpoint on test, {final['data']['num_samples']} samples")
    first = next(row for row in final["per_class"].values()) if final["per_class"] else {}
    columns = [name for name in first if name != "count"][:3] + ["count"] * ("count" in first)
    classes = rows_of(blocks, "joint" if task == "pose" else "class")
    assert [name for name, *_ in classes] == [*final["per_class"]][:MOST_CLASSES]
    for name, *cells in classes:
        values = [final["per_class"][name][column] for column in columns]
        assert cells == [f"{value:,}" if isinstance(value, int) else shown(value) for value in values]
    images = [block for block in blocks if isinstance(block, PageImage)]
    drawn = sorted((path / "predictions").glob("*.png"))[:MOST_IMAGES]
    assert len(images) == len(drawn)
    for image, file in zip(images, drawn, strict=True):
        np.testing.assert_array_equal(image.pixels, pixels_of(file))
    assert (not images) == (task in WITHOUT_PICTURES) == any("no predictions: " in line for line in notes_of(blocks))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "packed"])
def test_the_head_and_the_curves_are_those_of_the_training(task: str) -> None:
    path = trained_run(task)
    blocks, lines = sheet_of(path), read_lines(path / "metrics.jsonl")
    stated, environment = dict(rows_of(blocks, "")), json.loads((path / "environment.json").read_text())
    last = lines[-1]
    assert stated["parameters"] == f"{environment['num_parameters']:,}"
    assert (stated["steps"], stated["epochs"]) == (f"{last['step']:,}", str(last["epoch"] + 1))
    assert stated["seconds"] == f"{round(last['time_s']):,}"
    (chart,) = (block for block in blocks if isinstance(block, PageChart))
    panels = [panel for row in chart.rows for panel in row if panel is not None]
    assert 1 < len(panels) <= MOST_PANELS
    (value, name, _), *_ = next(block for block in blocks if isinstance(block, PageFigures)).figures
    assert name in [panel.title for panel in panels]  # what chose the checkpoint has its curve
    assert value == format_with_unit(name, json.loads((path / "final.json").read_text())["metrics"][name])
    assert any(panel.title.startswith("loss/") for panel in panels)
    for panel in panels:
        for series in panel.series:
            drawn = [(line["step"], line[panel.title]) for line in lines if line["split"] == series.name]
            assert series.name == "train, chance" or list(series.points) == drawn


def test_the_number_of_parameters_is_that_of_the_network() -> None:
    """Two layers of points, two batch norms behind them, and the head of `pointnet_plain`, counted from its weights."""
    from safetensors.numpy import load_file

    path = trained_run("plain")
    weights = load_file(path / "checkpoints" / "last" / "model.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    counted = sum(tensor.size for name, tensor in weights.items() if not name.endswith(buffers))
    assert json.loads((path / "environment.json").read_text())["num_parameters"] == counted


def test_the_picture_is_drawn_from_the_records(run: Path, tmp_path: Path) -> None:
    """Of two runs that differ in a figure of a class, the pictures differ in that cell alone; no data are read."""
    pictures = []
    for accuracy in (0.25, 0.75):
        final = json.loads((run / "final.json").read_text())
        final["per_class"]["mug"]["accuracy"] = accuracy
        (run / "final.json").write_text(json.dumps(final))
        done = run_here("report", run, "--png", tmp_path / "sheet.png")
        assert (done.code, done.err.count("\n")) == (0, 2)
        pictures.append(pixels_of(tmp_path / "sheet.png"))
    before, after = pictures
    assert before.shape == after.shape
    assert before.shape[1:] == (WIDTH_PX, 3)
    assert 0.5 * WIDTH_PX < len(before) < 1.5 * WIDTH_PX
    rows, columns, _ = np.nonzero(before != after)
    assert 0 < np.ptp(rows) < 30
    assert 0 < np.ptp(columns) < 60


def changed(run: Path, **values: Any) -> None:
    final = json.loads((run / "final.json").read_text())
    (run / "final.json").write_text(json.dumps(final | values))


@run_each(
    "change, where, expected",
    [
        (break_off, "facts", "no final.json: the training is not finished"),
        (lambda run: changed(run, ended_early={"step": 8, "of": 90}), "facts", "stopped early at step 8 of 90"),
        (lambda run: (run / "metrics.jsonl").unlink(), "notes", "no curves: metrics.jsonl has no line of this run"),
        (lambda run: shutil.rmtree(run / "predictions"), "notes", "no predictions: "),
        (lambda run: changed(run, metrics={"overall_accuracy": None}), "notes", "no figure (overall_accuracy): "),
    ],
)
def test_what_a_run_lacks_is_said(tmp_path: Path, change: Callable[[Path], object], where: str, expected: str) -> None:
    folder = tmp_path / expected[:20].replace(" ", "_")
    shutil.copytree(trained_run("plain"), folder, symlinks=True)
    change(folder)
    blocks = sheet_of(folder)
    texts = notes_of(blocks) if where == "notes" else [" ".join(row) for row in rows_of(blocks, "")]
    assert any(expected in text for text in texts)
    assert run_here("report", folder, "--png", folder / "sheet.png").code == 0
    assert pixels_of(folder / "sheet.png").shape[1] == WIDTH_PX


def test_an_unfinished_run_has_the_figures_of_its_last_evaluation(run: Path) -> None:
    """Before the first one it is described in two tables, beside each other."""
    (run / "final.json").unlink()
    lines = read_lines(run / "metrics.jsonl")
    last = [line for line in lines if line["split"] != "train"][-1]
    blocks = sheet_of(run)
    assert ["overall_accuracy", shown(last["overall_accuracy"])] in rows_of(blocks, "")
    figures = next(block for block in blocks if isinstance(block, PageFigures)).figures
    about = f"step {last['step']}, {last['split']}"
    assert figures == [(format_with_unit("overall_accuracy", last["overall_accuracy"]), "overall_accuracy", about)]
    texts = [json.dumps(line) + "\n" for line in lines if line["split"] == "train"]
    (run / "metrics.jsonl").write_text("".join(texts))
    head = make_sheet(read_reported_run(run, run.name))[0]
    assert [block.head for block in head if isinstance(block, PageTable)] == [["", ""], ["", ""]]
    assert abs(len(head[0].rows) - len(head[1].rows)) <= 1


def test_what_does_not_fit_is_counted(run: Path) -> None:
    figures = {f"figure_{number}": number / 100 for number in range(11)}
    classes = {f"class_{number}": {"accuracy": number / 100} for number in range(30)}
    changed(run, metrics=figures, per_class=classes, class_intervals={})
    for number in range(5):
        shutil.copy(run / "predictions" / "hardest_predictions.png", run / "predictions" / f"{number}.png")
    blocks = sheet_of(run)
    assert len(rows_of(blocks, "class")) == MOST_CLASSES
    tables = [block for block in blocks if isinstance(block, PageTable) and block.head[0] == "class"]
    assert [len(table.rows) for table in tables] == [8, 8, 8]
    note = f"left out: 2 figures, 6 classes, 2 pictures; the page of sightline report {run} has them"
    assert note in notes_of(blocks)


def test_samples_are_drawn_in_place_of_the_pictures_of_the_evaluation(tmp_path: Path) -> None:
    path, page = trained_run("pose"), tmp_path / "page.html"
    sizes = []
    for more in ((), ("--samples", "0,1", "--device", "cpu")):
        done = run_here("report", path, "--png", tmp_path / "sheet.png", "--out", page, *more)
        assert done.code == 0, done.err
        sizes.append(pixels_of(tmp_path / "sheet.png").shape)
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--png", "sheet.jpg"), "--png sheet.jpg: is a drawing in PNG; give a name that ends in .png"),
        (("--png", "checkpoints"), "--png checkpoints: "),
        (("--png", "-"), "--png -: "),
        (("again", "--png", "sheet.png"), "--png: is the sheet of one run; give one run, or leave it out"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], expected: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, run / "again", symlinks=True, ignore=shutil.ignore_patterns("again"))
    monkeypatch.chdir(run)
    done = run_here("report", run, *words)
    assert done.code == 2
    assert done.err.startswith(f"error: {expected}")
    assert done.err.count("\n") == 1
    assert not (run / "report.html").exists()
