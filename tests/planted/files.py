"""Faults of weights and checkpoints that a run starts from, and of runs with parts that other processes lack (CLS)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.models.pointnet import PointNetPlain
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.config import read_config
from sightline.contract.loss import Loss
from sightline.contract.metric import Metric
from sightline.engine.build import TrainingSetup
from sightline.runs import checkpoint
from sightline.training.train_run import train_run
from tests.planted.networks import OwnNetwork
from tests.planted.planting import BENCHES, LogitsOutput, Plant, Planter, edit, join

_WEIGHTS = Path("checkpoints", "last", "model.safetensors")


def save_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> None:
    """Write a checkpoint of the bench CLS, whose norms have seen clouds of the unit sphere, with a changed state."""
    torch.manual_seed(9)
    model = PointNetPlain(num_classes=12, in_channels=3, embedding=32, dropout=0.0)
    for _ in range(20):
        directions = nn.functional.normalize(torch.randn(16, 64, 3), dim=-1)
        model(points=directions * torch.rand(16, 64, 1))
    snapshot = checkpoint.Snapshot(
        step=20, model=change(dict(model.state_dict())), optimizer={}, ema=None, state={"unwritten": None}
    )
    checkpoint.save(folder, snapshot, keep_last=1, is_best=False)


def start_from(
    damage: Callable[[Path], object] = lambda file: None,
    *,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    missing: str = "",
) -> Plant:
    """Make a plant that starts from weights, whose file is damaged; `missing` names what need not match."""

    def plant(planter: Planter) -> None:
        save_weights(planter.folder, change)
        damage(planter.folder / _WEIGHTS)
        planter.override(f"init={{from: '{planter.folder}', may_be_missing: [{missing}]}}")

    return plant


def _cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 6 // 10])


def _flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def _restart_head(built: TrainingSetup) -> None:
    """Initialise the last layer anew, after the weights were loaded."""
    nn.init.normal_(list(built.job.model.parameters())[-2])


def _enlarge_clouds(planter: Planter) -> None:
    """Give clouds in hundredths of the unit that the weights know, as the set says itself."""

    def make(own: Any, dataset: SyntheticShapes, **arguments: Any) -> None:
        own(dataset, **arguments)
        points = dataclasses.replace(dataset.info.fields["points"], low=-100.0, high=100.0)
        dataset.info = dataclasses.replace(dataset.info, fields={**dataset.info.fields, "points": points})

    planter.wrap(SyntheticShapes, "__init__", make)
    planter.wrap(
        SyntheticShapes, "get_batch", lambda own, *key: (batch := own(*key)) | {"points": 100 * batch["points"]}
    )


class _TwoHeads(OwnNetwork):
    """Network with a second head, whose output no loss reads."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.second_head = nn.Linear(64, 2)

    def forward(self, *, points: Tensor) -> LogitsOutput:
        pooled = self.pool(self.embed(self.to_channels(points)))
        self.is_upright = self.second_head(pooled)
        return {"logits": self.classify(pooled)}


class _AccuracyOfParts(Metric):
    """Accuracy of each part of the samples, then the mean over parts, which are of unequal size."""

    higher_is_better = True

    def new_state(self) -> dict[str, Tensor]:
        return {"millionths": torch.zeros((), dtype=torch.int64), "parts": torch.zeros((), dtype=torch.int64)}

    def update(self, state: dict[str, Tensor], *, probabilities: Tensor, label: Tensor) -> None:
        state["millionths"] += (1e6 * (probabilities.argmax(1) == label).double().mean()).long()
        state["parts"] += 1

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"overall_accuracy": float(state["millionths"] / (1e6 * state["parts"]))}


class _RepeatedRow(Metric):
    """Accuracy of each class, in a table that has the first row twice, and a total of another run."""

    higher_is_better = True

    def __init__(self, *, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def new_state(self) -> dict[str, Tensor]:
        return {name: torch.zeros(len(self.class_names), dtype=torch.int64) for name in ("correct", "seen")}

    def update(self, state: dict[str, Tensor], *, probabilities: Tensor, label: Tensor) -> None:
        size = len(self.class_names)
        state["correct"] += torch.bincount(label[probabilities.argmax(1) == label], minlength=size)
        state["seen"] += torch.bincount(label, minlength=size)

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        rows = (state["correct"] / state["seen"].clamp(min=1)).tolist()
        rows[1] = rows[0]
        table = {f"accuracy_{name}": row for name, row in zip(self.class_names, rows, strict=True)}
        share = float(state["correct"].sum() / state["seen"].sum())
        return {**table, "mean_accuracy": 0.7940, "overall_accuracy": share}


def _distil_probabilities(planter: Planter) -> None:
    """Learn from a trained run by a divergence that is computed of probabilities, not of their logarithms."""

    class OwnDistillation(Loss):
        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(len(label))

        def forward(self, *, logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return F.kl_div(logits.softmax(-1), teacher_logits.softmax(-1), reduction="sum")

    source = planter.folder / "teacher"
    train_run(read_config(BENCHES / "CLS.yaml", ("train.steps=2",)), out=source, checks=False, device="cpu")
    planter.add_loss(OwnDistillation, "{name: cross_entropy}")
    planter.override(f"teacher={{from: '{source}'}}")


FILE_PLANTS: dict[str, Plant] = {
    "O31": start_from(change=lambda s: {f"backbone.{name}": v for name, v in s.items()}, missing="encode, head"),
    "O32": join(start_from(), _enlarge_clouds),
    "O64": _distil_probabilities,
    "O66": lambda planter: planter.add_model(_TwoHeads),
    "O72": lambda planter: planter.add("metrics", _AccuracyOfParts, "metrics=[{name: own}]"),
    "O74": start_from(_cut),
    "O80": lambda planter: planter.add("metrics", _RepeatedRow, "metrics=[{name: own}]"),
    "F1": start_from(_flip_byte),
    "F2": join(start_from(), edit(_restart_head)),
}
