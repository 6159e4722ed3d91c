"""Progress in a notebook, by a planted kernel: one output that is updated, and a run with the same bits."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

import sightline
from sightline.training.progress import Progress
from tests.engine.told import evaluation, random_states, step
from tests.processes import ROOT
from tests.runs.broken_off import differences
from tests.runs.small import PLAIN, SMALL

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"


class Kernel:
    """What `ipykernel` and `IPython.display` are to a cell: its standard output, and its outputs with their updates."""

    def __init__(self) -> None:
        self.stdout = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, shown: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        updates = [shown]
        self.outputs.append(updates)
        handle = ModuleType("handle")
        handle.update = lambda shown, *, raw: updates.append(shown)  # type: ignore[attr-defined]
        return handle

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function as a cell does."""
        with contextlib.redirect_stdout(self.stdout):
            return function(*arguments, **named)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    planted = Kernel()
    module = ModuleType("IPython.display")
    module.display = planted.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return planted


def read_curves(html: str) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of the drawing, by the titles of their panels: places of their points on the paper."""
    namespace = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(html[html.index("<svg") :])
    curves = {}
    for panel in root.iter(f"{namespace}g"):
        title, line = panel.find(f"{namespace}text"), panel.find(f"{namespace}polyline")
        assert title is not None
        assert line is not None
        x_and_y = [point.split(",") for point in line.attrib["points"].split()]
        curves[str(title.text)] = [(float(x), float(y)) for x, y in x_and_y]
    return curves


def test_one_output_is_updated_with_curves_that_follow_the_run(kernel: Kernel) -> None:
    progress = kernel.call(Progress, metric="accuracy")
    before = random_states()
    for number in range(1, 101):
        progress.on_step(step(number))
        if number % 50 == 0:
            progress.on_evaluation(evaluation(number, metrics={"accuracy": number / 100, "<b>": math.nan}))
        assert random_states() == before
    progress.on_end("done")
    (updates,) = kernel.outputs
    assert 10 <= len(updates) <= 40, "every half second of ten, and at epochs and evaluations"
    html, text = updates[-1]["text/html"], updates[-1]["text/plain"].splitlines()
    assert text[0] == "epoch 10/10  step 100/100  loss 0.02  lr 0.001  80 samples/s  10 steps/s  ETA 0:00:00"
    assert text[1].startswith("validation at step 100 (epoch 10): accuracy 1, <b> nan")
    assert '<progress value="1.0000" max="1"' in html
    assert "<b>" not in html
    curves = read_curves(html)
    loss, accuracy = curves["loss, mean of 50 steps"], curves["accuracy"]
    assert len(loss) == len({x for x, _ in loss}) > 10
    assert [y for _, y in loss] == sorted(y for _, y in loss), "a loss that falls goes down on the paper"
    assert len(accuracy) == 2
    assert accuracy[0][1] > accuracy[1][1]
    assert "accuracy" not in read_curves(updates[0]["text/html"]), "nothing is evaluated yet"
    assert kernel.stdout.getvalue() == ""


def test_a_long_run_keeps_few_points(kernel: Kernel) -> None:
    progress = kernel.call(Progress, every_s=0.0)
    for number in range(1, 1501):
        progress.on_step(step(number, num_steps=1500))
    (points,) = read_curves(kernel.outputs[0][-1]["text/html"]).values()
    assert 200 <= len(points) <= 400
    assert len(kernel.outputs[0][-1]["text/html"]) < 20_000


def test_a_run_in_a_notebook_has_its_bits(kernel: Kernel, tmp_path: Path) -> None:
    words = [*SMALL, *PLAIN]
    kernel.call(sightline.train_run, CONFIG, words, out=tmp_path / "notebook", checks=False, device="cpu")
    (updates,) = kernel.outputs
    assert "validation at step 12" in updates[-1]["text/plain"]
    assert {"overall_accuracy"} < read_curves(updates[-1]["text/html"]).keys()
    silent = tmp_path / "silent"
    kernel.call(sightline.train_run, CONFIG, words, out=silent, checks=False, device="cpu", progress=False)
    assert len(kernel.outputs) == 1
    sightline.train_run(CONFIG, words, out=tmp_path / "script", checks=False, device="cpu")
    assert differences(tmp_path / "notebook", tmp_path / "script") == []
    assert differences(silent, tmp_path / "script") == []


def test_without_ipython_a_notebook_has_plain_lines(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython.display")
    kernel.call(Progress, metric="accuracy").on_step(step(1))
    assert kernel.stdout.getvalue().startswith("epoch 1/10  step 1/100")
    assert not kernel.outputs
