"""Data of drawn programs: samples whose targets follow from their inputs, a row of a table a kind; their reading."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

_MIN_ABOVE_CHANCE = 0.05
_SLOW_S = 0.01


@dataclass
class Samples:
    """Inputs and target by sample; `lengths` of padded sequences, `num_outputs` of the network, what is compared."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    num_outputs: int
    compared: str
    lengths: Tensor | None = None

    def take(self, rows: Tensor) -> Samples:
        """Take some samples."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return Samples(tuple(t[rows] for t in self.inputs), self.target[rows], self.num_outputs, self.compared, lengths)


class Stored(Dataset[Any]):
    """Samples in memory: (inputs, target), or a mapping; each read may take its time, and add noise of its own."""

    def __init__(self, samples: Samples, *, is_mapping: bool, is_slow: bool, noise: float) -> None:
        self.samples, self.is_mapping, self.is_slow, self.noise = samples, is_mapping, is_slow, noise

    def __len__(self) -> int:
        return len(self.samples.target)

    def __getitem__(self, index: int) -> Any:
        if self.is_slow:
            time.sleep(_SLOW_S)
        samples = self.samples
        inputs = [t[index] for t in samples.inputs]
        if samples.lengths is not None:
            length = samples.lengths[index]
            inputs = [inputs[0][:length], length]
        elif self.noise and inputs[0].is_floating_point():
            inputs[0] = inputs[0] + self.noise * torch.randn_like(inputs[0])
        target = inputs[0] if samples.compared == "itself" else samples.target[index]
        value = inputs[0] if len(inputs) == 1 else tuple(inputs)
        return {"x": value, "label": target} if self.is_mapping else (value, target)


def pad(samples: Sequence[Any]) -> Any:
    """Collate sequences of several lengths."""
    inputs, targets = zip(*samples, strict=True)
    steps, lengths = zip(*inputs, strict=True)
    return (torch.nn.utils.rnn.pad_sequence(steps, batch_first=True), torch.stack(lengths)), torch.stack(targets)


class MixUp:
    """Collate that mixes each sample with another: a mapping of inputs, both labels and the share of the first."""

    def __init__(self, *, is_by_sample: bool) -> None:
        self.is_by_sample = is_by_sample

    def __call__(self, samples: Sequence[Any]) -> Any:
        x, label = default_collate(list(samples))
        order = torch.randperm(len(x))
        share = torch.distributions.Beta(0.4, 0.4).sample((len(x),) if self.is_by_sample else ())
        weight = share.view(-1, *[1] * (x.ndim - 1))
        return {"x": weight * x + (1 - weight) * x[order], "label": label, "label_b": label[order], "lam": share}


def make_single_graph(samples: Samples) -> list[Any]:
    """Make the one batch of a graph that is trained on whole: its nodes are the samples."""
    return [(samples.inputs, samples.target)]


# --- labels -----------------------------------------------------------------------------------------------------------


def draw_labels(
    choose: random.Random, num: int, most: int = 100, *, least: int = 2, imbalance: float | None = None
) -> tuple[Tensor, int]:
    """Draw labels of some classes, of which the rarest has down to a hundredth of the commonest; all occur."""
    num_classes = min(round(math.exp(choose.uniform(math.log(least), math.log(most + 0.4)))), num // 8)
    if imbalance is None:
        imbalance = choose.choice([1.0, 1.0, choose.uniform(1, 10), choose.uniform(10, 100)])
    shares = torch.logspace(0, -math.log10(imbalance), num_classes)
    labels = torch.multinomial(shares, num, replacement=True)
    labels[: 2 * num_classes] = torch.arange(num_classes).repeat(2)
    return labels[torch.randperm(num)], num_classes


def spoil(choose: random.Random, labels: Tensor, num_classes: int) -> Tensor:
    """Draw up to three in ten labels anew."""
    share = choose.choice([0.0, 0.0, choose.uniform(0, 0.3)])
    return torch.where(torch.rand(labels.shape) < share, torch.randint_like(labels, num_classes), labels)


def weigh(labels: Tensor, num_classes: int) -> Tensor:
    """Compute weights of classes, the inverse of their counts."""
    counts = labels.bincount(minlength=num_classes).clamp(min=1)
    return counts.sum() / len(counts) / counts


def add_signal(
    choose: random.Random,
    labels: Tensor,
    noise: Tensor,
    num_classes: int,
    *,
    sizes: Sequence[float] = (0.1, 0.3, 1.0, 2.0),
) -> Tensor:
    """Add the mean of each sample's class to noise: the nearest mean is right 5 points above chance, or far more."""
    means = torch.randn(num_classes, *noise.shape[1:])
    size = choose.choice(sizes)
    for _ in range(40):
        x = size * means[labels] + noise
        nearest = torch.cdist(x.flatten(1), size * means.flatten(1)).argmin(1)
        accuracy = torch.stack([(nearest[labels == c] == c).float().mean() for c in labels.unique()]).mean()
        if float(accuracy) > 1 / num_classes + _MIN_ABOVE_CHANCE:
            break
        size *= 1.3
    return x


# --- kinds ------------------------------------------------------------------------------------------------------------


def draw_table(choose: random.Random, num: int) -> Samples:
    labels, num_classes = draw_labels(choose, num)
    x = add_signal(choose, labels, torch.randn(num, choose.randint(4, 48)), num_classes)
    return Samples((x,), spoil(choose, labels, num_classes), num_classes, "classes")


def draw_halves(choose: random.Random, num: int) -> Samples:
    labels, _ = draw_labels(choose, num, most=2)
    x = add_signal(choose, labels, torch.randn(num, choose.randint(4, 48)), 2)
    return Samples((x,), spoil(choose, labels, 2).float(), 1, "two")


def draw_images(choose: random.Random, num: int) -> Samples:
    labels, num_classes = draw_labels(choose, num, most=20)
    size = choose.choice([8, 12])
    coarse = add_signal(choose, labels, torch.randn(num, choose.choice([1, 3]), size // 2, size // 2), num_classes)
    x = F.interpolate(coarse, scale_factor=2) + 0.3 * torch.randn(num, coarse.shape[1], size, size)
    return Samples((x,), spoil(choose, labels, num_classes), num_classes, "classes")


def draw_series(choose: random.Random, num: int) -> Samples:
    labels, num_classes = draw_labels(choose, num, most=10)
    steps, width = choose.randint(8, 32), choose.randint(2, 8)
    means = add_signal(choose, labels, torch.randn(num, width), num_classes)
    lengths = torch.randint(4, steps + 1, (num,))
    x = means[:, None] + 0.5 * torch.randn(num, steps, width)
    return Samples((x,), spoil(choose, labels, num_classes), num_classes, "classes", lengths)


def draw_words(choose: random.Random, num: int) -> Samples:
    labels, num_classes = draw_labels(choose, num, most=10)
    steps, num_words = choose.randint(8, 32), choose.randint(2 * num_classes + 2, 60)
    lengths = torch.randint(5, steps + 1, (num,))
    tokens = torch.randint(1, num_words, (num, steps))
    is_told = torch.rand(num, steps) < choose.uniform(0.3, 0.8)
    told = 1 + (labels[:, None] + num_classes * torch.randint(0, 2, (num, steps)))
    tokens = torch.where(is_told, told, tokens)
    return Samples((tokens,), spoil(choose, labels, num_classes), num_classes, "classes", lengths)


def draw_tokens(choose: random.Random, num: int) -> Samples:
    """Draw chains of tokens, each mostly followed by its successor of a table; the target is the next token."""
    num_tokens, steps = choose.randint(6, 40), choose.randint(8, 24)
    follows, sure = torch.randperm(num_tokens), choose.uniform(0.3, 0.95)
    rows = [torch.randint(num_tokens, (num,))]
    for _ in range(steps):
        is_drawn = torch.rand(num) > sure
        rows.append(torch.where(is_drawn, torch.randint(num_tokens, (num,)), follows[rows[-1]]))
    tokens = torch.stack(rows, 1)
    return Samples((tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous(), num_tokens, "next")


def draw_numbers(choose: random.Random, num: int) -> Samples:
    """Draw numbers that follow from the inputs, with noise of light or heavy tails, standardised."""
    width, num_targets = choose.randint(3, 24), choose.choice([1, 1, 2, 5])
    x = torch.randn(num, width)
    clean = torch.tanh(x @ torch.randn(width, 8) / width**0.5) @ torch.randn(8, num_targets)
    noise = choose.choice([torch.randn(num, num_targets), torch.distributions.StudentT(3.0).sample((num, num_targets))])
    y = clean / clean.std() + choose.choice([0.1, 0.5, 1.0]) * noise
    return Samples((x,), (y - y.mean(0)) / y.std(0), num_targets, "numbers")


def draw_counts(choose: random.Random, num: int) -> Samples:
    """Draw counts of heavy tails, many of them 0."""
    width = choose.randint(3, 24)
    x = torch.randn(num, width)
    rate = (x @ torch.randn(width, 1) / width**0.5 + choose.uniform(0.3, 1.0) * torch.randn(num, 1)).exp()
    return Samples((x,), torch.poisson(rate), 1, "counts")


def draw_maps(choose: random.Random, num: int) -> Samples:
    """Draw images of squares, each of a class by its colour; some edges are ignored."""
    num_classes, size = choose.randint(2, 6), choose.choice([12, 16])
    maps = torch.zeros(num, size, size, dtype=torch.long)
    for index in range(num):
        for _ in range(choose.randint(1, 3)):
            top, left, side = choose.randint(0, size - 4), choose.randint(0, size - 4), choose.randint(3, size // 2)
            maps[index, top : top + side, left : left + side] = choose.randint(1, num_classes - 1)
    colours = torch.randn(num_classes, 3)
    x = colours[maps].movedim(-1, 1) + choose.choice([0.2, 0.7]) * torch.randn(num, 3, size, size)
    if choose.random() < 0.5:
        maps[:, :, 0] = 255
    return Samples((x,), maps, num_classes, "map")


def draw_bits(choose: random.Random, num: int) -> Samples:
    """Draw several labels a sample, some of them rare."""
    width, num_labels = choose.randint(6, 32), choose.randint(2, 12)
    x = torch.randn(num, width)
    scores = x @ torch.randn(width, num_labels) / width**0.5 + choose.choice([0.1, 0.7]) * torch.randn(num, num_labels)
    return Samples((x,), (scores > torch.linspace(0, choose.uniform(0, 1.5), num_labels)).float(), num_labels, "bits")


def draw_graphs(choose: random.Random, num: int) -> Samples:
    labels, num_classes = draw_labels(choose, num, most=5)
    nodes, width = choose.randint(5, 12), choose.randint(3, 8)
    means = add_signal(choose, labels, torch.randn(num, width), num_classes)
    x = means[:, None] + 0.7 * torch.randn(num, nodes, width)
    edges = (torch.rand(num, nodes, nodes) < 0.3).float().triu(1)
    return Samples((x, edges + edges.mT), spoil(choose, labels, num_classes), num_classes, "classes")


def draw_nodes(choose: random.Random, num: int) -> Samples:
    """Draw one graph whose nodes are the samples: neighbours are mostly of one class."""
    num = min(num, 400)
    labels, num_classes = draw_labels(choose, num, most=6)
    x = add_signal(choose, labels, torch.randn(num, choose.randint(4, 16)), num_classes)
    is_near = torch.where(labels[:, None] == labels, 8 / num, 1 / num)
    edges = (torch.rand(num, num) < is_near).float().triu(1)
    return Samples((x, edges + edges.mT), labels, num_classes, "graph")


def draw_views(choose: random.Random, num: int) -> Samples:
    """Draw two views of each object."""
    objects, width = torch.randn(num, 8), choose.randint(8, 24)
    shared = torch.randn(8, width)
    size = choose.choice([0.1, 0.5])
    views = [objects @ shared / 8**0.5 + size * torch.randn(num, width) for _ in range(2)]
    return Samples((views[0], views[1]), torch.arange(num), 16, "views")


def draw_itself(choose: random.Random, num: int) -> Samples:
    """Draw points near a plane, which are their own target."""
    width = choose.randint(6, 24)
    x = torch.randn(num, 3) @ torch.randn(3, width) + 0.1 * torch.randn(num, width)
    return Samples((x,), x, width, "itself")


KINDS: Mapping[str, tuple[Callable[[random.Random, int], Samples], str, float]] = {
    "classes": (draw_table, "table", 4),
    "two classes": (draw_halves, "table", 1.5),
    "images": (draw_images, "image", 3),
    "series": (draw_series, "series", 1),
    "words": (draw_words, "words", 1.5),
    "next tokens": (draw_tokens, "tokens", 1),
    "numbers": (draw_numbers, "table", 2),
    "counts": (draw_counts, "table", 1),
    "maps": (draw_maps, "map", 1.5),
    "several labels": (draw_bits, "table", 1),
    "graphs": (draw_graphs, "graph", 1),
    "nodes of a graph": (draw_nodes, "nodes", 0.5),
    "pairs of views": (draw_views, "views", 1),
    "autoencoder": (draw_itself, "itself", 0.5),
}
"""Kinds of data: their draw, the networks that take their inputs, and how often they are drawn."""
