"""Runs that end a thousandfold above their start, infinite, or at chance, by metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.doctor.finding import Finding
from sightline.engine.distributed import World
from sightline.workbench.check.checks.loss_progress import diverged_loss
from sightline.workbench.check.context import Context
from tests.command import run_here
from tests.doctor.planting import CONFIG, assert_complete, make
from tests.doctor.regressing import context_of, make_maps

CHANCE = math.log(12)


def found_in(
    folder: Path,
    *losses: float | None,
    every: int = 25,
    metric: tuple[float, ...] = (0.1, 0.1),
    first: float | None = None,
    built: object = None,
) -> list[Finding]:
    """Findings on a run of classification whose training lines have these losses."""
    made = make(folder) if built is None else built
    name = made.config.losses[0].name  # type: ignore[attr-defined]
    lines = [
        {"step": place * every, "split": "train", "loss/total": value, f"loss/{name}": value}
        for place, value in enumerate(losses, start=1)
    ]
    lines += [{"step": 10, "split": "validation", "overall_accuracy": value} for value in metric]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    context = Context(made, World(), run=folder, first_loss=first)  # type: ignore[arg-type]
    return diverged_loss(context)


@pytest.mark.parametrize(
    ("losses", "first", "words"),
    [
        ((2.5, 2.0, None), None, "its last losses are not finite"),
        ((2.5, 2600.0), None, "its loss has risen from 2.5 to 2600"),
        ((1e13,), 2.5, "its loss has risen from 2.5 to 1e+13"),
        ((1e13, 1e12), 2.5, "its loss has risen from 2.5 to 1e+12"),
        ((-2.5, -2600.0), None, "its loss has risen from -2.5 to -2600"),
    ],
)
def test_a_loss_that_ends_high_names_the_rate(
    tmp_path: Path, losses: tuple[float | None, ...], first: float | None, words: str
) -> None:
    (finding,) = found_in(tmp_path, *losses, first=first)
    assert finding.summary == f"the training diverged at a learning rate of 0.1: {words}"
    assert (finding.cause, finding.severity, finding.where.config_path) == ("optim.lr", "warning", "optimizer.lr")
    assert_complete(finding)


@pytest.mark.parametrize("losses", [(CHANCE,) * 4, (9.0, 2.6, 2.5, 2.6), (2.0, 2.0, 3.0, 2.9)])
def test_a_run_that_ends_at_chance_says_so(tmp_path: Path, losses: tuple[float, ...]) -> None:
    """Logits of the first step are no constant, so `trivial-plateau` is silent."""
    (finding,) = found_in(tmp_path, *losses)
    assert "the run ends at chance, at a learning rate of 0.1" in finding.summary
    assert finding.evidence["chances"]["cross_entropy"] == pytest.approx(CHANCE)
    assert_complete(finding)


@pytest.mark.parametrize(
    ("losses", "metric", "every"),
    [
        ((2.5, 2.4, 1.0), (0.1, 0.1), 25),
        ((CHANCE,) * 4, (0.1, 0.4), 25),  # the metric rises
        ((CHANCE,) * 4, (0.1, 0.1), 12),  # 48 steps
        ((0.002, 0.9, 0.8), (0.9, 0.9), 25),  # 400 times
        ((0.0, 1.0, 1.0), (0.9, 0.9), 25),
        ((2.5, None, 2.0), (0.1, 0.1), 25),
    ],
)
def test_other_runs_are_let_be(
    tmp_path: Path, losses: tuple[float | None, ...], metric: tuple[float, ...], every: int
) -> None:
    assert found_in(tmp_path, *losses, metric=metric, every=every) == []


def test_heat_maps_just_below_the_loss_of_zeros_are_let_be(tmp_path: Path) -> None:
    """Their loss stands still while their peaks move; above that of zeros they are worse than nothing."""
    built = make_maps(tmp_path)
    zero = context_of(built).squared_losses["mean_square"].zero
    assert found_in(tmp_path, *(zero * 0.999,) * 4, built=built) == []
    (finding,) = found_in(tmp_path, *(zero * 1.2,) * 4, built=built)
    assert "'mean_square'" in finding.measured


def test_without_a_run_or_lines_nothing_is_found(tmp_path: Path) -> None:
    built = make(tmp_path)
    assert diverged_loss(Context(built, World())) == []
    assert diverged_loss(Context(built, World(), run=tmp_path)) == []


SMALL = ("data.train_size=60", "log.tensorboard=false", "--device", "cpu")


def test_a_run_of_a_rate_of_ten_thousand_says_so_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(CONFIG)
    words = ("train", tmp_path / "small.yaml", "--out", tmp_path / "run", "optimizer={name: adam, lr: 1e4}", *SMALL)
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    assert "the training diverged at a learning rate of 1e+04: its loss has risen from 2." in outcome.out + outcome.err
    findings = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert "diverged-loss" in {each["code"] for each in findings}
    assert read_config(tmp_path / "run" / "config.yaml").optimizer.arguments["lr"] == 1e4


def test_predictions_that_are_nan_name_the_rate(tmp_path: Path) -> None:
    """Losses and gradients are finite here; the evaluation, by running averages, is not."""
    (tmp_path / "small.yaml").write_text(CONFIG)
    few = "data.train_size=120"
    words = (
        "train",
        tmp_path / "small.yaml",
        "--out",
        tmp_path / "run",
        few,
        "optimizer={name: sgd, lr: 1e2}",
        *SMALL[1:],
    )
    outcome = run_here(*words)
    assert outcome.code == 1
    assert "the training diverges at a learning rate of 100: after" in outcome.err
    assert "sightline check" not in outcome.err
    assert len(json.loads((tmp_path / "run" / "findings.json").read_text())) == 1
