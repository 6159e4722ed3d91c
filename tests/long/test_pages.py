"""Pages: their blocks, notebooks, quoted lines and pictures are those of the code."""

from __future__ import annotations

import json
import re
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.command import succeed
from tests.doc_blocks import OTHER_PAGES, ROOT, TOUR, blocks_of, lay_out, run_block
from tests.long.page_data import WRITERS
from tests.long.report_pictures import FOLDER, MAX_BYTES, RUNS, make_page, take_picture
from tests.view.test_browser import BROWSER

# --- blocks of the pages ----------------------------------------------------------------------------------------------


PAGES = [page for page in OTHER_PAGES if page != TOUR and any(block.needs is None for block in blocks_of(page))]
TOUR_RUN = (
    "configs/classify/synthetic_shapes_pointnet.yaml",
    "train.epochs=1",
    "data.train_size=96",
    "data.test_size=24",
)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the configs lies what the tour leaves: runs/tour."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    succeed("train", *TOUR_RUN, "--no-check", "--out", "runs/tour")
    if page.stem in WRITERS:
        WRITERS[page.stem](tmp_path)
    for block in blocks_of(page):
        if block.needs is None:
            run_block(block)


# --- pictures ---------------------------------------------------------------------------------------------------------


PICTURES = ROOT / "docs" / "pictures"
MAKE = runpy.run_path(str(PICTURES / "make.py"))
SAMPLES = ("synthetic_shapes", "view", "view_hand", "views", "synthetic_hands")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_picture_of_samples_is_drawn_as_it_is_stored(name: str, tmp_path: Path) -> None:
    MAKE["MAKERS"][f"docs/pictures/{name}.png"](tmp_path / "now.png")
    now, stored = (
        np.asarray(Image.open(path)).astype(int) for path in (tmp_path / "now.png", PICTURES / f"{name}.png")
    )
    assert now.shape == stored.shape
    assert np.abs(now - stored).mean() < 0.5  # of 255: a point on another pixel, on another processor


@pytest.mark.parametrize("name", ["check", "dgcnn", "growth"])
def test_a_drawing_is_what_its_command_draws(name: str, tmp_path: Path) -> None:
    MAKE["MAKERS"][f"docs/pictures/{name}.svg"](tmp_path / "now.svg")
    assert (tmp_path / "now.svg").read_text() == (PICTURES / f"{name}.svg").read_text()


# --- notebooks --------------------------------------------------------------------------------------------------------


NOTEBOOKS = sorted((ROOT / "docs" / "manual" / "notebooks").glob("*.ipynb"))
MAX_CPU_S = 60.0
_CURVES = re.compile(r"<svg.*?</svg>", flags=re.DOTALL)
_MEASURED = re.compile(
    r"'\w+'|-?\d[\d.,:e-]*|; the best so far|^warning: loader-bound.*\n|, 1 warning", flags=re.MULTILINE
)
"""What depends on the machine: numbers, what is sorted by them, waiting for data."""


def quoted(notebook: nbformat.NotebookNode) -> list[str]:
    """The words of each output of a notebook."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    texts = [
        output.get("text", "") + row.get("text/html", "") + row.get("text/plain", "")
        for output, row in zip(outputs, data, strict=True)
    ]
    words = [_MEASURED.sub("", _CURVES.sub("", text)).split() for text in texts]
    return [" ".join(row) for row in words if row]


def test_there_is_one_for_each_task() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["classify", "contrast", "detect", "lidar", "pose", "segment"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_prints_what_is_stored(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(path, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "stored without its outputs: run docs/pictures/make.py"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert path.stat().st_size < MAX_BYTES
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    executed = MAKE["execute"](path, tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert quoted(executed) == quoted(stored), "run docs/pictures/make.py"
    assert after.ru_utime - before.ru_utime < MAX_CPU_S


# --- The page of ten bugs prints what the doctor prints ---


PAGE = ROOT / "docs" / "topics" / "ten_bugs.md"


def test_the_page_quotes_what_is_printed(tmp_path: Path) -> None:
    cases = dict(re.findall(r"\(`([A-Z]\d+)`\):\n\n```text\n(.*?)\n```", PAGE.read_text(), flags=re.DOTALL))
    assert len(cases) == 10
    path = tmp_path / "lines.jsonl"
    subprocess.run([sys.executable, "-m", "tests.doctor", *cases, "--out", path], cwd=ROOT, check=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    printed = {line["id"]: line["alarms"][0]["text"] for line in lines if line["has_bug"]}
    assert {case: text.replace(f"{ROOT}/", "") for case, text in printed.items()} == cases


# --- reports in a browser ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("task", RUNS)
def test_the_page_of_every_task_is_drawn(task: str, tmp_path: Path) -> None:
    assert take_picture(make_page(task, tmp_path), tmp_path / "picture.png") == ""
    shown, stored = (Image.open(path).convert("L") for path in (tmp_path / "picture.png", FOLDER / f"{task}.png"))
    assert shown.width == stored.width
    assert shown.height == pytest.approx(stored.height, rel=0.1), "look at it, and write it again"
    assert len(np.unique(np.asarray(shown))) > 30


@pytest.mark.parametrize("task", RUNS)
def test_the_pictures_in_the_docs_are_small(task: str) -> None:
    assert (FOLDER / f"{task}.png").stat().st_size < MAX_BYTES
