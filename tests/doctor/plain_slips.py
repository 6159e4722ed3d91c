"""Small plain subjects with a bug that the doctor missed, or a correct form that it flagged: M1 to M10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import sightline
from tests.runtime.blind_losses import LossCase
from tests.runtime.odd_healthy_loops import classes, mlp

Pair = Callable[[bool, int], object]
"""Subject with its bug (True) or without, and a seed."""


def _load(count: int = 256, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*classes(count, seed=seed)), 32, shuffle=True)


def _train(
    model: nn.Module | None = None,
    loader: DataLoader[Any] | None = None,
    lose: Callable[[Any, Any], Tensor] = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    *,
    rate: float = 3e-3,
    kind: Any = torch.optim.Adam,
    epochs: int = 3,
    bound: float = 0.0,
    cosine: int = 0,
    validation: DataLoader[Any] | None = None,
    steps: bool = True,
) -> None:
    """Train by epochs, with gradients clipped at a bound and a cosine that `watch` is not told of, and evaluate."""
    model, loader = model or mlp(10, 24, 3), loader or _load()
    optimizer = kind(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=cosine) if cosine else None
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(epochs):
            model.train()
            for batch in loader:
                optimizer.zero_grad()
                lose(model, batch).backward()
                if bound:
                    nn.utils.clip_grad_norm_(model.parameters(), bound)
                if steps:
                    optimizer.step()
                if scheduler is not None:
                    scheduler.step()
            model.eval()
            with torch.no_grad():
                for rows, _ in validation or ():
                    model(rows)


def no_step(bug: bool, seed: int) -> None:
    _train(validation=_load(seed=1), steps=not bug)


def inputs_of_other_scale(bug: bool, seed: int) -> None:
    """Training inputs are a sixteenth of those of the validation."""
    scale = 16.0 if bug else 1.0
    _train(lose=lambda model, batch: F.cross_entropy(model(batch[0] / scale), batch[1]), validation=_load(seed=1))


def short_cosine(bug: bool, seed: int) -> None:
    """A cosine of three epochs, stepped a batch."""
    _train(kind=torch.optim.SGD, rate=0.05, cosine=3 if bug else 24)


def clipped_to_nothing(bug: bool, seed: int) -> None:
    _train(kind=torch.optim.SGD, rate=0.1, bound=1e-5 if bug else 5.0)


def validation_inside_training(bug: bool, seed: int) -> None:
    whole = TensorDataset(*classes(320))
    loader = DataLoader(whole if bug else Subset(whole, range(256)), 32, shuffle=True)
    _train(loader=loader, validation=DataLoader(Subset(whole, range(256, 320)), 32))


def exchanged_gan_targets(bug: bool, seed: int) -> None:
    """The generator's step wants its samples to be called generated."""
    generator, critic = mlp(4, 24, 2), mlp(2, 24, 1)
    first, second = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (generator, critic))
    with sightline.watch({"generator": generator, "critic": critic}, optimizer=[first, second]):
        for _ in range(60):
            real, fake = torch.randn(32, 2) * 0.3 + 2, generator(torch.randn(32, 4))
            second.zero_grad()
            (F.softplus(critic(fake.detach())) + F.softplus(-critic(real))).mean().backward()
            second.step()
            first.zero_grad()
            scores = critic(fake)
            wanted = torch.zeros_like(scores) if bug else torch.ones_like(scores)
            F.binary_cross_entropy_with_logits(scores, wanted).backward()
            first.step()


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(10, 24, 8), mlp(4, 24, 10)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(rows).chunk(2, dim=1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(drawn), mean, log_variance


def divergence_with_a_wrong_sign(bug: bool, seed: int) -> None:
    def lose(model: nn.Module, batch: Any) -> Tensor:
        rows, mean, log_variance = model(batch[0])
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return F.mse_loss(rows, batch[0]) + (-0.1 if bug else 0.1) * divergence

    _train(Variational(), lose=lose, epochs=6)


def norm_beyond_float32(bug: bool, seed: int) -> None:
    """Gradients of 1e20 are finite, though not the sum of their squares; times 1e20 once more they are not."""
    scale, factor = (1e38, 100.0) if bug else (1e20, 1.0)
    lose = lambda model, batch: -(model(batch[0]) * scale).sum() * factor  # noqa: E731
    _train(nn.Linear(10, 2), lose=lose, kind=torch.optim.SGD, rate=1e-30, epochs=1)


class Causal(nn.Module):
    """Two blocks of attention with dropout that see no later token; in a plain list, they are not registered."""

    def __init__(self, bug: bool, width: int = 16) -> None:
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(width, 2, 32, 0.2, batch_first=True)  # noqa: E731
        blocks = [layer(), layer()]
        self.embedding, self.place = nn.Embedding(12, width), nn.Embedding(12, width)
        self.blocks, self.head = (blocks if bug else nn.ModuleList(blocks)), nn.Linear(width, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.shape[1]
        rows = self.embedding(tokens) + self.place(torch.arange(size))
        mask = nn.Transformer.generate_square_subsequent_mask(size)
        for block in self.blocks:
            rows = block(rows, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(rows)
        return logits


def _draw_tokens(count: int = 64, size: int = 12) -> Tensor:
    """Draw progressions modulo 12: a token follows from the two before it."""
    begins, steps = torch.randint(12, (count, 1)), torch.randint(1, 5, (count, 1))
    return (begins + steps * torch.arange(size)) % 12


def _check(case: LossCase) -> None:
    model, loss, data = case
    sightline.check(model, loss, data, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))


def _next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def blocks_in_a_list(bug: bool, seed: int) -> None:
    tokens = _draw_tokens()
    _check((Causal(bug), _next_token, (tokens, tokens)))


def unshifted_tokens(bug: bool, seed: int) -> None:
    """Each token is its own target."""
    tokens = _draw_tokens()
    own = lambda logits, tokens: F.cross_entropy(logits.flatten(0, 1), tokens.flatten())  # noqa: E731
    _check((Causal(False), own if bug else _next_token, (tokens, tokens)))


def classes_and_places_exchanged(bug: bool, seed: int) -> None:
    def loss(logits: Tensor, tokens: Tensor) -> Tensor:
        rows = logits[:, :-1].transpose(1, 2).reshape(-1, 12) if bug else logits[:, :-1].reshape(-1, 12)
        return F.cross_entropy(rows, tokens[:, 1:].flatten())

    tokens = _draw_tokens()
    _check((Causal(False), loss, (tokens, tokens)))


def dice_minimised(bug: bool, seed: int) -> None:
    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        scores = logits.sigmoid()
        dice = (2 * (scores * mask).sum((1, 2, 3)) + 1) / (scores.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
        return dice.mean() if bug else 1 - dice.mean()

    images = torch.randn(16, 1, 12, 12)
    mask = (F.avg_pool2d(images, 3, 1, 1) > 0).float()
    _check((nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)), loss, (images, mask)))


def units_of_the_target(bug: bool, seed: int) -> None:
    """The prediction is brought to units, and the target is left normalised."""
    rows = torch.randn(64, 8)
    wanted = 1000 + 300 * (rows[:, :1] - rows[:, 1:2])
    mean, deviation = wanted.mean(), wanted.std()
    target = (wanted - mean) / deviation
    loss = lambda o, t: F.mse_loss(o * deviation + mean if bug else o, t)  # noqa: E731
    _check((mlp(8, 24, 1), loss, (rows, target)))


def _contrast(*, both: bool) -> Pair:
    """Contrast two views by a loss that reads no labels; with the bug, each row's partner is the next one's."""

    def pair(bug: bool, seed: int) -> None:
        def loss(output: Tensor, _: Tensor) -> Tensor:
            first, second = F.normalize(output, dim=-1).unbind(1)
            scores, own = first @ second.T / 0.1, torch.arange(len(first))
            own = own.roll(1) if bug else own
            other = F.cross_entropy(scores.T, own) if both else 0.0
            return F.cross_entropy(scores, own) + other

        rows = torch.randn(256, 1, 10)
        views = TensorDataset(rows + 0.1 * torch.randn(256, 2, 10), torch.zeros(256, dtype=torch.long))
        _check((mlp(10, 24, 8), loss, DataLoader(views, 32, shuffle=True)))

    return pair


def rounded_in_the_middle(bug: bool, seed: int) -> None:
    """Rounding has no gradient; passed straight through it has."""

    class Rounded(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            steps = (rows * 4).round() / 4
            return steps if bug else rows + (steps - rows).detach()

    _train(nn.Sequential(nn.Linear(10, 24), nn.Tanh(), Rounded(), nn.Linear(24, 3)))


def remainder_of_clouds(bug: bool, seed: int) -> None:
    """The loader of an evaluation of radii of clouds leaves the last ones out."""
    clouds = torch.randn(300, 24, 3) * torch.rand(300, 1, 1)
    radii = clouds.norm(dim=2).amax(1, keepdim=True)
    training, validation = (TensorDataset(clouds[part], radii[part]) for part in (slice(200), slice(200, None)))
    held = DataLoader(validation, 32, drop_last=bug)
    model = nn.Sequential(nn.Flatten(), mlp(72, 24, 1))
    lose = lambda model, batch: F.mse_loss(model(batch[0]), batch[1])  # noqa: E731
    _train(model, DataLoader(training, 32, shuffle=True, drop_last=True), lose, validation=held)


def classes_of_other_numbers(bug: bool, seed: int) -> None:
    """The words of classes are numbered in each part by their own table."""
    model, numbers = mlp(10, 24, 3), torch.tensor([1, 2, 0] if bug else [0, 1, 2])
    rows, labels = classes(384)
    held = DataLoader(TensorDataset(rows[256:], numbers[labels[256:]]), 32)
    loader = DataLoader(TensorDataset(rows[:256], labels[:256]), 32, shuffle=True)
    _train(model, loader, rate=1e-2, epochs=6, validation=held)


LOOPS: dict[str, tuple[Pair, str]] = {
    "seen/remainder_of_clouds": (remainder_of_clouds, "eval.protocol"),
    "seen/classes_of_other_numbers": (classes_of_other_numbers, "data.label_mapping"),
    "M1/no_step": (no_step, "optim.step_order optim.param_coverage"),
    "M4/inputs_of_other_scale": (inputs_of_other_scale, "data.normalisation"),
    "M6/norm_beyond_float32": (norm_beyond_float32, "loss.form model.numerics optim.nonfinite"),
    "M8/short_cosine": (short_cosine, "optim.scheduler"),
    "M8/clipped_to_nothing": (clipped_to_nothing, "optim.clip optim.lr"),
    "M8/validation_inside_training": (validation_inside_training, "data.split"),
    "M8/exchanged_gan_targets": (exchanged_gan_targets, "loss.sign data.target_encoding"),
    "M8/divergence_with_a_wrong_sign": (divergence_with_a_wrong_sign, "loss.sign"),
    "M10/rounded_in_the_middle": (rounded_in_the_middle, "loss.detached model.frozen_unintended model.numerics"),
}
MODULES: dict[str, tuple[Pair, str]] = {
    "M2/dice_minimised": (dice_minimised, "loss.sign"),
    "M3/units_of_the_target": (units_of_the_target, "data.normalisation data.target_encoding loss.form"),
    "M5/blocks_in_a_list": (blocks_in_a_list, "model.unregistered"),
    "M7/one_direction": (_contrast(both=False), "data.pairing loss.negatives"),
    "M7/both_directions": (_contrast(both=True), "data.pairing loss.negatives"),
    "M8/unshifted_tokens": (unshifted_tokens, "data.label_leak loss.form"),
    "M8/classes_and_places_exchanged": (classes_and_places_exchanged, "data.layout"),
}
"""Pairs with the causes that count as named."""
