"""Healthy training loops with an oddity each, as users write them: nothing may be found in any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline

STEPS = 60
Loop = Callable[[], "sightline.doctor.watch.watch.Watch"]


def net(*, dropout: float = 0.1, width: int = 24) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 4)
    )


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
    clear: Callable[[Any], Any] | None = lambda optimizer: optimizer.zero_grad(),
    after_backward: Callable[[Any], Any] | None = None,
    at: Callable[[int, nn.Module], Any] = lambda step, model: None,
    data: Any = None,
    steps: int = STEPS,
    scheduler: Callable[[Any], Any] | None = None,
    steps_scheduler: bool = True,
    **options: Any,
) -> sightline.doctor.watch.watch.Watch:
    """Train with a plain loop in a watch; the arguments are what users write in other ways."""
    model = net() if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    schedule = None if scheduler is None else scheduler(optimizer)
    with sightline.watch(model, optimizer=optimizer, scheduler=schedule, **options) as watch:
        for step, (points, label) in enumerate(data or batches(steps), start=1):
            if clear is not None:
                clear(optimizer)
            at(step, model)
            loss(model(points), label).backward()
            if after_backward is not None:
                after_backward(optimizer)
            optimizer.step()
            if schedule is not None and steps_scheduler:
                schedule.step()
    return watch


def plain():
    model = net()
    return train(model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


def no_optimizer_named():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    with sightline.watch(model) as watch:
        for points, label in batches():
            loss = F.cross_entropy(model(points), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch


def zero_grad_last():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            F.cross_entropy(model(points), label).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch


def zero_grad_keeps_tensors():
    return train(clear=lambda optimizer: optimizer.zero_grad(set_to_none=False))


def accumulation():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step, (points, label) in enumerate(batches(160), start=1):
            (F.cross_entropy(model(points), label) / 4).backward()
            if step % 4 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return watch


def warm_up_from_zero():
    return train(
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 20, 1.0))
    )


def frozen_backbone():
    model = nn.Sequential(net(), nn.ReLU(), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(model[2].parameters(), lr=1e-3)
    return train(model, optimizer=optimizer, at=lambda step, model: model.train()[0].eval())


def frozen_parameters_in_the_optimizer():
    model = nn.Sequential(net(), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    return train(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-2))


def two_optimizers_alternate():
    model = nn.ModuleDict({"body": nn.Linear(10, 24), "head": nn.Linear(24, 4)})
    whole = nn.Sequential(model["body"], nn.ReLU(), model["head"])
    first = torch.optim.SGD(model["body"].parameters(), lr=1e-2)
    second = torch.optim.Adam(model["head"].parameters(), lr=1e-3)
    with sightline.watch(whole, optimizer=[first, second]) as watch:
        for step, (points, label) in enumerate(batches()):
            whole.zero_grad()
            F.cross_entropy(whole(points), label).backward()
            (first if step % 2 else second).step()
    return watch


def adversarial(critic_steps: int = 1):
    generator = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 10))
    critic = nn.Sequential(nn.Linear(10, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3)
    with sightline.watch({"generator": generator, "critic": critic}) as watch:
        for step, (points, _) in enumerate(batches()):
            critic.zero_grad()
            ones, zeros = torch.ones(len(points), 1), torch.zeros(len(points), 1)
            F.binary_cross_entropy_with_logits(critic(points), ones).backward()
            made = generator(torch.randn(len(points), 8))
            F.binary_cross_entropy_with_logits(critic(made.detach()), zeros).backward()
            of_critic.step()
            if step % critic_steps == 0:
                generator.zero_grad()
                F.binary_cross_entropy_with_logits(critic(made), ones).backward()
                of_generator.step()
    return watch


def adversarial_with_five_critic_steps():
    return adversarial(critic_steps=5)


def strong_dropout():
    model = net(dropout=0.9, width=64)
    return train(model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


def clipped():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
            optimizer.step()
    return watch


def autocast():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(points), label)
            loss.backward()
            optimizer.step()
    return watch


def scaled():
    """As under fp16: the scaler skips the first updates, whose gradients overflow."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            scaler.scale(100 * F.cross_entropy(model(points), label)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() < 2.0**127
    return watch


def average_of_weights():
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer, ema=average) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            optimizer.step()
            average.update_parameters(model)
        torch.optim.swa_utils.update_bn((points for points, _ in batches(8)), model)
    return watch


def average_by_hand():
    model = net()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer, ema=average) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            optimizer.step()
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.data.mul_(0.9).add_(value.data, alpha=0.1)
    return watch


def sparse_volumes():
    """Some filled voxels in the middle of an empty volume: evenly spaced values of it are all zero."""
    model = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    generator = torch.Generator().manual_seed(0)
    model(torch.zeros(1, 1, 16, 16, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _, label in batches():
            volume = torch.zeros(16, 1, 16, 16, 16)
            cells = torch.randint(5, 11, (16, 3), generator=generator)
            volume[torch.arange(16), 0, cells[:, 0], cells[:, 1], cells[:, 2]] = 1.0
            optimizer.zero_grad()
            F.cross_entropy(model(volume), label).backward()
            optimizer.step()
    return watch


def one_batch_declared():
    return train(data=[next(batches())] * STEPS, declared=("same-batch",))


def evaluated_each_epoch():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler) as watch:
        for epoch in range(6):
            model.train()
            for points, label in batches(10, seed=epoch):
                optimizer.zero_grad()
                F.cross_entropy(model(points), label).backward()
                optimizer.step()
            scheduler.step()
            model.eval()
            with torch.no_grad():
                for points, _ in batches(5, seed=99):
                    model(points)
    return watch


def best_weights_kept_as_a_copy():
    model, kept = net(), {}

    def keep(step, model):
        if step == 5:
            kept.update(copy.deepcopy(model.state_dict()))
        if step == 20:
            model.load_state_dict(kept)

    return train(model, at=keep)


def closure():
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))
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


def sharpness_aware():
    """Two passes over the same batch for each update, as SAM takes them."""
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            with torch.no_grad():
                moves = [0.01 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters()]
                torch._foreach_add_(list(model.parameters()), moves)
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), moves)
            optimizer.step()
    return watch


def layers_dropped_at_random():
    class Dropped(nn.Module):
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

    model = Dropped()
    return train(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-2))


def residual_branches_start_at_zero():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(24, 24), nn.Linear(24, 24)
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

        def forward(self, values: Tensor) -> Tensor:
            return values + self.outer(self.inner(values).relu())

    model = nn.Sequential(nn.Linear(10, 24), Branch(), Branch(), nn.Linear(24, 4))
    return train(model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


def teacher():
    model, larger = net(), net(width=48).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            with torch.no_grad():
                soft = larger(points).softmax(dim=1)
            logits = model(points)
            loss = F.cross_entropy(logits, label) + F.kl_div(logits.log_softmax(dim=1), soft, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch


def gradient_penalty():
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, _ in batches():
            points.requires_grad_()
            value = model(points)
            (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
            optimizer.zero_grad()
            (value.square().mean() + (slope.norm(dim=1) - 1).square().mean()).backward()
            optimizer.step()
    return watch


def checkpointed():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net(), nn.Linear(4, 4)

        def forward(self, points: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, points, use_reentrant=True))

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(points.requires_grad_()), label).backward()
            optimizer.step()
    return watch


def regression_with_sigmoid():
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 1), nn.Sigmoid())
    return train(model, loss=lambda shares, label: F.binary_cross_entropy(shares[:, 0], (label > 1).float()))


def learnt_temperature():
    model, scale = net(), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([*model.parameters(), scale], lr=1e-3)
    return train(model, optimizer=optimizer, loss=lambda logits, label: F.cross_entropy(scale.exp() * logits, label))


def named_inputs_and_outputs():
    """A dictionary of outputs and keyword inputs."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, *, points: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"logits": scale * self.body(points), "features": points.mean(dim=1)}

    model = Named()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(points=points)["logits"], label).backward()
            optimizer.step()
    return watch


def cleared_by_data():
    """As scripts of the first years clear gradients: no version of the tensor notes it."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.data.zero_()
            F.cross_entropy(model(points), label).backward()
            optimizer.step()
    return watch


def critic_in_evaluation_mode():
    model, critic = net(), nn.Sequential(nn.Linear(4, 10), net())
    first = torch.optim.SGD(model.parameters(), lr=1e-2)
    second = torch.optim.SGD(critic.parameters(), lr=1e-2)
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


def head_starts_at_zero():
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return train(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-2))


def tokens():
    model = nn.Sequential(nn.Embedding(20, 16), nn.Flatten(), nn.Linear(16 * 6, 20))
    texts = [torch.randint(20, (16, 6)) for _ in range(STEPS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return train(model, optimizer=optimizer, data=[(words, words[:, 2]) for words in texts])


def biases_alone():
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return train(model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


def two_heads_in_turn():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.first, self.second = nn.Linear(10, 24), nn.Linear(24, 4), nn.Linear(24, 4)

        def forward(self, points: Tensor, turn: int) -> Tensor:
            return (self.first if turn else self.second)(self.body(points).relu())

    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step, (points, label) in enumerate(batches()):
            optimizer.zero_grad()
            F.cross_entropy(model(points, step % 2), label).backward()
            optimizer.step()
    return watch


LOOPS: list[Loop] = [
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", "") == __name__
    and name not in ("net", "batches", "train", "adversarial")
] + [adversarial]
