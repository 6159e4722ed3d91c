"""The riskiest seam: any split of a step gives the same losses, weights and metrics, for every kind of task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.distributed import World
from tests.contract.clouds import Centre
from tests.contract.images import IMAGES
from tests.contract.images import toy as detector
from tests.contract.run_toys import BATCH_SIZE, NUM_STEPS, NUM_TRAINED, cases_of, evaluate, run
from tests.contract.toy import NUM_CLASSES
from tests.contract.toys import ALL, TOYS
from tests.processes import run_ranks

# Sums over at most a few thousand float64 terms in another order differ by about sqrt(n) * 1e-16 of their size; AdamW
# divides by root mean squares that may be small. The bound leaves four orders of magnitude above what is seen.
BOUND = 1e-9


SIZES = {2: pytest.mark.long, 3: ()}
"""Numbers of processes: three deal a step unevenly."""
HEADS = IMAGES.keys() - {"detector"}
"""Detectors that differ from the first in head and losses alone."""
EVALUATED = ("detector", "detector_none", "detector_ignored")
"""Those whose metrics on one process are read."""
CASES = [
    pytest.param(size, name, f"{order} {micro_batches}", id=f"{size}-{name}-{order}-{micro_batches}", marks=SIZES[size])
    for size in SIZES
    for name in ALL
    for order, micro_batches in cases_of(name, size)
]
ORDERED = [
    pytest.param(name, order, marks=pytest.mark.long if name in HEADS and order == "gapped" else ())
    for name in TOYS
    for order in ("turned", "gapped")
]
PAIRS = [
    pytest.param(name, size, id=f"{name}-{size}", marks=SIZES[size])
    for name in ALL
    for size in SIZES
    if cases_of(name, size)
]


@pytest.fixture(scope="module")
def many_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict]:
    """The results of so many processes."""

    @cache
    def results(size: int) -> dict:
        out = tmp_path_factory.mktemp("toys") / "results.json"
        run_ranks(["-m", "tests.contract.run_toys", str(out)], size)
        return json.loads(out.read_text())

    return results


@pytest.fixture(scope="module")
def one_process() -> dict:
    return {name: run(toy, World(), 1, is_evaluated=name in EVALUATED) for name, toy in ALL.items()}


def assert_same(result: dict, expected: dict) -> None:
    assert len(result["trace"]) == len(expected["trace"]) == NUM_STEPS
    for ours, theirs in zip(result["trace"], expected["trace"], strict=True):
        assert ours == pytest.approx(theirs, rel=BOUND, abs=BOUND)
    for kind in ("weights", "of_losses"):
        for name, values in expected[kind].items():
            np.testing.assert_allclose(result[kind][name], values, rtol=0, atol=BOUND)


@pytest.mark.parametrize("name", ALL)
def test_four_micro_batches_are_one_batch(one_process: dict, name: str) -> None:
    assert_same(run(ALL[name], World(), 4), one_process[name])


@pytest.mark.parametrize(("name", "order"), ORDERED)
def test_the_order_of_parameters_in_memory_changes_nothing(one_process: dict, name: str, order: str) -> None:
    assert_same(run(TOYS[name], World(), 1, order=order), one_process[name])


@pytest.mark.processes
@pytest.mark.parametrize(("size", "name", "case"), CASES)
def test_several_processes_are_one(
    one_process: dict, many_processes: Callable[[int], dict], size: int, name: str, case: str
) -> None:
    assert_same(many_processes(size)[name][case], one_process[name])


@pytest.mark.processes
@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_metrics_have_the_same_bits_on_several_processes(
    many_processes: Callable[[int], dict], name: str, size: int
) -> None:
    """Evaluated with the very weights that several processes ended with, on one process: equal, not close."""
    toy, theirs = ALL[name], many_processes(size)[name]["as_made 1"]
    model = toy.model().double()
    load(model, theirs["weights"])
    task = toy.task(model, toy.reader.keys)
    if theirs["of_losses"]:
        load(task.learnt.losses, theirs["of_losses"])
    ours = evaluate(toy, model, task, World())
    assert str(dict(ours.metrics)) == str(theirs["metrics"])  # of all numbers, and NaN where there are no labels
    assert str(dict(ours.losses)) == str(theirs["losses"])  # and NaN where nothing counts


def load(module: nn.Module, numbers: dict[str, list[float]]) -> None:
    like = module.state_dict()
    module.load_state_dict(
        {name: torch.tensor(values, dtype=torch.float64).view(like[name].shape) for name, values in numbers.items()}
    )


def test_parameters_of_losses_move(one_process: dict) -> None:
    """From where their constructors put them; a centre that no sample counts for stays, without weight decay."""
    starts = {"learnt": Centre().centres.detach().double().flatten().numpy(), "warmed": np.array([0.5])}
    for name, start in starts.items():
        (moved,) = one_process[name]["of_losses"].values()
        is_still = np.arange(len(start)) >= 2 * NUM_CLASSES
        assert ((np.abs(moved - start) > 0.01) == ~is_still).all()
        np.testing.assert_array_equal(np.array(moved)[is_still], start[is_still])
    assert [name for name, result in one_process.items() if result["of_losses"]] == [*starts]


@pytest.mark.parametrize("name", TOYS)
def test_the_loss_falls(one_process: dict, name: str) -> None:
    totals = [step["total"] for step in one_process[name]["trace"]]
    assert totals[-1] < totals[0]


def test_steps_and_processes_without_a_box_have_no_box_loss(one_process: dict) -> None:
    """Trap T12: the box loss is 0, and part of the graph; the other loss goes on, and its weights move."""
    for name in ("detector_none", "detector_ignored"):
        assert {step["box_smooth_l1"] for step in one_process[name]["trace"]} == {0.0}
        assert all(0 < step["grad_norm"] < math.inf for step in one_process[name]["trace"])
        assert all(math.isnan(value) for value in one_process[name]["metrics"].values())
    toy = ALL["detector_few"]
    plan = BatchSampler(np.arange(NUM_TRAINED), BATCH_SIZE, seed=3, num_processes=3)
    counts = [
        [int((~toy.reader(keys)["is_ignored"]).sum()) for keys in plan.step_keys(step)[0]] for step in range(NUM_STEPS)
    ]
    assert any(sum(step) == 0 for step in counts)
    assert any(0 in step and sum(step) > 0 for step in counts)
    assert [step["box_smooth_l1"] == 0 for step in one_process["detector_few"]["trace"]] == [
        sum(c) == 0 for c in counts
    ]


def test_all_images_of_a_step_are_scaled_alike_and_steps_are_not() -> None:
    reader = ALL["detector"].reader
    plan = BatchSampler(np.arange(NUM_TRAINED), BATCH_SIZE, seed=3, micro_batches=4)
    sizes = [{tuple(reader(keys)["image"].shape[2:]) for [keys] in plan.step_keys(step)} for step in range(NUM_STEPS)]
    assert {len(step) for step in sizes} == {1}
    assert len(set.union(*sizes)) > 2


def test_arguments_of_evaluation_change_no_bit_of_training(one_process: dict) -> None:
    toy = detector(evaluation={"suppression": {"name": "soft_linear"}, "most": 3, "clip": False})
    changed = run(toy, World(), 1, is_evaluated=True)
    for part in ("trace", "weights", "losses"):
        assert changed[part] == one_process["detector"][part]
    assert changed["metrics"]["ar"] < one_process["detector"]["metrics"]["ar"]
