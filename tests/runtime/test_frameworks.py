"""Loops of Lightning, accelerate and transformers, with three bugs and with none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sightline
from tests.runtime.healthy_loops import net

pytestmark = pytest.mark.filterwarnings("ignore")  # of other packages: deprecations, advice on workers


def make_loader(size: int = 160) -> DataLoader:
    points = torch.randn(size, 10)
    return DataLoader(TensorDataset(points, points[:, :4].argmax(dim=1)), batch_size=16, shuffle=True)


def make_model(bug: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(net(), nn.Softmax(dim=1)) if bug == "softmax twice" else net()


BUGS = {
    "": [],
    "zero_grad is missing": [("gradients-kept", "optim.grad_accumulation", 2)],
    "softmax twice": [("double-softmax", "loss.double_softmax", 1)],
}


@pytest.mark.parametrize("calls_itself", [True, False], ids=["calls itself", "calls a part"])
@pytest.mark.parametrize("bug", [*BUGS, "evaluation mode"])
def test_lightning(bug: str, calls_itself: bool) -> None:
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_model(bug)

        def forward(self, points: Any) -> Any:
            return self.net(points)

        def training_step(self, batch: Any, index: int) -> Any:
            points, label = batch
            return F.cross_entropy(self(points) if calls_itself else self.net(points), label)

        def validation_step(self, batch: Any, index: int) -> Any:
            return self.training_step(batch, index)

        def on_train_batch_start(self, batch: Any, index: int) -> None:
            if bug == "evaluation mode" and self.global_step >= 5:
                self.eval()

        def optimizer_zero_grad(self, epoch: int, index: int, optimizer: Any) -> None:
            if bug != "zero_grad is missing":
                optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    module = Module()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **options)
    with sightline.watch(module) as watch:
        trainer.fit(module, make_loader(), make_loader(32))
    expected = [("mode", "model.norm_mode", 6)] if bug == "evaluation mode" else BUGS[bug]
    assert [(f.code, f.cause, f.where.step) for f in watch.findings] == expected
    assert watch.report.figures["updates"] == 20


@pytest.mark.parametrize("bug", [*BUGS, "a schedule of epochs"])
def test_accelerate(bug: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(bug)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    length = 4 if bug == "a schedule of epochs" else 20
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, make_loader(), scheduler)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler) as watch:
        for _ in range(4):
            for points, label in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(points), label))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    if bug != "zero_grad is missing":
                        optimizer.zero_grad()
    expected = [("schedule", "optim.scheduler", 7)] if bug == "a schedule of epochs" else BUGS[bug]
    assert [(f.code, f.cause, f.where.step) for f in watch.findings] == expected
    assert watch.report.figures["updates"] == 20


class Scored(nn.Module):
    """Network that returns its loss, as models of transformers do."""

    def __init__(self, bug: str) -> None:
        super().__init__()
        self.net = make_model(bug)

    def forward(self, points: Any, labels: Any) -> Any:
        logits = self.net(points)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("bug", ["", "softmax twice"])
def test_transformers(bug: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    points = torch.randn(160, 10)
    samples = [{"points": each, "labels": each[:4].argmax()} for each in points]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=16, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    model = Scored(bug)
    with sightline.watch(model) as watch:
        transformers.Trainer(model, arguments, train_dataset=samples).train()
    assert [(f.code, f.cause, f.where.step) for f in watch.findings] == BUGS[bug]
    assert watch.report.figures["updates"] == 20
