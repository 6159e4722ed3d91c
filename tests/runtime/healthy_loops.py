"""Healthy training loops with an oddity each, as users write them: nothing may be found in any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sightline
from sightline.doctor.watch.watch import Watch

STEPS = 60
Loop = Callable[[], Watch]
SGD, Adam = partial(torch.optim.SGD, lr=1e-2), partial(torch.optim.Adam, lr=1e-3)


def net(*, dropout: float = 0.1, width: int = 24) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 4)
    )


def plain_net(*, width: int = 24, outputs: int = 4, between: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, width), between(), nn.Linear(width, outputs))


def batches(count: int = STEPS, size: int = 16, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches whose label is the largest of the first four inputs."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        points = torch.randn(size, 10, generator=generator)
        yield points, points[:, :4].argmax(dim=1)


def train(
    model: nn.Module | None = None,
    *,
    optimizer: Any = None,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    compute: Callable[[Any, Any, Tensor], Tensor] | None = None,
    clear: Callable[[Any], Any] | None = lambda optimizer: optimizer.zero_grad(),
    backward: Callable[[Any, Tensor], Any] = lambda optimizer, value: value.backward(),
    after_backward: Callable[[Any], Any] | None = None,
    at: Callable[[int, Any], Any] = lambda step, model: None,
    update: Callable[[int, Any], Any] = lambda step, optimizer: optimizer.step(),
    after: Callable[[int, Any], Any] = lambda step, model: None,
    data: Any = None,
    steps: int = STEPS,
    scheduler: Callable[[Any], Any] | None = None,
    steps_scheduler: bool = True,
    names_optimizer: bool = True,
    **options: Any,
) -> Watch:
    """Train with a plain loop in a watch; the arguments are what users write in other ways.

    An optimiser is made of the parameters where it is a function; `compute` gets the model and a batch, `loss` outputs.
    """
    model = net() if model is None else model
    optimizer = optimizer or partial(SGD, momentum=0.9)
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer([each for each in model.parameters() if each.requires_grad])
    schedule = None if scheduler is None else scheduler(optimizer)
    options |= {"optimizer": optimizer} if names_optimizer else {}
    with sightline.watch(model, scheduler=schedule, **options) as watch:
        for step, (points, label) in enumerate(data or batches(steps), start=1):
            if clear is not None:
                clear(optimizer)
            at(step, model)
            value = loss(model(points), label) if compute is None else compute(model, points, label)
            backward(optimizer, value)
            if after_backward is not None:
                after_backward(optimizer)
            update(step, optimizer)
            after(step, model)
            if schedule is not None and steps_scheduler:
                schedule.step()
    return watch


class Scaled:
    """Backward pass and update by a GradScaler; `change` is what the loop does to gradients between them."""

    def __init__(self, scale: float, change: Callable[[Any, Any], Any] = lambda scaler, optimizer: None) -> None:
        self.scaler, self.change = torch.amp.GradScaler("cpu", init_scale=scale), change

    def backward(self, optimizer: Any, value: Tensor) -> None:
        self.scaler.scale(value).backward()

    def update(self, step: int, optimizer: Any) -> None:
        self.change(self.scaler, optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()

    def train(self, *model: nn.Module, **options: Any) -> Watch:
        return train(*model, backward=self.backward, update=self.update, **options)


# --- optimisers, gradients and averages -------------------------------------------------------------------------------


def accumulate(step: int, optimizer: Any) -> None:
    if step % 4 == 0:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()


def clip(optimizer: Any) -> None:
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-2)
    nn.utils.clip_grad_value_(optimizer.param_groups[0]["params"], 1e-3)


def clear_by_data(optimizer: Any) -> None:
    """As scripts of the first years clear gradients: no version of the tensor notes it."""
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.grad is not None:
            parameter.grad.data.zero_()


def two_optimizers_alternate() -> Watch:
    model = plain_net()
    pair = SGD(model[0].parameters()), Adam(model[2].parameters())
    with sightline.watch(model, optimizer=list(pair)) as watch:
        for step, (points, label) in enumerate(batches()):
            model.zero_grad()
            F.cross_entropy(model(points), label).backward()
            pair[step % 2].step()
    return watch


def adversarial(critic_steps: int = 1) -> Watch:
    generator = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 10))
    critic = plain_net(outputs=1, between=nn.LeakyReLU)
    of_generator, of_critic = Adam(generator.parameters()), Adam(critic.parameters())
    with sightline.watch({"generator": generator, "critic": critic}) as watch:
        for step, (points, _) in enumerate(batches()):
            critic.zero_grad()
            F.softplus(-critic(points)).mean().backward()
            made = generator(torch.randn(len(points), 8))
            F.softplus(critic(made.detach())).mean().backward()
            of_critic.step()
            if step % critic_steps == 0:
                generator.zero_grad()
                F.softplus(-critic(made)).mean().backward()
                of_generator.step()
    return watch


def critic_in_evaluation_mode() -> Watch:
    model, critic = net(), nn.Sequential(nn.Linear(4, 10), net())
    first, second = SGD(model.parameters()), SGD(critic.parameters())
    with sightline.watch([model, critic], optimizer=[first, second]) as watch:
        for points, label in batches():
            critic.train()
            second.zero_grad()
            F.cross_entropy(critic(model(points).detach()), label).backward()
            second.step()
            critic.eval()
            first.zero_grad()
            F.cross_entropy(critic(model(points)), label).backward()
            first.step()
    return watch


def skips_each(number: int, *, fused: bool = False) -> Watch:
    """Train by a scaler that meets an infinite loss at each update of this number, from the eleventh on."""
    turns = iter(range(240))

    def compute(model: Any, points: Tensor, label: Tensor) -> Tensor:
        turn, value = next(turns), F.cross_entropy(model(points), label)
        return value * torch.inf if turn >= 10 and turn % number == 0 else value

    optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
    return Scaled(2.0**10).train(net(dropout=0.0), optimizer=optimizer, compute=compute, steps=240)


def scaled(*, fused: bool = False) -> Watch:
    """As under fp16: the scaler skips the first updates, whose gradients overflow."""
    return Scaled(2.0**127).train(optimizer=partial(Adam, fused=fused), loss=lambda o, y: 100 * F.cross_entropy(o, y))


def average_of_weights() -> Watch:
    model, swa = net(), torch.optim.swa_utils
    average = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.99))

    def after(step: int, model: nn.Module) -> None:
        average.update_parameters(model)
        if step == STEPS:
            swa.update_bn((points for points, _ in batches(8)), model)

    return train(model, optimizer=Adam, ema=average, after=after)


def average_by_hand() -> Watch:
    model = net()
    average = copy.deepcopy(model).requires_grad_(False)

    def after(step: int, model: nn.Module) -> None:
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.mul_(0.9).add_(value.data, alpha=0.1)

    return train(model, optimizer=Adam, ema=average, after=after)


def evaluated_each_epoch() -> Watch:
    def after(step: int, model: nn.Module) -> None:
        with torch.no_grad():
            for points, _ in batches(5, seed=99) if step % 10 == 0 else ():
                model.eval()(points)
        model.train()

    data = [batch for epoch in range(6) for batch in batches(10, seed=epoch)]
    return train(optimizer=Adam, data=data, after=after)


def best_weights_kept_as_a_copy() -> Watch:
    kept: dict[str, Tensor] = {}

    def keep(step: int, model: nn.Module) -> None:
        if step == 5:
            kept.update(copy.deepcopy(model.state_dict()))
        if step == 20:
            model.load_state_dict(kept)

    return train(at=keep)


def closure() -> Watch:
    model = plain_net(width=16, between=nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(20, size=64):

            def compute(points: Tensor = points, label: Tensor = label) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(points), label)
                loss.backward()
                return loss

            optimizer.step(compute)
    return watch


def sharpness_aware() -> Watch:
    """Two passes over the same batch for each update, as SAM takes them."""

    def compute(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
        F.cross_entropy(model(points), label).backward()
        with torch.no_grad():
            moves = [0.01 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
            torch._foreach_add_(list(model.parameters()), moves)
        model.zero_grad()
        F.cross_entropy(model(points), label).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), moves)
        return torch.zeros(())

    return train(plain_net(), optimizer=SGD, compute=compute, backward=lambda optimizer, value: None)


# --- models -----------------------------------------------------------------------------------------------------------


class Dropped(nn.Module):
    """Blocks that are left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, 24), nn.Linear(24, 4)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.first(points)
        for block in self.blocks:
            if torch.rand(()) > 0.3:
                hidden = hidden + block(hidden.relu())
        return self.last(hidden)


class Branch(nn.Module):
    """Residual branch that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(24, 24), start_at_zero(nn.Linear(24, 24))

    def forward(self, values: Tensor) -> Tensor:
        return values + self.outer(self.inner(values).relu())


def start_at_zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net(), nn.Linear(4, 4)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, points.requires_grad_(), use_reentrant=True))


class Named(nn.Module):
    """A dictionary of outputs and keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, *, points: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"logits": scale * self.body(points), "features": points.mean(dim=1)}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(10, 24), nn.Linear(24, 4), nn.Linear(24, 4)

    def forward(self, points: Tensor, turn: int) -> Tensor:
        return (self.first if turn else self.second)(self.body(points).relu())


def frozen(*rest: nn.Module) -> nn.Module:
    return nn.Sequential(net().requires_grad_(False), *rest)


def two_heads_in_turn() -> Watch:
    turns = iter(range(STEPS))
    compute = lambda model, points, label: F.cross_entropy(model(points, next(turns) % 2), label)  # noqa: E731
    return train(TwoHeads(), optimizer=Adam, compute=compute)


def biases_alone() -> Watch:
    model = nn.Sequential(plain_net(outputs=24), nn.ReLU(), nn.Linear(24, 4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return train(model, optimizer=Adam)


def sparse_volumes() -> Watch:
    """Some filled voxels in the middle of an empty volume: evenly spaced values of it are all zero."""
    data = []
    for _, label in batches():
        volume, cells = torch.zeros(16, 1, 16, 16, 16), torch.randint(5, 11, (16, 3))
        volume[torch.arange(16), 0, cells[:, 0], cells[:, 1], cells[:, 2]] = 1.0
        data.append((volume, label))
    layers = nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7**3, 4)
    return train(nn.Sequential(*layers), optimizer=Adam, data=data)


def autocast() -> Watch:
    def compute(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(points), label)

    return train(optimizer=Adam, compute=compute)


def teacher() -> Watch:
    larger = net(width=48).eval()

    def compute(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            soft = larger(points).softmax(dim=1)
        logits = model(points)
        return F.cross_entropy(logits, label) + F.kl_div(logits.log_softmax(dim=1), soft, reduction="batchmean")

    return train(optimizer=Adam, compute=compute)


def gradient_penalty() -> Watch:
    def compute(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
        value = model(points.requires_grad_())
        (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        return value.square().mean() + (slope.norm(dim=1) - 1).square().mean()

    return train(plain_net(outputs=1, between=nn.Tanh), optimizer=Adam, compute=compute)


def learnt_temperature() -> Watch:
    model, scale = net(), nn.Parameter(torch.ones(()))
    optimizer = Adam([*model.parameters(), scale])
    return train(model, optimizer=optimizer, loss=lambda logits, label: F.cross_entropy(scale.exp() * logits, label))


def tokens() -> Watch:
    model = nn.Sequential(nn.Embedding(20, 16), nn.Flatten(), nn.Linear(16 * 6, 20))
    texts = [torch.randint(20, (16, 6)) for _ in range(STEPS)]
    return train(model, optimizer=Adam, data=[(words, (words[:, 2] + words[:, 3]) % 20) for words in texts])


def regression_with_sigmoid() -> Watch:
    model = nn.Sequential(plain_net(outputs=1), nn.Sigmoid())
    return train(model, loss=lambda shares, label: F.binary_cross_entropy(shares[:, 0], (label > 1).float()))


LOOPS: dict[str, Loop] = {
    "plain": lambda: train(optimizer=Adam),
    "no_optimizer_named": lambda: train(names_optimizer=False),
    "zero_grad_last": lambda: train(
        clear=None, update=lambda step, optimizer: (optimizer.step(), optimizer.zero_grad()), optimizer=SGD
    ),
    "zero_grad_keeps_tensors": lambda: train(clear=lambda optimizer: optimizer.zero_grad(set_to_none=False)),
    "cleared_by_data": lambda: train(clear=clear_by_data, optimizer=SGD),
    "accumulation": lambda: train(
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        clear=None,
        loss=lambda outputs, label: F.cross_entropy(outputs, label) / 4,
        update=accumulate,
        steps=160,
    ),
    "warm_up_from_zero": lambda: train(
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 20, 1.0))
    ),
    "frozen_backbone": lambda: train(
        frozen(nn.ReLU(), nn.Linear(4, 4)), optimizer=Adam, at=lambda step, model: model.train()[0].eval()
    ),
    "frozen_parameters_in_the_optimizer": lambda: train(
        model := frozen(nn.Linear(4, 4)), optimizer=SGD(model.parameters())
    ),
    "strong_dropout": lambda: train(net(dropout=0.9, width=64), optimizer=Adam),
    "clipped": lambda: train(optimizer=partial(torch.optim.SGD, lr=1e-1), after_backward=clip),
    "one_batch_declared": lambda: train(data=[next(batches())] * STEPS, declared=("same-batch",)),
    "layers_dropped_at_random": lambda: train(Dropped(), optimizer=SGD),
    "residual_branches_start_at_zero": lambda: train(
        nn.Sequential(nn.Linear(10, 24), Branch(), Branch(), nn.Linear(24, 4)), optimizer=Adam
    ),
    "checkpointed": lambda: train(Checkpointed(), optimizer=SGD),
    "named_inputs_and_outputs": lambda: train(
        Named(), optimizer=Adam, compute=lambda model, points, y: F.cross_entropy(model(points=points)["logits"], y)
    ),
    "head_starts_at_zero": lambda: train(
        nn.Sequential(nn.Linear(10, 24), nn.ReLU(), start_at_zero(nn.Linear(24, 4))), optimizer=SGD
    ),
    "scaled_and_fused": partial(scaled, fused=True),
    **{f"skipped_now_and_then_fused_{fused}": partial(skips_each, 25, fused=fused) for fused in (False, True)},
    "adversarial_with_five_critic_steps": partial(adversarial, critic_steps=5),
    **{
        loop.__name__: loop
        for loop in (
            *(two_optimizers_alternate, adversarial, critic_in_evaluation_mode, scaled, average_of_weights),
            *(average_by_hand, evaluated_each_epoch, best_weights_kept_as_a_copy, closure, sharpness_aware),
            *(two_heads_in_turn, biases_alone, sparse_volumes, autocast, teacher, gradient_penalty),
            *(learnt_temperature, tokens, regression_with_sigmoid),
        )
    },
}
