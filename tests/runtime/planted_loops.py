"""Training loops with one bug each: the code and the first cause that name it, and the step at which it is true."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.runtime.blind_losses import Call
from tests.runtime.healthy_loops import SGD, STEPS, Adam, Scaled, Watch, batches, net, plain_net, skips_each, train


class Plant(NamedTuple):
    """A loop with a bug, what names it, and the last step at which it may be named; 0: at the end."""

    code: str
    cause: str
    step: int
    run: Callable[[], Any]


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, 24), nn.Linear(24, 4)
        self.blocks = [nn.Linear(24, 24), nn.Linear(24, 24)]

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.first(points)
        for block in self.blocks:
            hidden = block(hidden.relu())
        return self.last(hidden)


def cut() -> nn.Module:
    return Call(lambda x, body, head: head(body(x).relu().detach()), nn.Linear(10, 24), nn.Linear(24, 4))


def unused() -> nn.Module:
    return Call(lambda x, body, extra: body(x), net(), nn.Linear(10, 4))


def constant() -> nn.Module:
    return Call(lambda x, body, head: head(body(x).relu() * 0), nn.Linear(10, 24), nn.Linear(24, 4))


class RootOfZero(nn.Module):
    """Its third pass meets a root of zero, whose derivative is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.num_passes = nn.Linear(10, 24), nn.Linear(24, 4), 0

    def forward(self, points: Tensor) -> Tensor:
        self.num_passes += 1
        hidden = self.body(points).relu() * (self.num_passes != 3)
        return self.head(hidden.square().sum(dim=1, keepdim=True).sqrt() + hidden)


class Overflow(nn.Module):
    """Its layer 'middle' makes infinity of finite inputs, from the fourth pass on, for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(10, 24), Exponential(), nn.Linear(24, 4)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.middle(self.body(points)))


class Exponential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_passes = 0

    def forward(self, values: Tensor) -> Tensor:
        self.num_passes += 1
        scale = torch.ones(len(values), 1)
        scale[5] = 1e4 if self.num_passes >= 4 else 1.0
        return (values.abs() * scale).exp().clamp(min=1)


def replaced_after_the_optimizer() -> Watch:
    optimizer = SGD((model := net()).parameters())
    model[4] = nn.Linear(24, 4)
    return train(model, optimizer=optimizer)


def train_the_head(**options: Any) -> Watch:
    return train(m := net(), optimizer=SGD(m[4].parameters()), **options)


def steps_twice() -> Watch:
    return train(optimizer=SGD, update=lambda step, optimizer: (optimizer.step(), optimizer.step()))


def skips_for_ever(*, fused: bool = False) -> Watch:
    return Scaled(2.0**10).train(
        optimizer=partial(SGD, fused=fused), loss=lambda o, y: F.cross_entropy(o, y) * torch.inf
    )


def evaluated_in_training_mode() -> Watch:
    def evaluate(step: int, model: nn.Module) -> None:
        with torch.no_grad():
            for points, _ in batches(5) if step == 10 else ():
                model(points)

    return train(optimizer=SGD, steps=10, after=evaluate)


def keep_best_without_copy() -> Watch:
    kept: dict[str, Tensor] = {}

    def keep(step: int, model: nn.Module) -> None:
        if step == 5:
            kept.update(model.state_dict())
        if step == STEPS:
            model.load_state_dict(kept)

    return train(optimizer=SGD, after=keep)


def never_averaged() -> Watch:
    return train(model := net(), ema=torch.optim.swa_utils.AveragedModel(model))


def loss_of_another_model() -> Watch:
    other = net()

    def compute(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
        model(points)
        return F.cross_entropy(other(points), label)

    return train(optimizer=SGD, compute=compute)


def frozen_weight() -> nn.Module:
    model = net()
    model[0].weight.requires_grad_(False)
    return model


def dead_layer() -> nn.Module:
    nn.init.constant_((model := plain_net())[0].bias[:20], -100.0)
    return model


def with_nan() -> Any:
    data = [*batches()]
    data[6][0][3, 2] = float("nan")
    return data


def to_eval(step: int, model: nn.Module) -> None:
    if step == 11:
        model.eval()


def freeze_norm(step: int, model: Any) -> None:
    model.train()
    model[1].eval()


def reloaded() -> Any:
    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches(8), strict=True)))
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))


def forget_at(step: int) -> Callable[[Any], None]:
    """Clear gradients; at a step, resume: load an optimiser's options and not its state."""
    steps = iter(range(1, 10**6))

    def clear(optimizer: Any) -> None:
        optimizer.zero_grad()
        if next(steps) == step:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})

    return clear


def constant_labels() -> Any:
    return [(points, torch.full_like(label, 2)) for points, label in batches()]


exponential = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)


def one_batch() -> Watch:
    """The first batch of a loader that has others, read once before the loop."""
    points, label = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(points, label), 16)
    return train(data=[next(iter(loader))] * len(loader))


PLANTS = {
    "zero_grad is missing": Plant("gradients-kept", "optim.grad_accumulation", 2, lambda: train(clear=None)),
    "zero_grad between backward and step": Plant(
        "gradients-cleared",
        "optim.step_order",
        1,
        lambda: train(clear=None, after_backward=lambda optimizer: optimizer.zero_grad()),
    ),
    "zero_grad to zeros between backward and step": Plant(
        "gradients-cleared",
        "optim.step_order",
        3,
        lambda: train(clear=None, after_backward=lambda optimizer: optimizer.zero_grad(set_to_none=False)),
    ),
    "step twice": Plant("step-without-backward", "optim.step_order", 2, steps_twice),
    "loss of another model": Plant("no-gradient", "loss.detached", 1, loss_of_another_model),
    "layers in a list": Plant("unregistered", "model.unregistered", 1, lambda: train(InList())),
    "features detached": Plant("no-gradient", "model.frozen_unintended", 1, lambda: train(cut())),
    "a layer that never runs": Plant("no-gradient", "model.structure", 8, lambda: train(unused())),
    "optimiser before the new head": Plant("not-optimised", "optim.param_coverage", 1, replaced_after_the_optimizer),
    "a part in no optimiser": Plant("not-optimised", "optim.param_coverage", 1, train_the_head),
    "a part in no optimiser, found": Plant(
        "not-optimised", "optim.param_coverage", 21, partial(train_the_head, names_optimizer=False)
    ),
    "NaN in the data": Plant("non-finite", "data.corrupt_sample", 7, lambda: train(data=with_nan())),
    "infinite derivative": Plant("non-finite", "model.numerics", 3, lambda: train(RootOfZero(), check=False)),
    "infinite activation": Plant(
        "non-finite", "model.numerics", 4, lambda: train(Overflow(), bisect=True, check=False)
    ),
    "log of zero in the loss": Plant(
        "non-finite", "loss.form", 1, lambda: train(loss=lambda o, y: (o.softmax(1) * 0).log().mean())
    ),
    "the scaler skips for ever": Plant("skipped-updates", "optim.amp", 1, skips_for_ever),
    "the scaler skips now and then": Plant("skipped-updates", "optim.amp", 125, partial(skips_each, 16)),
    "the scaler skips now and then, in fused updates": Plant(
        "skipped-updates", "optim.amp", 125, partial(skips_each, 16, fused=True)
    ),
    "the scaler skips for ever, in fused updates": Plant(
        "skipped-updates", "optim.amp", 26, partial(skips_for_ever, fused=True)
    ),
    "learning rate 0": Plant("no-update", "optim.lr", 10, lambda: train(optimizer=partial(SGD, lr=0.0))),
    "updates below the weights' last bit": Plant(
        "no-update",
        "model.numerics",
        2,
        lambda: train(
            nn.Linear(10, 4).bfloat16(), optimizer=partial(SGD, lr=1e-6), data=[(p.bfloat16(), y) for p, y in batches()]
        ),
    ),
    "learning rate 10 of Adam": Plant("large-update", "optim.lr", 3, lambda: train(optimizer=partial(Adam, lr=10.0))),
    "constant output": Plant("constant-output", "model.constant_output", 4, lambda: train(constant())),
    "one weight frozen": Plant("frozen", "model.frozen_unintended", 1, lambda: train(frozen_weight())),
    "dead units": Plant("dead-units", "model.activation", 5, lambda: train(dead_layer())),
    "evaluation mode after an evaluation": Plant("mode", "model.norm_mode", 11, lambda: train(at=to_eval)),
    "a batch norm in evaluation mode": Plant("mode", "model.norm_mode", 1, lambda: train(at=freeze_norm)),
    "training mode in evaluation": Plant("mode", "eval.mode", 11, evaluated_in_training_mode),
    "softmax twice": Plant(
        "double-softmax", "loss.double_softmax", 1, lambda: train(nn.Sequential(net(), nn.Softmax(dim=1)))
    ),
    "sigmoid twice": Plant(
        "double-softmax",
        "loss.double_softmax",
        1,
        lambda: train(
            nn.Sequential(net(), nn.Sigmoid()),
            loss=lambda o, y: F.binary_cross_entropy_with_logits(o, F.one_hot(y, 4).float()),
        ),
    ),
    "NLL of probabilities": Plant(
        "double-softmax", "loss.form", 1, lambda: train(loss=lambda o, y: F.nll_loss(o.softmax(dim=1), y))
    ),
    "one batch for ever": Plant("same-batch", "data.ordering", 5, one_batch),
    "one order in every epoch": Plant("same-order", "data.ordering", 16, lambda: train(data=[*batches(10)] * 3)),
    "a generator made anew in every epoch": Plant(
        "same-order", "data.ordering", 14, lambda: train(data=[each for _ in range(3) for each in reloaded()])
    ),
    "momenta lost at a resume": Plant("lost-state", "ckpt.incomplete_state", 8, lambda: train(clear=forget_at(8))),
    "Adam's squares lost at a resume": Plant(
        "lost-state", "ckpt.incomplete_state", 8, lambda: train(optimizer=Adam, clear=forget_at(8))
    ),
    "one label for ever": Plant("same-label", "data.label_mapping", 5, lambda: train(data=constant_labels())),
    "an average that nobody updates": Plant("ema", "optim.state", 21, never_averaged),
    "the best weights kept without a copy": Plant("aliased-weights", "ckpt.alias", 0, keep_best_without_copy),
    "a scheduler that never steps": Plant(
        "schedule", "optim.scheduler", 0, lambda: train(scheduler=cosine, steps_scheduler=False)
    ),
    "a cosine of epochs stepped per batch": Plant("schedule", "optim.scheduler", 13, lambda: train(scheduler=cosine)),
    "a decay of epochs stepped per batch": Plant(
        "no-update", "optim.scheduler", 60, lambda: train(scheduler=exponential)
    ),
}
