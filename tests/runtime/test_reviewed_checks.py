"""What reviewers found that `check` moved, copied or refused, and where `watch` raised a false alarm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sightline
from sightline.contract.errors import UserError

# --- what a check leaves as it was, and takes ------------------------------------------------------------------------

GENERATOR = np.random.default_rng(0)


class Noisy(Dataset[Any]):
    """Noise from a generator of the set, and from one of its module."""

    def __init__(self) -> None:
        self.rng, self.rows = np.random.default_rng(1), torch.randn(200, 8)

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        noise = float(self.rng.normal(0, 0.1)) + float(GENERATOR.normal(0, 0.1))
        return self.rows[index] + noise, int(self.rows[index, 0] > 0)


def test_generators_of_loader_set_and_module_are_put_back() -> None:
    loader = DataLoader(Noisy(), 16, shuffle=True, generator=torch.Generator().manual_seed(0))

    def states() -> Any:
        own = [each.bit_generator.state["state"] for each in (loader.dataset.rng, GENERATOR)]  # type: ignore[attr-defined]
        return loader.generator.get_state().tolist(), torch.get_rng_state().tolist(), own

    model, before = nn.Linear(8, 2), states()
    sightline.check(model, nn.CrossEntropyLoss(), loader)
    assert states() == before


def test_a_set_in_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TensorDataset(torch.randn(300, 8), torch.randint(0, 2, (300,)))
    monkeypatch.setattr(TensorDataset, "__deepcopy__", lambda own, memo: pytest.fail("copied"), raising=False)
    sightline.check(nn.Linear(8, 2), nn.CrossEntropyLoss(), DataLoader(data, 16, shuffle=True))


class Centred(nn.Module):
    """A loss with a running centre, a counter and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))
        self.weight, self.calls, self.mean = nn.Parameter(torch.zeros(())), 0, torch.tensor(0.0)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        self.centre.mul_(0.9).add_(outputs.detach().mean(0), alpha=0.1)
        self.mean = 0.9 * self.mean + 0.1 * target.mean()
        return F.mse_loss(outputs - self.centre, target) * (-self.weight).exp() + self.weight


def test_a_loss_keeps_its_state() -> None:
    loss, model = Centred(), nn.Linear(8, 4)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()])
    sightline.check(model, loss, (torch.randn(16, 8), torch.rand(16, 4)), optimizer=optimizer)
    assert loss.calls == 0
    assert loss.weight.grad is None
    assert not loss.centre.any()
    assert loss.mean == 0


def test_a_finding_about_a_module_can_be_declared() -> None:
    images = torch.rand(64, 3, 32, 32)
    program = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    program(images)
    data = ((images * 255).round() / 65025, torch.arange(64) % 2)
    assert [each.code for each in sightline.check(program, nn.CrossEntropyLoss(), data).findings][:1] == [
        "input-statistics"
    ]
    report = sightline.check(program, nn.CrossEntropyLoss(), data, declared=("input-statistics",))
    assert all(each.code != "input-statistics" for each in report.findings)
    assert "nobody judged: declared: input-statistics" in str(report)
    with pytest.raises(UserError, match=r"no finding has the code 'input-statistic'; did you mean 'input-statistics'"):
        sightline.check(program, nn.CrossEntropyLoss(), data, declared=("input-statistic",))


# --- loops -----------------------------------------------------------------------------------------------------------


def test_the_start_of_a_long_warm_up_of_epochs_raises_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3, total_iters=20)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler) as watch:
        for step in range(100):
            inputs = torch.randn(32, 8)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), inputs[:, :4].argmax(1)).backward()
            optimizer.step()
            if step % 20 == 19:
                scheduler.step()
    assert [each.summary for each in watch.findings if each.severity != "note"] == []


def test_places_of_one_class_and_ignored_ones_are_no_fault_of_the_sampler() -> None:
    """Few images show a defect."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(40):
            label = torch.zeros(2, 16, 16, dtype=torch.long)
            label[:, :2] = 255
            label[0, 5:8, 5:8] = int(step % 8 == 7)
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(2, 3, 16, 16)), label, ignore_index=255).backward()
            optimizer.step()
    assert [each.code for each in watch.findings if each.severity != "note"] == []


def test_ctc_is_asked_for_no_labels_that_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    """torch reads and writes beyond its memory for them: the process would be aborted."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frames, self.classes = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 6)

        def forward(self, frames: Tensor) -> Tensor:
            return self.classes(self.frames(frames)[0]).log_softmax(-1)

    lowest: list[int] = []

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        lowest.append(int(label.min()))
        lengths = torch.full((len(outputs),), outputs.shape[1]), torch.full((len(outputs),), 5)
        return F.ctc_loss(outputs.transpose(0, 1), label.clamp(min=0), *lengths, zero_infinity=True)

    sightline.check(Frames(), loss, (torch.randn(8, 20, 8), torch.randint(1, 6, (8, 5))))
    assert min(lowest) >= 0


def test_attention_of_as_many_samples_as_a_head_is_wide_mixes_no_rows() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 32, dropout=0.0)
    model = nn.Sequential(layer, nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(4):
            inputs = torch.randn(12, 8, 32)  # eight samples, heads of eight numbers
            optimizer.zero_grad()
            F.cross_entropy(model(inputs)[0], inputs[0, :, :3].argmax(1)).backward()
            optimizer.step()
    assert [each.code for each in watch.findings if each.severity != "note"] == []


def test_marks_that_do_not_count_are_no_targets_of_a_cross_entropy() -> None:
    inputs = torch.randn(32, 8)
    target = torch.where(torch.rand(32, 4) < 0.3, -1.0, (inputs[:, :4] > 0).float())

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return each[target >= 0].mean()

    report = sightline.check(nn.Linear(8, 4), loss, (inputs, target))
    assert [each.code for each in report.findings if "-1 to 1" in each.summary] == []


class Keeps(nn.Module):
    """A module that keeps its last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        self.last = self.layer(inputs)
        return self.last


def test_a_module_that_keeps_a_result_is_checked() -> None:
    """torch copies no tensor with a history: a kept activation, or a weight that a parametrisation has computed."""
    batch = (torch.randn(16, 8), torch.arange(16) % 4)
    kept, pruned = Keeps(), nn.Linear(8, 4)
    kept(batch[0])
    prune.l1_unstructured(pruned, "weight", 0.3)
    for model in (kept, pruned):
        report = sightline.check(model, nn.CrossEntropyLoss(), batch)
        assert [each.code for each in report.findings if each.severity == "error"] == []
    assert kept.last.grad_fn is not None
