"""Numbers that are no longer finite: never saved, and refused where a checkpoint of an earlier version has them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.contract.draws import Draws
from sightline.contract.errors import CheckpointError
from sightline.engine.finite_state import FiniteState, NonFiniteStateError
from sightline.engine.train import TrainState
from sightline.parts.transforms.points import Jitter
from sightline.runs import checkpoint
from sightline.runs.optimizer_state import restore_optimizer
from tests.cases import run_each
from tests.command import run_here, succeed
from tests.runs.small import PLAIN, ROOT, SMALL, small_run
from tests.trained import copy_run

INF = math.inf
VARIANCE, LINEAR = "encode.0.norm.running_var", "encode.0.linear.weight"


@pytest.fixture(scope="module")
def job() -> TrainState:
    """A training of one step with EMA and Adam, whose model also has buffers as others have them."""
    built = small_run(*PLAIN, "train.ema_decay=0.9", "optimizer={name: adam, lr: 1e-3}")
    job = built.job
    for parameter in job.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    job.optimizer.step()
    buffers = {"mask": [0.0, -INF], "lowest": [INF, INF], "seen": [1.0, 2.0], "cache": [0.0]}
    for name, values in buffers.items():
        job.model.register_buffer(name, torch.tensor(values))
    return job


def fill(job: TrainState, name: str, *values: float) -> None:
    job.model.register_buffer(name, torch.tensor(values))


def first_slots(job: TrainState) -> dict[str, Tensor]:
    return next(iter(job.optimizer.state.values()))


def spoil(module: nn.Module | None, name: str, value: float = INF) -> None:
    assert module is not None
    with torch.no_grad():
        module.state_dict()[name].view(-1)[0] = value


@run_each(
    "change, named",
    [
        (lambda job: spoil(job.model, VARIANCE), f"the buffer '{VARIANCE}' of the model"),
        (lambda job: fill(job, "seen", 1.0, math.nan), "the buffer 'seen' of the model"),
        (lambda job: spoil(job.model, LINEAR, -INF), f"the parameter '{LINEAR}' of the model"),
        (lambda job: spoil(job.ema, VARIANCE), f"'{VARIANCE}' of the EMA"),
        (lambda job: first_slots(job)["exp_avg_sq"].fill_(INF), "the optimiser's slot 'encode.0"),
        (lambda job: None, ""),
        (lambda job: spoil(job.model, LINEAR, 3e38), ""),
        (lambda job: fill(job, "lowest", 0.5, INF), ""),
        (lambda job: fill(job, "mask", -INF, -INF), ""),
        (lambda job: fill(job, "cache", 0.0, -INF), ""),
        (lambda job: fill(job, "of_the_first_call", -INF), ""),
    ],
)
def test_what_was_finite_has_to_stay_so(change: Callable[[TrainState], None], named: str, job: TrainState) -> None:
    """A mask, a running minimum, a cache that grows with its batch, and what a first call makes may hold any number."""
    modules = [module for module in (job.model, job.ema) if module is not None]
    before = [({n: t.clone() for n, t in m.state_dict().items()}, dict(m._buffers)) for m in modules]
    slots = job.optimizer.state_dict()
    slots = {**slots, "state": {i: {k: v.clone() for k, v in s.items()} for i, s in slots["state"].items()}}
    state = FiniteState(job)
    job.step = 7
    change(job)
    try:
        if named:
            with pytest.raises(NonFiniteStateError, match=f"step 7: .*{named}.* not finite .*; after step 0 all were"):
                state.assert_finite()
        else:
            state.assert_finite()
            assert state.sound_step == 7
    finally:
        job.step = 0
        job.optimizer.load_state_dict(slots)
        for module, (tensors, buffers) in zip(modules, before, strict=True):
            module._buffers.clear()
            module._buffers.update(buffers)
            module.load_state_dict(tensors)


def test_a_look_is_one_wait_for_a_device(job: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.waits import counted_waits

    state = FiniteState(job)
    job.step = 7
    with counted_waits(monkeypatch) as waits:
        state.assert_finite()
    job.step = 0
    assert sum(waits.values()) == 1, waits


# --- whole runs ------------------------------------------------------------------------------------------------------

CONFIG = ROOT / "configs/classify/synthetic_shapes_pointnet.yaml"
WIDE = "model={name: pointnet_plain}"
"""Its loss stays finite where a coordinate is huge."""
TRAIN = (
    *("train", CONFIG, *SMALL, WIDE, *PLAIN[1:], "--no-check"),
    *("transforms.train=[{name: jitter}]", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "--out"),
)


def plant_huge_number(monkeypatch: pytest.MonkeyPatch, *, call: int, value: float) -> None:
    """Set one coordinate of all points to a huge number, in one call of the transform."""
    calls, jitter = itertools.count(1), Jitter.__call__

    def planted(self: Jitter, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        changed = jitter(self, draws, points=points)
        if next(calls) == call:
            changed["points"][..., 0] = value
        return changed

    monkeypatch.setattr(Jitter, "__call__", planted)


def test_a_huge_number_in_one_batch_stops_the_run_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its square is infinite in the running variance; loss and gradients are finite, so the training went on."""
    with monkeypatch.context() as patch:
        plant_huge_number(patch, call=5, value=1e30)
        done = run_here(*TRAIN, tmp_path)
    assert done.code == 1
    assert "the buffer 'encode.0.norm.running_var' of the model is no longer finite, as it was after step 4" in done.err
    (finding,) = json.loads((tmp_path / "findings.json").read_text())
    assert (finding["code"], finding["where"]["step"]) == ("non-finite", 6)
    assert "steps 5 to 6" in finding["action"]
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_00000002", "step_00000004"]
    succeed(*TRAIN, tmp_path, "--resume", "auto")
    assert json.loads((tmp_path / "findings.json").read_text()) == []


@pytest.fixture(scope="module")
def spoiled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as earlier versions saved it, with a running variance of infinity."""
    run = copy_run("classify", tmp_path_factory.mktemp("spoiled"))
    snapshot = checkpoint.load(run)
    name = min(name for name in snapshot.model if name.endswith("running_var"))  # a file's order is not kept
    spoiled = {**snapshot.model, name: torch.full_like(snapshot.model[name], INF)}
    checkpoint.save(run, dataclasses.replace(snapshot, model=spoiled), keep_last=1, is_best=True)
    return run


REFUSED = r"running_var'( of the model)?: ([\d,]+) of \2 numbers are not finite \(inf first\)"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["evaluate", "RUN"], 2),
        (["train", "RUN", "--resume", "auto", "train.epochs=2", "--no-check"], 2),
        (["train", CONFIG, *SMALL, "init.from=RUN", "--no-check", "--out", "OUT"], 2),
    ],
    ids=["evaluate", "resume", "init"],
)
def test_saved_numbers_that_are_not_finite_are_named(
    words: list[object], code: int, spoiled_run: Path, tmp_path: Path
) -> None:
    done = run_here(*(str(word).replace("RUN", str(spoiled_run)).replace("OUT", str(tmp_path)) for word in words))
    assert done.code == code
    said = done.out + done.err
    assert re.search(REFUSED, said), said


def test_a_slot_of_an_optimiser_that_is_not_finite_is_refused() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(CheckpointError, match=r"'weight/exp_avg_sq': 1 of 2 numbers are not finite \(inf first\)"):
        restore_optimizer(model, optimizer, {"weight/exp_avg_sq": torch.tensor([[1.0, INF]])})
