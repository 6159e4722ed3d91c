"""Bugs of a blind exam, and kin of them, in training loops; each with a form in which it is mended.

The forty scripts were written before anything of the package was read (docs/results/doctor.md, "A blind exam").
These are the relations that they asked for, smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.runtime.healthy_loops import SGD, Scaled, Watch, batches, net, train


def overlapping_split(bug: bool, *, evaluates: str = "validation") -> Watch:
    values = torch.randn(120, 20)
    data, order = TensorDataset(values, values[:, :4].argmax(dim=1)), torch.randperm(120)
    held = order[torch.randperm(120)[:40]] if bug else order[:40]
    training = DataLoader(Subset(data, order[40:]), 16, shuffle=True)  # type: ignore[arg-type]
    loaders = {"training": training, "validation": DataLoader(Subset(data, held), 16)}  # type: ignore[arg-type]

    def evaluate(step: int, model: nn.Module) -> None:
        with torch.no_grad():
            for name in evaluates.split() if step % 5 == 0 else ():
                for points, _ in loaders[name]:
                    model.eval()(points)
        model.train()

    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    return train(model, optimizer=torch.optim.Adam, data=[b for _ in range(3) for b in training], after=evaluate)


def load_keys(keys: Callable[[str], str | None], part: int | None = None) -> Watch:
    """Load the state of another network, or of a layer, before the first step; a key may be left out."""
    stored = (net() if part is None else nn.Linear(10, 24)).state_dict()
    state = {name: value for key, value in stored.items() if (name := keys(key)) is not None}

    def load(step: int, model: Any) -> None:
        if step == 1:
            (model if part is None else model[part]).load_state_dict(state, strict=False)

    return train(at=load, steps=3)


def accumulation_cleared(bug: bool, *, sets_to_none: bool = True) -> Watch:
    steps = iter(range(24))

    def clear(optimizer: Any) -> None:
        if next(steps) % 3 == 0 or bug:
            optimizer.zero_grad(set_to_none=sets_to_none)

    update = lambda step, optimizer: optimizer.step() if step % 3 == 0 else None  # noqa: E731
    return train(optimizer=SGD, clear=clear, update=update, loss=lambda o, y: F.cross_entropy(o, y) / 3, steps=24)


def clipped_while_scaled(bug: bool, *, by_value: bool = False) -> Watch:
    clip = partial(nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_)

    def change(scaler: Any, optimizer: Any) -> None:
        if not bug:
            scaler.unscale_(optimizer)
        clip(optimizer.param_groups[0]["params"], 0.01 if by_value else 0.1)

    return Scaled(2.0**12, change).train(net(dropout=0.0), optimizer=SGD, steps=8)


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


class Scenes(nn.Module):
    def __init__(self, bug: bool, *, is_encoder: bool) -> None:
        super().__init__()
        self.embed, self.head, self.bug, self.is_encoder = nn.Linear(4, 8), nn.Linear(8, 4), bug, is_encoder
        encoder = partial(nn.TransformerEncoderLayer, 8, 2, 16, dropout=0.0, batch_first=True)
        self.part = encoder() if is_encoder else nn.MultiheadAttention(8, 2)

    def forward(self, rows: Tensor, is_there: Tensor) -> Tensor:
        hidden, ignored = self.embed(rows), is_there if self.bug else ~is_there
        if self.is_encoder:
            hidden = self.part(hidden, src_key_padding_mask=ignored)
            return self.head(hidden.masked_fill(~is_there[..., None], -1e4).amax(dim=1))
        keys = hidden.transpose(0, 1)
        return self.head(self.part(keys[:1], keys, keys, key_padding_mask=ignored)[0][0])


def mask_upside_down(bug: bool, *, is_encoder: bool = False) -> Watch:
    masks = [torch.arange(6) < torch.randint(2, 5, (12, 1)) for _ in range(3)]
    data = [((torch.randn(12, 6, 4) * mask[..., None], mask), torch.randint(4, (12,))) for mask in masks]
    compute = lambda model, scene, label: F.cross_entropy(model(*scene), label)  # noqa: E731
    return train(Scenes(bug, is_encoder=is_encoder), optimizer=torch.optim.Adam, compute=compute, data=data)


def schedule_of_epochs(bug: bool) -> Watch:
    return train(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2 if bug else 20), steps=40)


LOOPS: dict[str, tuple[str, Callable[[bool], Watch]]] = {
    "overlapping_split": ("data.split", overlapping_split),
    "overlapping_split_of_two_evaluations": ("data.split", partial(overlapping_split, evaluates="training validation")),
    "keys_of_another_model": ("ckpt.key_mismatch", lambda bug: load_keys(lambda key: f"{'module.' * bug}{key}")),
    "keys_of_a_part": ("ckpt.key_mismatch", lambda bug: load_keys(lambda key: f"{'body.' * bug}{key}", 0)),
    "accumulation_cleared": ("optim.grad_accumulation", accumulation_cleared),
    "accumulation_set_to_zero": ("optim.grad_accumulation", partial(accumulation_cleared, sets_to_none=False)),
    "schedule_of_epochs": ("optim.scheduler", schedule_of_epochs),
    "clipped_while_scaled": ("optim.clip", clipped_while_scaled),
    "clipped_by_value_while_scaled": ("optim.clip", partial(clipped_while_scaled, by_value=True)),
    "average_without_buffers": ("model.norm_mode", average_without_buffers),
    "wrapped_average_without_buffers": ("model.norm_mode", partial(average_without_buffers, wrap=Average)),
    "mask_upside_down": ("data.padding", mask_upside_down),
    "mask_of_an_encoder_upside_down": ("data.padding", partial(mask_upside_down, is_encoder=True)),
}


def adversarial_examples() -> Watch:
    """Gradients of inputs are taken by a backward pass of its own, whose other gradients are cleared."""

    def compute(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
        moved = points.clone().requires_grad_()
        F.cross_entropy(model(moved), label).backward()
        model.zero_grad()
        return F.cross_entropy(model(points + 0.1 * moved.grad.sign()), label)

    return train(optimizer=SGD, compute=compute, steps=12)


def divided_while_scaled() -> Watch:
    def divide(scaler: Any, optimizer: Any) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.div_(4)

    return Scaled(2.0**8, divide).train(optimizer=SGD, steps=8)


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


HEALTHY_LOOPS: dict[str, Callable[[], Watch]] = {
    "adversarial_examples": adversarial_examples,
    "divided_while_scaled": divided_while_scaled,
    "average_with_statistics_made_anew": average_with_statistics_made_anew,
    "training_set_evaluated": partial(overlapping_split, False, evaluates="training training validation"),
    "weights_of_a_backbone": partial(load_keys, lambda key: key if key.startswith("0.") else None),
}
