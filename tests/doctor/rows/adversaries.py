"""A generator and its critic, checked by their step, or watched: who is updated, and whose gradients arrive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sightline


class Adversaries:
    """Programs of both networks, and what each of these bugs changes in them."""

    def __init__(self, bug: str) -> None:
        self.bug = bug
        real = torch.tensor([2.0, -1.0]) + torch.randn(512, 2) @ torch.tensor([[0.4, 0.2], [0.0, 0.3]])
        self.loader = DataLoader(TensorDataset(real), batch_size=32, shuffle=True, drop_last=True)
        self.maker = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))
        self.critic = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
        held = self.critic if bug == "an optimizer of the other network" else self.maker
        self.makers = torch.optim.Adam(held.parameters(), 1e-3, betas=(0.5, 0.999))
        self.critics = torch.optim.Adam(self.critic.parameters(), 1e-3, betas=(0.5, 0.999))
        self.models = {"maker": self.maker, "critic": self.critic}

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.makers] if self.bug == "a critic without an optimizer" else [self.makers, self.critics]

    def criticise(self, real: Tensor, made: Tensor) -> Tensor:
        return F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(made.detach())).mean()

    def deceive(self, made: Tensor) -> Tensor:
        return F.softplus(-self.critic(made.detach() if self.bug == "a detached generator" else made)).mean()

    def step(self, batch: Any) -> dict[str, Tensor]:
        made = self.maker(torch.randn(len(batch[0]), 4))
        return {"critic": self.criticise(batch[0], made), "maker": self.deceive(made)}

    def check(self) -> None:
        sightline.check(self.models, step=self.step, loader=self.loader, optimizer=self.optimizers)

    def watch(self) -> None:
        with sightline.watch(self.models, optimizer=self.optimizers):
            for _ in range(3):
                for (real,) in self.loader:
                    made = self.maker(torch.randn(len(real), 4))
                    self.critics.zero_grad()
                    self.criticise(real, made).backward()
                    if self.bug != "a critic that is never updated":
                        self.critics.step()
                    self.makers.zero_grad()
                    self.deceive(made).backward()
                    self.makers.step()


def _ask(name: str, way: Callable[[Adversaries], None], bug: bool) -> None:
    way(Adversaries(name if bug else ""))


_BUGS = {
    "an optimizer of the other network": ("optim.param_coverage", (Adversaries.check, Adversaries.watch)),
    "a detached generator": ("loss.detached", (Adversaries.check, Adversaries.watch)),
    "a critic without an optimizer": ("optim.param_coverage", (Adversaries.check,)),
    "a critic that is never updated": ("optim.step_order", (Adversaries.watch,)),
}
LOOPS: dict[str, tuple[str, Callable[[bool], None]]] = {
    f"{name}, {way.__name__}": (cause, partial(_ask, name, way))
    for name, (cause, ways) in _BUGS.items()
    for way in ways
}
"""Name of a bug and of who is asked, with its cause and what runs it, or its correct twin."""
