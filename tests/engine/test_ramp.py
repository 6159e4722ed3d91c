"""Weights of losses that move: the values worked by hand, what a step and its records make of them, and a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sightline.engine.distributed import World
from sightline.engine.records import StepRecord
from sightline.engine.train import train
from sightline.types import LinearRamp
from tests.command import succeed
from tests.runs.small import SMALL, small_config, small_run

RAMP = "losses.1.weight={start: 0.0, end: 3.0, epochs: 1}"
PENALTY = "feature_transform_penalty"
CONFIG = "configs/classify/synthetic_shapes_pointnet.yaml"


def records_of(*overrides: str) -> list[StepRecord]:
    built = small_run(*overrides)
    records: list[StepRecord] = []
    train(built.job, World(), lambda record, stop: bool(records.append(record)))
    return records


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (LinearRamp(0.0, 3.0, 2.0), [0.0, 0.75, 1.5, 2.25, 3.0, 3.0]),  # two epochs of two steps: 3/4 a step
        (LinearRamp(2.0, 1.0, 1.0), [2.0, 1.5, 1.0, 1.0, 1.0, 1.0]),
        (LinearRamp(1.0, 2.0, 0.1), [2.0] * 6),  # a fifth of a step is no step
    ],
)
def test_values_by_hand(ramp: LinearRamp, expected: list[float]) -> None:
    assert [ramp.value_at(step, steps_per_epoch=2) for step in range(6)] == expected


def test_the_total_of_every_step_uses_the_weight_of_that_step() -> None:
    """60 shapes of 12 classes, one of each held out: 48, so 6 steps of 8 an epoch, and half a unit of weight a step."""
    records = records_of(RAMP)
    expected = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] + [3.0] * 6
    assert [record.extra_scalars[f"weight/{PENALTY}"] for record in records] == expected
    for record, weight in zip(records, expected, strict=True):
        total = record.losses["cross_entropy"] + weight * record.losses[PENALTY]
        assert record.losses["total"] == pytest.approx(total, rel=1e-12)


def test_a_step_is_that_of_the_fixed_weight() -> None:
    """The first step weighs the penalty 0: it is the step of a run without it; the second is not."""
    without = records_of("losses.1.weight=0.0", "train.steps=3")
    ramped = records_of(RAMP, "train.steps=3")
    assert [ramped[step].grad_norm == without[step].grad_norm for step in range(3)] == [True, False, False]
    fixed = records_of("losses.1.weight=2.5", "train.steps=1")
    started = records_of("losses.1.weight={start: 2.5, end: 0.0, epochs: 1}", "train.steps=1")
    assert fixed[0].grad_norm == started[0].grad_norm


def test_fixed_weights_are_not_logged() -> None:
    assert not any(name.startswith("weight/") for name in records_of("train.steps=1")[0].extra_scalars)


@pytest.mark.long
def test_a_resumed_run_has_the_bits_of_the_unbroken_one(tmp_path: Path) -> None:
    """Broken off at step 3, in the middle of the ramp."""
    words = [*SMALL, RAMP, "log.every=1", "checkpoint.every_steps=3", "checkpoint.keep_last=9"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    succeed("train", CONFIG, *words, "--out", whole, "--no-check")
    shutil.copytree(whole, part, symlinks=True)
    (part / "final.json").unlink()
    third = part / "checkpoints" / "step_00000003"
    succeed("train", CONFIG, *words, "--out", part, "--resume", third, "--no-check")
    weights = [(run / "checkpoints/last/model.safetensors").read_bytes() for run in (whole, part)]
    assert weights[0] == weights[1]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, part)]
    totals = [[line["loss/total"] for line in each if line["split"] == "train"] for each in lines]
    assert totals[0] == totals[1]
    told = [line[f"weight/{PENALTY}"] for line in lines[1] if line["split"] == "train"]
    assert told == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] + [3.0] * 6


def test_checks_pass_over_a_term_that_weighs_nothing_at_first() -> None:
    from sightline.doctor.suite import run_quick

    torch.use_deterministic_algorithms(False)
    assert [f.code for f in run_quick(small_run(RAMP), World()) if f.severity == "error"] == []


def test_the_config_keeps_the_ramp() -> None:
    assert small_config(RAMP).losses[1].weight == LinearRamp(0.0, 3.0, 1.0)
