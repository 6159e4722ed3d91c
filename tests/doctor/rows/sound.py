"""Correct programs of which something false was said once, with their siblings: what chance, habit or success does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler

import sightline
from tests.doctor.healthy.data import MixUp
from tests.doctor.healthy.networks import Block, NormBlock
from tests.doctor.rows import load
from tests.runtime.blind_loaders import Items

_SLOW_S = 0.01


def classes(num: int, width: int = 8, number: int = 3, signal: float = 2.0) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, number, (num,))
    return torch.randn(num, width) + signal * torch.eye(number, width)[labels], labels


def network(width: int = 8, number: int = 3, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, number))


# --- what is read -----------------------------------------------------------------------------------------------------


def folder(*, is_slow: bool, lacks: bool = False) -> tuple[Any, ...]:
    """A folder that is sorted by class, whose samples take 10 ms to read; evaluation is sorted as well."""
    values, labels = classes(900)
    order = labels.sort(stable=True)[1]
    is_kept = torch.arange(900) % 4 > 0
    parts = [order[is_kept], order[~is_kept]]
    parts[0] = parts[0][labels[parts[0]] < 2] if lacks else parts[0]

    def read(rows: Tensor, index: int) -> Any:
        time.sleep(_SLOW_S if is_slow else 0)
        return values[rows[index]], labels[rows[index]]

    sets = [Items(partial(read, rows), len(rows)) for rows in parts]
    return (
        network(),
        nn.CrossEntropyLoss(),
        DataLoader(sets[0], 8, shuffle=True),
        {"evaluation": DataLoader(sets[1], 8)},
    )


def slow_folder(bug: bool) -> tuple[Any, ...]:
    return folder(is_slow=True, lacks=bug)


def balanced() -> tuple[Any, ...]:
    """A sampler that draws as many of a rare class as of the common one, whose inputs are elsewhere."""
    labels = (torch.arange(600) % 12 == 0).long()
    values = torch.randn(600, 8) + 4 * labels[:, None]
    sampler = WeightedRandomSampler((1 / labels[:480].bincount())[labels[:480]].tolist(), 480)
    training = load(values[:480], labels[:480], sampler=sampler)
    return network(), nn.CrossEntropyLoss(), training, {"evaluation": load(values[480:], labels[480:], shuffle=False)}


def short_texts() -> tuple[Any, ...]:
    """Texts of four of six words: some are there twice, and in both parts."""
    words = torch.randint(0, 6, (1000, 4))
    model = nn.Sequential(nn.Embedding(6, 8), nn.Flatten(), nn.Linear(32, 2))
    labels = (words == 2).any(1).long()
    parts = [load(words[:800], labels[:800]), load(words[800:], labels[800:], shuffle=False)]
    return model, nn.CrossEntropyLoss(), parts[0], {"evaluation": parts[1]}


def mixed(form: str, *, is_by_sample: bool) -> tuple[Any, ...]:
    """Mix-up: two labels and a share, or shares of all classes; evaluation has plain batches."""
    mix = MixUp(is_by_sample=is_by_sample)

    def collate(samples: Any) -> Any:
        batch = mix(samples)
        labels, share = (batch["label"], batch["label_b"]), batch["lam"]
        if form == "tuple":
            return batch["x"], (*labels, share)
        one, other = (F.one_hot(each, 3).float() for each in labels)
        return batch["x"], share.view(-1, 1) * one + (1 - share.view(-1, 1)) * other

    def lose(outputs: Tensor, target: Any) -> Tensor:
        first, second, share = target
        one, other = (F.cross_entropy(outputs, each, reduction="none") for each in (first, second))
        return (share * one + (1 - share) * other).mean()

    values, labels = classes(256)
    loader = load(values, labels, size=32, collate_fn=collate, drop_last=True)
    return network(), lose if form == "tuple" else F.cross_entropy, loader


class TwoHeads(nn.Module):
    """Scores of classes, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scores, self.number = nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.relu(self.body(inputs))
        return self.scores(inner), self.number(inner)


def overlap_beside_squares() -> tuple[Any, ...]:
    """A loss of shares, which has a top, beside that of another output, which is not 0 where the shares are right."""
    values, labels = classes(256)

    def lose(outputs: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        own = outputs[0].softmax(1).gather(1, target[0][:, None])
        return 1 - own.mean() + F.mse_loss(outputs[1], target[1])

    samples = [(value, (label, value[:1].square())) for value, label in zip(values, labels, strict=True)]
    return TwoHeads(), lose, DataLoader(samples, 32, shuffle=True)  # type: ignore[arg-type]


def exposed() -> tuple[Any, ...]:
    """Counts of five kinds in times that the network knows, too: an input is part of the target, and no answer."""
    values, times = torch.randn(256, 7), 0.5 + torch.rand(256)
    rates = values[:, :5].mul(0.5).exp()
    counts = torch.poisson(rates * times[:, None])

    def lose(outputs: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return F.poisson_nll_loss(outputs + target[1].log()[:, None], target[0])

    samples = [*zip(torch.cat((values, times[:, None]), 1), zip(counts, times, strict=True), strict=True)]
    return network(8, 5), lose, DataLoader(samples, 32, shuffle=True)  # type: ignore[arg-type]


class Copied(nn.Module):
    """Decoder that is given the series that it gives back, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = (nn.GRU(3, 8, batch_first=True) for _ in range(2))
        self.last = nn.Linear(8, 3)

    def forward(self, series: Tensor, given: Tensor) -> Tensor:
        before = F.pad(given[:, :-1], (0, 0, 1, 0))
        return self.last(self.decoder(before, self.encoder(series)[1])[0])


def own_target(kind: str) -> tuple[Any, ...]:
    series = torch.randn(16, 6, 3)
    if kind == "decoder":
        return Copied(), nn.MSELoss(), [((series, series.clone()), series.clone())]
    return nn.Linear(3, 3), nn.MSELoss(), [(series, series)]


# --- networks and losses ----------------------------------------------------------------------------------------------


def skipped(kind: str) -> tuple[Any, ...]:
    """Blocks that are left out while training: in the pass that is looked at, or for some samples."""
    if kind == "by sample":
        blocks = [Block(16, 0.5, is_by_sample=True) for _ in range(3)]
        return nn.Sequential(nn.Linear(8, 16), *blocks, nn.Linear(16, 3)), nn.CrossEntropyLoss(), load(*classes(96))
    stem = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    blocks = [NormBlock(8, 0.6) for _ in range(3)]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return model, nn.CrossEntropyLoss(), load(torch.randn(64, 3, 8, 8), torch.randint(0, 3, (64,)))


def counts(end: type[nn.Module] | None, delta: float) -> tuple[Any, ...]:
    """Counts of heavy tails, by a robust loss, of a network that ends in a ReLU or in nothing."""
    values = torch.randn(512, 8)
    rate = (values @ torch.randn(8, 1) / 8**0.5 + 0.7 * torch.randn(512, 1)).exp()
    model = network(number=1)
    nn.init.ones_(model[2].bias)  # type: ignore[arg-type]
    return model.append(end()) if end else model, nn.HuberLoss(delta=delta), load(values, torch.poisson(rate), size=64)


def three_classes(smoothing: float) -> tuple[Any, ...]:
    """Three classes of 512 samples that a network of 64 units tells apart with some errors."""
    values, labels = classes(512, 16, signal=0.7)
    return network(16, hidden=64), nn.CrossEntropyLoss(label_smoothing=smoothing), load(values, labels, size=32)


def sure_of_smooth_labels() -> tuple[Any, ...]:
    values, labels = classes(128, number=2, signal=8.0)
    model, loss = network(number=2), nn.CrossEntropyLoss(label_smoothing=0.1)
    _train(model, loss, load(values, labels), 30)
    return model, loss, load(values, labels)


def margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """Triplets of the farthest of the own class, and the nearest of others."""
    distances, is_own = torch.cdist(outputs, outputs), labels[:, None] == labels
    near = (distances + 99 * is_own).min(1)[0]
    return F.relu(0.2 + (distances * is_own).max(1)[0] - near).mean()


def satisfied(loss: Callable[..., Tensor]) -> tuple[Any, ...]:
    """A trained network that keeps all margins: its loss and its gradients are exactly 0."""
    values, labels = classes(256, signal=6.0)
    model, loader = network(), load(0.5 * values, labels, size=32)
    _train(model, loss, loader, 40)
    return model, loss, loader


def _train(model: nn.Module, loss: Callable[..., Tensor], loader: Any, epochs: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(epochs):
        for values, labels in loader:
            optimizer.zero_grad()
            loss(model(values), labels).backward()
            optimizer.step()
    return optimizer


class Glimpse(nn.Module):
    """Network that reads one place of a row, drawn from those that it prefers, and says how likely the place was."""

    def __init__(self) -> None:
        super().__init__()
        self.prefer, self.answer = nn.Linear(6, 1), nn.Linear(1, 4)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        places = Normal(self.prefer(values), 0.3)
        place = places.sample()
        seen = (values * (-((torch.linspace(-1, 1, 6) - place) ** 2)).exp()).sum(1, keepdim=True)
        return self.answer(seen), places.log_prob(place)[:, 0]


def score_function(outputs: tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    """Expected cross entropy: a place that was drawn is preferred where it was of use (Williams 1992)."""
    scores, likelihood = outputs
    errors = F.cross_entropy(scores, label, reduction="none")
    return (errors + likelihood * (errors.detach() - errors.detach().mean())).mean()


MODULES: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "a slow folder by class": partial(folder, is_slow=True),
    "a folder by class, evaluated in its order": partial(folder, is_slow=False),
    "short texts in both parts": short_texts,
    "a rare class drawn more often": balanced,
    **{
        f"mixed samples, {form}, {'each' if is_by_sample else 'all'} by one share": partial(
            mixed, form, is_by_sample=is_by_sample
        )
        for form in ("tuple", "shares")
        for is_by_sample in (False, True)
    },
    "an overlap beside squares of another output": overlap_beside_squares,
    "counts in times that are an input": exposed,
    "a decoder of its own target": partial(own_target, "decoder"),
    "an input that is its target": partial(own_target, "copy"),
    "blocks with norms that are skipped": partial(skipped, "whole"),
    "blocks that some samples skip": partial(skipped, "by sample"),
    **{
        f"counts behind {end.__name__ if end else 'nothing'}, delta {delta:g}": partial(counts, end, delta)
        for end in (None, nn.ReLU, nn.Softplus)
        for delta in (1.0, 5.0)
    },
    "a place that is drawn by its score": lambda: (
        Glimpse(),
        score_function,
        (torch.randn(24, 6), torch.arange(24) % 4),
    ),
    "three classes": partial(three_classes, 0.0),
    "three classes, smoothed": partial(three_classes, 0.1),
    "sure of smooth labels": sure_of_smooth_labels,
    "a satisfied hinge": partial(satisfied, nn.MultiMarginLoss()),
    "satisfied triplets": partial(satisfied, margins),
}


# --- loops ------------------------------------------------------------------------------------------------------------


def goes_on(loss: Callable[..., Tensor], *, is_trained: bool) -> None:
    """A loop whose margins are kept after a while, or from its first update on."""
    values, labels = classes(256, signal=6.0)
    model, loader = network(), load(0.5 * values, labels, size=32)
    optimizer = _train(model, loss, loader, 40 if is_trained else 0)
    with sightline.watch(model, optimizer=optimizer):
        for _, (inputs, target) in zip(range(320), _cycle(loader), strict=False):
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()


def _cycle(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def warms_up(epochs: int, *, makes: str) -> None:
    """A warm-up over epochs, of which the loop is the first part."""
    model, loader = network(), load(*classes(160))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    schedules = torch.optim.lr_scheduler
    schedule = (
        schedules.LinearLR(optimizer, 1e-3, total_iters=epochs)
        if makes == "LinearLR"
        else schedules.LambdaLR(optimizer, lambda epoch: min(1.0, (epoch + 1) / epochs))
    )
    with sightline.watch(model, optimizer=optimizer, scheduler=schedule):
        for _ in range(5):
            for values, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(values), labels).backward()
                optimizer.step()
            schedule.step()


LOOPS: Mapping[str, Callable[[], None]] = {
    "a hinge that is satisfied": partial(goes_on, nn.MultiMarginLoss(), is_trained=False),
    "a hinge that was satisfied before": partial(goes_on, nn.MultiMarginLoss(), is_trained=True),
    "triplets that were satisfied before": partial(goes_on, margins, is_trained=True),
    **{
        f"a warm-up over {epochs} epochs by {makes}": partial(warms_up, epochs, makes=makes)
        for epochs in (5, 20)
        for makes in ("LinearLR", "LambdaLR")
    },
}
