"""Faults of runs that classify clouds: the loss, the network, the data set and the optimiser of one's own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.loss import Loss
from sightline.contract.types import Batch, Field, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.schedules import Schedule
from tests.planted import networks
from tests.planted.networks import OwnNetwork, change_layers, change_network
from tests.planted.planting import Plant, Planter, add_class_loss, edit, wrap

# --- the optimiser ----------------------------------------------------------------------------------------------------


def _train_head_only(built: TrainingSetup) -> None:
    head = list(built.job.model.head.parameters())  # type: ignore[union-attr]
    built.job.optimizer.param_groups[0]["params"] = head


class NoSchedule(Schedule):
    """Schedule that divides by the wrong number: 0 for the first million steps."""

    def __init__(self, *, num_steps: int, steps_per_epoch: int) -> None:
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        return float(step // 10**6)


class _ShortSchedule(NoSchedule):
    """Cosine of a run of ten steps: its rate rises again, and is zero at each tenth step after it."""

    def __call__(self, step: int) -> float:
        return max(0.0, 1 - step / 4)


def plant_schedule(schedule: type[NoSchedule]) -> Plant:
    return lambda planter: planter.add("schedules", schedule, "schedule={name: own}")


def _freeze_encoder(built: TrainingSetup) -> None:
    built.job.model.encode.requires_grad_(False)


# --- the data set -----------------------------------------------------------------------------------------------------


def _edit_batch(change: Any, *overrides: str) -> Plant:
    """Make a plant of a set that passes its batches through `change(batch, keys)`."""

    def get_batch(own: Any, dataset: SyntheticShapes, keys: Sequence[SampleKey]) -> Batch:
        batch = own(dataset, keys)
        return batch | (change(batch, keys) or {})

    return wrap(SyntheticShapes, "get_batch", get_batch, *overrides)


def _leak_label(planter: Planter) -> None:
    """Add the label as a fourth input column."""

    def make(own: Any, dataset: SyntheticShapes, **arguments: Any) -> None:
        own(dataset, **arguments)
        info = dataset.info
        fields = {**info.fields, "tag": Field("64 1", "float32", "", "", 0, 11)}
        dataset.info = dataclasses.replace(
            info, facts={**info.facts, "in_channels": 4}, fields=fields, features=("tag",)
        )

    planter.wrap(SyntheticShapes, "__init__", make)
    _edit_batch(lambda batch, keys: {"tag": batch["label"].float()[:, None, None].expand(-1, 64, 1).clone()})(planter)


def _leave_classes_out(own: Any, dataset: SyntheticShapes, size: int, imbalance: float) -> np.ndarray:
    """Draw labels sorted by class, and cut the split off: two classes are in the test part alone."""
    labels: np.ndarray = own(dataset, size, imbalance)
    return np.sort(labels) if dataset._split == "test" else np.sort(labels % 10)


def _draw_from_own_generator(planter: Planter) -> None:
    """Shift clouds by numbers of a generator that is made with the set, and copied to every worker."""

    def make(own: Any, dataset: Any, **arguments: Any) -> None:
        own(dataset, **arguments)
        dataset.rng = np.random.default_rng(0)

    def get_batch(own: Any, dataset: Any, keys: Sequence[SampleKey]) -> Batch:
        batch = own(dataset, keys)
        shift = dataset.rng.normal(0, 0.02, (len(keys), 1, 3)).astype(np.float32)
        return {**batch, "points": (batch["points"] + torch.from_numpy(shift)).clamp(-1, 1)}

    planter.wrap(SyntheticShapes, "__init__", make)
    planter.wrap(SyntheticShapes, "get_batch", get_batch)
    planter.override("loader.workers=2")


def _scale_in_place(own: Any, dataset: Any, keys: Sequence[SampleKey]) -> Batch:
    """Scale the stored clouds themselves, a little more with every reading."""
    batch = own(dataset, keys)
    if dataset._cache is not None:
        dataset._cache.get(np.arange(1))
        dataset._cache._fields[0][dataset._rows[[key.index for key in keys]]] *= 1.05
    return batch


def _repeat_first(own: Any, dataset: Any, keys: Sequence[SampleKey]) -> Batch:
    first = own(dataset, [dataclasses.replace(key, index=0) for key in keys])
    return {**own(dataset, keys), "points": first["points"]}


def _sleep(batch: Batch, keys: Sequence[SampleKey]) -> None:
    time.sleep(0.005 * len(keys))


def _break_sample(batch: Batch, keys: Sequence[SampleKey]) -> Batch:
    """Make a coordinate of sample 101 infinite."""
    is_broken = torch.tensor([key.index == 101 for key in keys])[:, None, None]
    return {"points": torch.where(is_broken & (torch.arange(64)[:, None] == 5), torch.inf, batch["points"])}


# --- the loss ---------------------------------------------------------------------------------------------------------


class _LossWithScale(Loss):
    """Cross entropy with a learned scale that is no parameter of the loss, but a tensor it made."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones((), requires_grad=True)

    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(len(label))

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits * self.scale, label, reduction="sum")


def _ignore_half(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits[::2], label[::2], reduction="sum")


def _broadcast(logits: Tensor, label: Tensor) -> Tensor:
    """Subtract (B,) from (B, 1): every sample is compared with every label."""
    wanted = F.one_hot(label, logits.shape[-1]).float()
    return (logits.softmax(-1)[:, None] - wanted).square().sum() / len(label)


def _divide_by_spread(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits / logits.std(0, keepdim=True).detach().square(), label, reduction="sum")


CLASSIFY_PLANTS: dict[str, Plant] = {
    "O3": add_class_loss(lambda z, y: F.cross_entropy(z.softmax(-1), y, reduction="sum")),
    "O4": add_class_loss(lambda z, y: -F.cross_entropy(z, y, reduction="sum")),
    "O5": edit(_train_head_only),
    "O6": change_layers(networks.hide_layers),
    "O7": plant_schedule(NoSchedule),
    "O8": change_network(to_channels=lambda self, points: points.reshape(len(points), 3, -1)),
    "O9": _leak_label,
    "O10": change_layers(networks.draw_large_weights),
    "N13": change_network(train=lambda self, mode=True: nn.Module.train(self, True)),
    "O12": change_network(embed=networks.add_neighbour_distances),
    "O14": wrap(SyntheticShapes, "_draw_labels", _leave_classes_out),
    "O15": _draw_from_own_generator,
    "O16": _edit_batch(_sleep, "data.train_size=760"),
    "L1": add_class_loss(lambda z, y: -z.softmax(-1).gather(-1, y[:, None]).sum()),
    "L2": add_class_loss(lambda z, y: F.cross_entropy(z, y)),
    "L3": add_class_loss(lambda z, y: F.cross_entropy(z, y, reduction="sum") * len(y)),
    "L4": add_class_loss(_ignore_half),
    "L5": add_class_loss(_broadcast),
    "L6": add_class_loss(lambda z, y: F.cross_entropy(z, z.shape[-1] - 1 - y, reduction="sum")),
    "L7": add_class_loss(lambda z, y: F.cross_entropy(z, y.roll(1), reduction="sum")),
    "L8": add_class_loss(
        lambda z, y: F.binary_cross_entropy_with_logits(
            z.sigmoid(), F.one_hot(y, z.shape[-1]).to(z.dtype), reduction="sum"
        )
    ),
    "L9": add_class_loss(lambda z, y: F.cross_entropy(z.detach(), y, reduction="sum") + 0 * z.sum()),
    "L10": lambda p: p.add_loss(_LossWithScale),
    "L11": add_class_loss(_divide_by_spread),
    "L12": add_class_loss(lambda z, y: (z - z.detach()).sum() + 2.0 * len(y)),
    "O21": change_network(embed=networks.search_whole_batch),
    "N2": change_network(pool=networks.attend_over_batch),
    "N3": change_network(train=networks.rest_norms),
    "N4": change_layers(networks.freeze_statistics),
    "N5": change_layers(networks.share_layers),
    "N6": edit(_freeze_encoder),
    "N7": change_layers(lambda n: setattr(n, "hidden", networks.TransposedLinear(64, 64))),
    "N8": change_layers(lambda n: setattr(n, "hidden", networks.HalvedLinear(64, 64))),
    "N9": change_network(classify=lambda self, pooled: OwnNetwork.classify(self, pooled).relu()),
    "N10": change_network(classify=lambda self, pooled: OwnNetwork.classify(self, pooled).softmax(-1)),
    "N11": change_network(classify=lambda self, pooled: OwnNetwork.classify(self, 0 * pooled)),
    "N12": change_network(classify=networks.drop_always),
    "D1": _edit_batch(lambda b, keys: {"label": b["label"].flip(0)}),
    "D2": wrap(SyntheticShapes, "get_batch", _repeat_first),
    "D3": wrap(SyntheticShapes, "get_batch", _scale_in_place),
    "D4": _edit_batch(lambda b, keys: {"points": torch.zeros_like(b["points"])}),
    "D5": _edit_batch(_break_sample),
    "D6": _edit_batch(lambda b, keys: {"label": b["label"] + 1}),
    "D7": _edit_batch(lambda b, keys: {"points": b["points"] * 1000}),
    "R4": plant_schedule(_ShortSchedule),
}
