"""Bugs of a blind exam, and kin of them, in training loops; each with a form in which it is mended.

The forty scripts were written before anything of the package was read (docs/results/doctor.md, "A blind exam").
These are the relations that they asked for, smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import sightline
from sightline.doctor.watch.watch import Watch
from tests.runtime.healthy_loops import batches, net, train


def overlapping_split(bug: bool, *, evaluates: str = "validation") -> Watch:
    torch.manual_seed(0)
    values = torch.randn(120, 20)
    data = TensorDataset(values, values[:, :4].argmax(dim=1))
    order = torch.randperm(120)
    held = order[torch.randperm(120)[:40]] if bug else order[:40]
    loaders = {"training": DataLoader(Subset(data, order[40:]), 16, shuffle=True)}  # type: ignore[arg-type]
    loaders["validation"] = DataLoader(Subset(data, held), 16)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            for points, label in loaders["training"]:
                optimizer.zero_grad()
                F.cross_entropy(model.train()(points), label).backward()
                optimizer.step()
            with torch.no_grad():
                for name in evaluates.split():
                    for points, _ in loaders[name]:
                        model.eval()(points)
    return watch


def overlapping_split_of_two_evaluations(bug: bool) -> Watch:
    return overlapping_split(bug, evaluates="training validation")


def keys_of_another_model(bug: bool, change: Callable[[str], str] = lambda key: f"module.{key}") -> Watch:
    stored = {change(key) if bug else key: value for key, value in net().state_dict().items()}
    return train(at=lambda step, model: step == 1 and model.load_state_dict(stored, strict=False), steps=3)


def keys_of_a_part(bug: bool) -> Watch:
    stored = {f"body.{key}" if bug else key: value for key, value in nn.Linear(10, 24).state_dict().items()}
    return train(at=lambda step, model: step == 1 and model[0].load_state_dict(stored, strict=False), steps=3)


def accumulation_cleared(bug: bool, *, sets_to_none: bool = True) -> Watch:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step, (points, label) in enumerate(batches(24)):
            if bug or step % 3 == 0:
                optimizer.zero_grad(set_to_none=sets_to_none)
            (F.cross_entropy(model(points), label) / 3).backward()
            if step % 3 == 2:
                optimizer.step()
    return watch


def accumulation_set_to_zero(bug: bool) -> Watch:
    return accumulation_cleared(bug, sets_to_none=False)


def schedule_of_epochs(bug: bool) -> Watch:
    return train(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2 if bug else 20), steps=40)


def clipped_while_scaled(bug: bool, *, by_value: bool = False) -> Watch:
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(8):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(points), label)).backward()
            if not bug:
                scaler.unscale_(optimizer)
            if by_value:
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
    return watch


def clipped_by_value_while_scaled(bug: bool) -> Watch:
    return clipped_while_scaled(bug, by_value=True)


class Average(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    def forward(self, points: Tensor) -> Any:
        return self.module(points)


def average_without_buffers(bug: bool, *, wrap: Callable[[nn.Module], nn.Module] = copy.deepcopy) -> Watch:
    model = net()
    average = wrap(model)

    def update(step: int, model: nn.Module) -> None:
        for mean, own in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(own.data, 0.1)
        if step % 10 == 0:
            for mean, own in zip(average.buffers(), model.buffers(), strict=True):
                mean.copy_(mean if bug else own)
            with torch.no_grad():
                average.eval()(torch.randn(4, 10))

    return train(model, at=update, ema=average, steps=30)


def wrapped_average_without_buffers(bug: bool) -> Watch:
    return average_without_buffers(bug, wrap=Average)


class Scenes(nn.Module):
    def __init__(self, bug: bool, *, is_encoder: bool) -> None:
        super().__init__()
        self.embed, self.head, self.bug, self.is_encoder = nn.Linear(4, 8), nn.Linear(8, 4), bug, is_encoder
        self.part = (
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            if is_encoder
            else nn.MultiheadAttention(8, 2)
        )

    def forward(self, rows: Tensor, is_there: Tensor) -> Tensor:
        hidden, ignored = self.embed(rows), is_there if self.bug else ~is_there
        if self.is_encoder:
            return self.head(self.part(hidden, src_key_padding_mask=ignored).amax(dim=1))
        keys = hidden.transpose(0, 1)
        return self.head(self.part(keys[:1], keys, keys, key_padding_mask=ignored)[0][0])


def mask_upside_down(bug: bool, *, is_encoder: bool = False) -> Watch:
    model = Scenes(bug, is_encoder=is_encoder)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            is_there = torch.arange(6) < torch.randint(2, 5, (12, 1))
            rows = torch.randn(12, 6, 4) * is_there[..., None]
            optimizer.zero_grad()
            F.cross_entropy(model(rows, is_there), torch.randint(4, (12,))).backward()
            optimizer.step()
    return watch


def mask_of_an_encoder_upside_down(bug: bool) -> Watch:
    return mask_upside_down(bug, is_encoder=True)


LOOPS: dict[Callable[[bool], Watch], tuple[str, str]] = {
    **dict.fromkeys((overlapping_split, overlapping_split_of_two_evaluations), ("split-overlap", "data.split")),
    **dict.fromkeys((keys_of_another_model, keys_of_a_part), ("nothing-loaded", "ckpt.key_mismatch")),
    **dict.fromkeys((accumulation_cleared, accumulation_set_to_zero), ("gradients-cleared", "optim.grad_accumulation")),
    schedule_of_epochs: ("schedule", "optim.scheduler"),
    **dict.fromkeys((clipped_while_scaled, clipped_by_value_while_scaled), ("scaled-clipping", "optim.clip")),
    **dict.fromkeys((average_without_buffers, wrapped_average_without_buffers), ("ema", "model.norm_mode")),
    **dict.fromkeys((mask_upside_down, mask_of_an_encoder_upside_down), ("attention", "data.padding")),
}


def adversarial_examples() -> Watch:
    """Gradients of inputs are taken by a backward pass of its own, whose other gradients are cleared."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(12):
            moved = points.clone().requires_grad_()
            F.cross_entropy(model(moved), label).backward()
            optimizer.zero_grad()
            F.cross_entropy(model(points + 0.1 * moved.grad.sign()), label).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch


def divided_while_scaled() -> Watch:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(8):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(points), label)).backward()
            for parameter in model.parameters():
                parameter.grad.div_(4)
            scaler.step(optimizer)
            scaler.update()
    return watch


def average_with_statistics_made_anew() -> Watch:
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model)

    def update(step: int, model: nn.Module) -> None:
        average.update_parameters(model)
        if step == 30:
            torch.optim.swa_utils.update_bn([points for points, _ in batches(3)], average)
            with torch.no_grad():
                average.eval()(torch.randn(4, 10))

    return train(model, at=update, ema=average, steps=30)


def training_set_evaluated() -> Watch:
    return overlapping_split(False, evaluates="training training validation")


def weights_of_a_backbone() -> Watch:
    stored = {key: value for key, value in net().state_dict().items() if key.startswith("0.")}
    return train(at=lambda step, model: step == 1 and model.load_state_dict(stored, strict=False), steps=3)


HEALTHY_LOOPS = [
    adversarial_examples,
    divided_while_scaled,
    average_with_statistics_made_anew,
    training_set_evaluated,
    weights_of_a_backbone,
]
