"""Parameters of losses are trained, averaged, saved and resumed with the model's; other runs keep their bytes."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.errors import CheckpointError, ConfigError
from sightline.contract.loss import Loss, cast_forward
from sightline.contract.model import Model
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.gradients import flatten_gradients
from sightline.engine.learnt_losses import LearntLosses, combine_modules
from sightline.engine.queued_step import QueuedStep
from sightline.engine.step import StepTimer
from sightline.engine.train import train_step
from sightline.runs import checkpoint
from sightline.runs.run_directory import RunDirectory
from sightline.runs.trained_weights import load_losses
from sightline.training.session import TrainingSession
from sightline.training.stop_request import StopRequest
from sightline.workbench.check.suite import run_quick
from tests.command import run_here, succeed
from tests.doctor.planting import make
from tests.engine.published_weights import registered
from tests.waits import counted_waits


class Out(TypedDict):
    logits: Tensor
    hidden: Tensor


class HiddenNet(Model):
    """The maximum over points of a linear layer, and one over that: a network that shows what it knows of a cloud."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.each, self.drop, self.head = nn.Linear(in_channels, 6), nn.Dropout(0.3), nn.Linear(6, num_classes)

    def forward(self, *, points: Tensor) -> Out:
        hidden = self.each(points).amax(1)
        return {"logits": self.head(self.drop(hidden)), "hidden": hidden}


class Centre(Loss):
    """Half the squared distances from centres that move. Source: Wen et al. 2016, equation 2."""

    def __init__(self, *, num_classes: int, is_used: bool = True) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(num_classes, 6))
        self.register_buffer("num_calls", torch.tensor(0))
        self.is_used = is_used

    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(label.numel())

    def forward(self, *, hidden: Tensor, label: Tensor) -> Tensor:
        if self.training:
            self.num_calls += 1
        centres = self.centres[label] if self.is_used else 0.0
        return (hidden - centres).square().sum() / 2


OVERRIDES = (
    "data.train_size=36",
    "model={name: hidden_net}",
    "losses=[{name: cross_entropy}, {name: centre, weight: 0.5}]",
    "optimizer={name: adamw, lr: 1e-2}",
    "train.batch_size=8",
    "log.tensorboard=false",
    "checkpoint.keep_last=9",
)


@pytest.fixture(autouse=True)
def _parts() -> Iterator[None]:
    with registered(registry.models, hidden_net=HiddenNet), registered(registry.losses, centre=Centre):
        yield


def made(folder: Path, *overrides: str) -> TrainingSetup:
    given = {override.split("=")[0] for override in overrides}
    return make(folder, *(each for each in OVERRIDES if each.split("=")[0] not in given), *overrides)


def session_of(folder: Path, *overrides: str) -> TrainingSession:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    built = made(folder, *overrides)
    return TrainingSession(
        built, World(), RunDirectory(run, is_writer=True), stop=StopRequest(), record={}, is_quiet=True
    )


def trained(folder: Path, *overrides: str) -> TrainingSession:
    session = session_of(folder, *overrides)
    session.start_files()
    session.start()
    assert session.run() is not None
    return session


def a_step(built: TrainingSetup) -> tuple[dict, QueuedStep]:
    """The first batch of a run, and what a step on it gave."""
    job = built.job
    (keys,), *_ = job.stream.plan.step_keys(job.step)
    batch = job.stream.reader(keys)
    return batch, train_step(job, job.model, [batch], World(), StepTimer(job.task, remainder="loss"))


def bits(tensors: dict[str, Tensor] | None) -> dict[str, bytes]:
    return {name: each.numpy().tobytes() for name, each in (tensors or {}).items()}


# --- training --------------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_numpy(tmp_path: Path) -> None:
    """dL/dc = w/N sum over the class's samples of (c - h); the bound on the gradient covers both."""
    clipped = ("optimizer={name: sgd, lr: 0.5, momentum: 0.0, weight_decay: 0.3}", "train.clip_norm=0.1")
    built = made(tmp_path, *clipped)
    job, centres = built.job, built.job.losses.losses["centre"].centres
    before, first = centres.detach().double().numpy().copy(), {n: p.clone() for n, p in job.model.named_parameters()}
    (keys,), *_ = job.stream.plan.step_keys(0)
    batch = job.stream.reader(keys)
    hidden = job.model(points=batch["points"])["hidden"].detach().double().numpy()
    gradient = np.zeros_like(before)
    for row, label in zip(hidden, batch["label"].tolist(), strict=True):
        gradient[label] += 0.5 * (before[label] - row) / len(hidden)
    _, totals = a_step(built)
    rate = 0.5 * 0.1 / totals.grad_norm
    np.testing.assert_allclose(centres.detach().numpy(), before - rate * gradient, rtol=0, atol=1e-6)
    moved = [(p.detach() - (1 - 0.5 * 0.3) * first[n].detach()) / rate for n, p in job.model.named_parameters()]
    norm = np.sqrt(sum(float(each.square().sum()) for each in moved) + np.square(gradient).sum())
    assert totals.grad_norm == pytest.approx(norm, rel=1e-4)


def test_a_loss_has_a_group_of_its_own_without_decay(tmp_path: Path) -> None:
    built = made(
        tmp_path,
        "optimizer={name: adamw, lr: 1e-2, decay: all, layer_decay: {factor: 0.5}, "
        "groups: [{modules: losses.centre, lr_factor: 3}]}",
    )
    named = {group.get("name"): group for group in built.job.optimizer.param_groups if "name" in group}
    assert [*named] == ["losses.centre"]
    assert (named["losses.centre"]["lr"], named["losses.centre"]["weight_decay"]) == (pytest.approx(0.03), 0.0)
    (held,) = named["losses.centre"]["params"]
    assert held is built.job.losses.losses["centre"].centres
    (row,) = [rate for rate in built.module_rates if rate.module == "losses.centre"]
    assert (row.num_elements, row.lr, row.num_decayed, row.frozen) == (72, pytest.approx(0.03), 0, "")


@pytest.mark.parametrize("until", ["", ", until_epoch: 1"])
def test_a_frozen_loss_rests(tmp_path: Path, until: str) -> None:
    built = made(tmp_path, f"optimizer={{name: sgd, lr: 0.1, frozen: [{{modules: losses.centre{until}}}]}}")
    loss = built.job.losses.losses["centre"]
    before = loss.centres.detach().clone()
    a_step(built)
    assert torch.equal(loss.centres, before)
    assert not loss.training
    built.job.step = built.job.stream.plan.steps_per_epoch
    a_step(built)
    assert torch.equal(loss.centres, before) == (not until)


def test_layers_norms_name_the_loss(tmp_path: Path) -> None:
    _, totals = a_step(made(tmp_path, "log.gradients=true"))
    assert totals.gradient_norms["losses.centre"] > 0


def test_a_name_that_the_model_has_is_refused() -> None:
    model = nn.ModuleDict({"losses": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"its part 'losses' has the name of losses that learn \(losses\.mine\)"):
        combine_modules(model, LearntLosses({"mine": nn.Linear(1, 1)}))  # type: ignore[dict-item]
    assert combine_modules(model, LearntLosses()) is model


# --- the average -----------------------------------------------------------------------------------------------------


def test_the_average_is_kept_and_evaluated(tmp_path: Path) -> None:
    """As the model's: average <- d average + (1 - d) centres, with d = 1/10, 2/11, 3/12 in the first steps.

    Losses of an evaluation are those of both averages.
    """
    built = made(tmp_path, "train.ema_decay=0.5")
    job = built.job
    expected = job.losses.losses["centre"].centres.detach().clone()
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):
        job.step = step
        a_step(built)
        expected = decay * expected + (1 - decay) * job.losses.losses["centre"].centres.detach()
    assert job.losses_ema is not None
    torch.testing.assert_close(job.losses_ema.losses["centre"].centres, expected)
    session = TrainingSession(built, World(), RunDirectory(tmp_path, is_writer=True), stop=StopRequest(), record={})
    now, calls = bits(job.losses.plain_state()), int(job.losses.losses["centre"].num_calls)
    with session._evaluation_state():
        evaluation = built.selection_evaluator(job.evaluation_model, World())
    assert bits(job.losses.plain_state()) == now, "neither parameters nor buffers"
    assert int(job.losses.losses["centre"].num_calls) == calls == 3
    assert job.losses.losses["centre"].training
    (keys,) = evaluation_keys(built.data.selection.indices, 100, epoch=0, seed=built.config.seed)
    batch = built.data.selection.reader(keys)
    with torch.no_grad():
        hidden = job.evaluation_model.eval()(points=batch["points"])["hidden"]
    by_hand = float((hidden - expected[batch["label"]]).square().sum() / 2 / len(hidden))
    assert evaluation.losses["centre"] == pytest.approx(by_hand, rel=1e-5)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_them_and_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    given = ("train.ema_decay=0.9", "train.clip_norm=1.0")
    whole = trained(tmp_path, *given)
    run = tmp_path / "run"
    last = (run / "checkpoints" / "last").resolve()
    kept = load_file(last / "losses.safetensors")
    assert sorted(kept) == ["centre.centres", "centre.num_calls"]
    assert torch.equal(kept["centre.centres"], whole.job.losses.losses["centre"].centres)
    assert sorted(load_file(last / "losses_ema.safetensors")) == sorted(kept)
    assert "losses.centre.centres/exp_avg" in load_file(last / "optimizer.safetensors")
    expected = {path.name: path.read_bytes() for path in last.iterdir() if path.suffix == ".safetensors"}
    state = checkpoint.load(last).state

    shutil.rmtree(last)
    first = min(path for path in (run / "checkpoints").iterdir() if path.name.startswith("step_"))
    torch.manual_seed(99)
    again = session_of(tmp_path, *given)
    again.resume(first)
    assert 0 < again.job.step < whole.job.step
    assert again.run() is not None
    assert {name: (last / name).read_bytes() for name in expected} == expected
    assert checkpoint.load(last).state["random"] == state["random"]


def test_a_checkpoint_without_them_is_refused_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one from before they were trained; an evaluation of it leaves the loss out, and says so."""
    trained(tmp_path)
    run = tmp_path / "run"
    snapshot = checkpoint.load(run)
    groups = [group for group in snapshot.state["groups"] if "name" not in group]
    optimizer = {key: value for key, value in snapshot.optimizer.items() if not key.startswith("losses.")}
    old = dataclasses.replace(snapshot, losses=None, optimizer=optimizer, state={**snapshot.state, "groups": groups})
    place = checkpoint.save(run, old, keep_last=1, is_best=False)
    assert not (place / "losses.safetensors").exists()
    with pytest.raises(CheckpointError) as caught:
        session_of(tmp_path).resume(place)
    assert str(caught.value) == (
        f"{place}: contains no 'centre.centres' of the losses that learn (centre): it was saved before sightline "
        f"trained these; start a new run, from its weights by init.from={place}"
    )
    assert load_losses(run) == {}
    (run / "environment.json").write_text('{"plugins": []}')
    with caplog.at_level(logging.WARNING, logger="sightline"):
        outcome = run_here("evaluate", run, "--device", "cpu", "--json", tmp_path / "figures.json")
    assert outcome.code == 0, outcome.err
    assert "loss-not-kept" in outcome.err + caplog.text
    assert set(json.loads((tmp_path / "figures.json").read_text())["losses"]) == {"cross_entropy"}


def test_an_evaluation_has_what_was_learnt(tmp_path: Path) -> None:
    trained(tmp_path)
    run = tmp_path / "run"
    figures = (run / "final.json").read_text()
    (run / "environment.json").write_text('{"plugins": []}')
    succeed("evaluate", run, "--device", "cpu", "--json", tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text())["losses"] == json.loads(figures)["losses"]
    assert load_losses(tmp_path / "packed.slq") == {}, "a packed model leaves them out"


def test_runs_without_such_losses_have_neither_file_nor_name(tmp_path: Path) -> None:
    session = trained(tmp_path, "losses=[{name: cross_entropy}]", "train.ema_decay=0.9")
    last = (tmp_path / "run" / "checkpoints" / "last").resolve()
    names = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {path.name for path in last.iterdir()} == names
    assert not any("name" in group for group in session.job.optimizer.param_groups)
    assert not session.job.losses


# --- who else runs a step --------------------------------------------------------------------------------------------


def test_checks_leave_no_trace(tmp_path: Path) -> None:
    built = made(tmp_path)
    before = bits(built.job.losses.plain_state())
    findings = run_quick(built, World())
    assert [finding for finding in findings if finding.code in ("no-gradient", "first-step")] == []
    assert bits(built.job.losses.plain_state()) == before
    assert all(parameter.grad is None for parameter in built.job.losses.parameters())


def test_parameters_that_a_loss_never_uses_are_found(tmp_path: Path) -> None:
    built = made(tmp_path, "losses=[{name: cross_entropy}, {name: centre, is_used: false}]")
    (finding,) = [each for each in run_quick(built, World()) if each.code == "no-gradient"]
    assert finding.summary == "1 parameter(s) of losses get no gradient: losses.centre.centres"
    assert finding.where.param == "losses.centre.centres"


class Distance(Loss):
    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([0.25, -3.0]))

    def count(self, *, hidden: Tensor) -> Tensor:
        return torch.tensor(len(hidden))

    def forward(self, *, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        assert hidden.dtype == self.centre.dtype
        return torch.cdist(hidden, self.centre[None]).square().sum()


def test_a_step_in_float64_takes_the_loss_along() -> None:
    """Who repeats a step in another format has the model alone; the gradient comes back to the loss's own."""
    loss, hidden = Distance(), torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    run = cast_forward(loss)
    total = run(hidden=hidden)
    assert total.dtype == torch.float64
    assert float(total.detach()) == pytest.approx(0.75**2 + 5.0**2 + 2.75**2 + 8.0**2, rel=1e-12)
    total.backward()
    assert loss.centre.grad is not None
    assert loss.centre.grad.tolist() == pytest.approx([2 * (0.25 - 1 + 0.25 - 3), 2 * (-3.0 - 2 - 3 - 5)])
    assert run(hidden=hidden.float()).dtype == torch.float32
    constant = Distance().requires_grad_(False)
    assert cast_forward(constant) == constant.forward


def test_gradients_are_sent_while_a_gpu_computes_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags of a bucket, which say whose gradients there are, need no wait."""
    layer = nn.Linear(2, 3)
    layer(torch.ones(1, 2)).sum().backward()
    layer.bias.grad = None
    with counted_waits(monkeypatch) as waits:
        flat = flatten_gradients([*layer.parameters()])
    assert flat.tolist() == [1.0] * 6 + [0.0] * 3 + [1.0, 0.0]
    assert not waits
