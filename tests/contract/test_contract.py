"""The riskiest seam: any split of a step gives the same losses, weights and metrics, for every kind of task."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sightline.engine.distributed import World
from tests.contract.run_toys import NUM_STEPS, run
from tests.contract.toys import TOYS
from tests.processes import run_ranks

# Sums over at most a few thousand float64 terms in another order differ by about sqrt(n) * 1e-16 of their size; AdamW
# divides by root mean squares that may be small. The bound leaves four orders of magnitude above what is seen.
BOUND = 1e-9


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("toys") / "results.json"
    run_ranks(["-m", "tests.contract.run_toys", str(out)], 2)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def whole() -> dict:
    return {name: run(toy, World(), 1) for name, toy in TOYS.items()}


def assert_same(result: dict, expected: dict) -> None:
    assert len(result["trace"]) == len(expected["trace"]) == NUM_STEPS
    for ours, theirs in zip(result["trace"], expected["trace"], strict=True):
        assert ours == pytest.approx(theirs, rel=BOUND, abs=BOUND)
    for name, values in expected["weights"].items():
        np.testing.assert_allclose(result["weights"][name], values, rtol=0, atol=BOUND)


@pytest.mark.parametrize("name", TOYS)
def test_four_micro_batches_are_one_batch(whole: dict, name: str) -> None:
    assert_same(run(TOYS[name], World(), 4), whole[name])


@pytest.mark.parametrize("order", ["turned", "gapped"])
@pytest.mark.parametrize("name", TOYS)
def test_the_order_of_parameters_in_memory_changes_nothing(whole: dict, name: str, order: str) -> None:
    assert_same(run(TOYS[name], World(), 1, order=order), whole[name])


@pytest.mark.processes
@pytest.mark.parametrize("case", ["as_made 1", "as_made 2", "turned 1", "gapped 1"])
@pytest.mark.parametrize("name", TOYS)
def test_two_processes_are_one(whole: dict, two_processes: dict, name: str, case: str) -> None:
    assert_same(two_processes[name][case], whole[name])


@pytest.mark.processes
@pytest.mark.parametrize("name", TOYS)
def test_metrics_have_the_same_bits_on_two_processes(two_processes: dict, name: str) -> None:
    """Evaluated with the very weights that two processes ended with, on one process: equal, not close."""
    import torch

    from sightline.engine.evaluate import Evaluator
    from sightline.engine.precision import Precision
    from tests.contract.toy import NUM_SAMPLES, meters

    toy, theirs = TOYS[name], two_processes[name]["as_made 1"]
    model = toy.model().double()
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    model.load_state_dict(
        {k: torch.tensor(v, dtype=torch.float64).view(shapes[k]) for k, v in theirs["weights"].items()}
    )
    reader = toy.reader
    evaluator = Evaluator(
        toy.task(model, reader.keys),
        meters(toy, model, reader),
        reader,
        np.arange(NUM_SAMPLES),
        batch_size=7,
        loss_names=tuple(toy.weights),
        precision=Precision("float64"),
    )
    ours = evaluator(model, World())
    assert dict(ours.metrics) == theirs["metrics"]
    assert dict(ours.losses) == theirs["losses"]


@pytest.mark.parametrize("name", TOYS)
def test_the_loss_falls(whole: dict, name: str) -> None:
    totals = [step["total"] for step in whole[name]["trace"]]
    assert totals[-1] < totals[0]
