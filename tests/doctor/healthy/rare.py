"""Rare kinds of drawn programs, each sound by construction: they ask rules that the plain kinds seldom ask.

A row of `RARE` names a kind, how it is drawn, and how many programs the rates want of it.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from tests.doctor.healthy.data import add_signal, draw_labels, spoil, weigh
from tests.doctor.healthy.networks import (
    Causal,
    Make,
    Masked,
    TwoHeads,
    end_in,
    make_cnn,
    make_map,
    make_mlp,
    make_residual,
)

Loss = Callable[[Any, Any], Tensor]
Read = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]
"""Changes inputs and targets of a sample as it is read."""
_LEARNT_STEPS, _LEARNT = 150, 0.9
_WATCHED, _WATCHED_NORMS, _NORMED = 0.5, 0.9, 0.5
"""Share of the programs whose training is watched, and of those with batch norms, of which few plain ones are; share of
networks that have some in any case."""


@dataclass
class Parts:
    """Parts of a program that a kind draws: `window` micro-batches an update, and what the mean of each counts.

    `watched` is how often its training is watched.
    """

    model: nn.Module
    loss: Loss
    loader: Iterable[Any]
    evaluation: Iterable[Any]
    words: dict[str, str] = field(default_factory=dict)
    window: int = 1
    count: Callable[[Any], int] = lambda target: 1
    watched: float = 0.0

    def __post_init__(self) -> None:
        self.watched = self.watched or (_WATCHED_NORMS if has_norm(self.model) else _WATCHED)


class Rows(Dataset[Any]):
    """Samples in memory, of inputs and targets; one of either stands alone, several are a tuple."""

    def __init__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor], read: Read | None = None) -> None:
        self.inputs, self.targets, self.read = inputs, targets, read

    def __len__(self) -> int:
        return len(self.targets[0])

    def __getitem__(self, index: int) -> Any:
        sides = [t[index] for t in self.inputs], [t[index] for t in self.targets]
        if self.read is not None:
            sides = self.read(*sides)
        return tuple(side[0] if len(side) == 1 else tuple(side) for side in sides)


def log_uniform(choose: random.Random, least: float, most: float) -> int:
    """Draw a whole number of which each order of size is as likely."""
    return round(math.exp(choose.uniform(math.log(least), math.log(most))))


def load(
    choose: random.Random,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    read: Read | None = None,
    read_evaluation: Read | None = None,
    least: int = 2,
    most: int = 256,
    drops: bool = False,
    sampler: Callable[[Tensor], Any] | None = None,
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Divide samples, and make both loaders; a `sampler` is made of the first target of the training's part."""
    num = len(targets[0])
    is_kept = torch.randperm(num) < max(num // 5, 4)
    train, test = ([[t[is_kept == flag] for t in side] for side in (inputs, targets)] for flag in (False, True))
    batch = log_uniform(choose, least, max(least, min(most, num // 3)))
    order: dict[str, Any] = {"shuffle": True} if sampler is None else {"sampler": sampler(train[1][0])}
    loader = DataLoader(Rows(*train, read), batch, drop_last=drops or choose.random() < 0.3, **order)
    return loader, DataLoader(Rows(*test, read_evaluation), batch)


def make_normed(choose: random.Random, makes: Sequence[Make], num_inputs: int, num_outputs: int) -> nn.Module:
    """Make a network, more often than not one with batch norms."""
    is_normed = choose.random() < _NORMED
    while True:
        model = choose.choice(makes)(choose, num_inputs, num_outputs)
        if has_norm(model) or not is_normed:
            return model


def has_norm(model: nn.Module) -> bool:
    """Return True for a model that a last batch of one sample would fail."""
    return any("BatchNorm" in type(module).__name__ for module in model.modules())


# --- classes ----------------------------------------------------------------------------------------------------------


def draw_classes(choose: random.Random, most: int) -> tuple[Tensor, Tensor, int, nn.Module]:
    """Draw inputs that tell their classes well, labels, the number of classes, and a network."""
    num = log_uniform(choose, 300, 5000)
    is_image = choose.random() < 0.25
    num = min(num, 800) if is_image else num
    labels, num_classes = draw_labels(choose, num, least=3, most=most, imbalance=choose.uniform(2, 60))
    shape = (choose.choice([1, 3]), 8, 8) if is_image else (choose.randint(6, 48),)
    x = add_signal(choose, labels, torch.randn(num, *shape), num_classes, sizes=(0.7, 1.0, 2.0))
    makes = [make_cnn] if is_image else [make_mlp, make_residual]
    return x, labels, num_classes, make_normed(choose, makes, shape[0], num_classes)


def draw_balanced(choose: random.Random) -> Parts:
    """Draw classes that a sampler balances, by the inverse of their counts."""
    x, labels, num_classes, model = draw_classes(choose, 8)
    labels = spoil(choose, labels, num_classes)
    losses: dict[str, Loss] = {
        "cross entropy": nn.CrossEntropyLoss(),
        "plain cross entropy": F.cross_entropy,
        "label smoothing": nn.CrossEntropyLoss(label_smoothing=choose.choice([0.05, 0.1, 0.2])),
    }
    name = choose.choice(list(losses))

    def make_sampler(kept: Tensor) -> WeightedRandomSampler:
        return WeightedRandomSampler(weigh(kept, num_classes)[kept].tolist(), len(kept))

    loaders = load(choose, (x,), (labels,), drops=has_norm(model), sampler=make_sampler)
    return Parts(model, losses[name], *loaders, {"loss": name, "outputs": str(num_classes)})


def draw_distilled(choose: random.Random) -> Parts:
    """Draw classes with the scores or shares of a teacher, or with shares alone, as of several annotators."""
    x, labels, num_classes, model = draw_classes(choose, 30)
    means = torch.stack([x[labels == c].mean(0) for c in range(num_classes)]).flatten(1)
    distances = torch.cdist(x.flatten(1), means).square()
    scores = choose.choice([1.0, 3.0, 6.0]) * -(distances - distances.mean(1, keepdim=True)) / distances.std()
    scores = scores + 0.3 * torch.randn_like(scores)
    temperature, share = choose.choice([1.0, 2.0, 3.0, 4.0, 5.0]), choose.uniform(0.1, 0.9)
    shares = (scores / temperature).softmax(1)
    votes = torch.distributions.Multinomial(choose.choice([3, 5, 10]), probs=scores.softmax(1)).sample()

    def beside_labels(outputs: Tensor, target: tuple[Tensor, Tensor], of_teacher: Loss) -> Tensor:
        hard = F.cross_entropy(outputs, target[0])
        return share * hard + (1 - share) * of_teacher(outputs, target[1])

    def divergence(outputs: Tensor, shares: Tensor) -> Tensor:
        own = (outputs / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(own, shares, reduction="batchmean")

    def of_scores(outputs: Tensor, scores: Tensor) -> Tensor:
        return divergence(outputs, (scores / temperature).softmax(1))

    forms: dict[str, tuple[tuple[Tensor, ...], Loss]] = {
        "scores of a teacher": ((labels, scores), partial(beside_labels, of_teacher=of_scores)),
        "shares of a teacher": ((labels, shares), partial(beside_labels, of_teacher=divergence)),
        "squares to scores": ((labels, scores), partial(beside_labels, of_teacher=F.mse_loss)),
        "shares alone": ((scores.softmax(1),), F.cross_entropy),
        "votes": ((votes / votes.sum(1, keepdim=True),), F.cross_entropy),
    }
    name = choose.choice([*forms, *list(forms)[:2], *list(forms)[:2]])
    targets, loss = forms[name]
    loaders = load(choose, (x,), targets, drops=has_norm(model))
    words = {"loss": name, "temperature": str(temperature), "outputs": str(num_classes)}
    return Parts(model, loss, *loaders, words)


# --- images with boxes ------------------------------------------------------------------------------------------------


def draw_scenes(choose: random.Random) -> Parts:
    """Draw padded images of coloured rectangles, one of each class, with their boxes and the map of their classes."""
    num, size, num_objects = log_uniform(choose, 64, 300), choose.choice([20, 24]), choose.randint(2, 4)
    in_pixels, by_centre = choose.random() < 0.5, choose.random() < 0.3
    images, maps = torch.zeros(num, 3, size, size), torch.full((num, size, size), choose.choice([0, 0, 0, 255]))
    boxes = torch.zeros(num, num_objects, 4)
    colours = torch.randn(num_objects + 1, 3)
    noise, padded, grey = choose.choice([0.1, 0.4]), choose.choice([0.5, 0.9, 1.0]), choose.choice([0.0, 0.5])
    for index in range(num):
        sides = [size, size]
        if choose.random() < padded:
            sides[choose.randint(0, 1)] = choose.randint(size // 2, size - 4)
        left, top = ((size - side) // 2 for side in sides)
        content = torch.zeros(sides[1], sides[0], dtype=torch.long)
        for number in range(num_objects):
            w, h = (choose.randint(3, side // 2) for side in sides)
            x, y = choose.randint(0, sides[0] - w), choose.randint(0, sides[1] - h)
            content[y : y + h, x : x + w] = number + 1
            boxes[index, number] = torch.tensor([left + x, top + y, left + x + w, top + y + h])
        inside = slice(top, top + sides[1]), slice(left, left + sides[0])
        images[index] = grey
        images[index][:, inside[0], inside[1]] = colours[content].movedim(-1, 0)
        images[index][:, inside[0], inside[1]] += noise * torch.randn(3, sides[1], sides[0])
        maps[index][inside] = content
    whole = float(size) if in_pixels else 1.0
    boxes = boxes * (whole / size)
    if by_centre:
        boxes = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)

    def mirror(inputs: list[Tensor], targets: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if float(torch.rand(())) < 0.5:
            return inputs, targets
        box = targets[0].clone()
        if by_centre:
            box[:, 0] = whole - box[:, 0]
        else:
            box[:, [0, 2]] = whole - box[:, [2, 0]]
        return [inputs[0].flip(-1)], [box, targets[1].flip(-1)]

    weight, of_boxes = choose.choice([0.2, 1.0, 5.0]), choose.choice([F.l1_loss, F.smooth_l1_loss, F.mse_loss])

    def loss(outputs: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        of_map = F.cross_entropy(outputs[0], target[1], ignore_index=255)
        return of_map + weight * of_boxes(outputs[1] / whole, target[0] / whole)

    is_mirrored = choose.random() < 0.6
    model = TwoHeads(make_normed(choose, [make_map], 3, num_objects + 1), num_objects, whole)
    read = mirror if is_mirrored else None
    loaders = load(choose, (images,), (boxes, maps), read=read, least=4, most=64, drops=has_norm(model))
    words = {"boxes": f"{'centres' if by_centre else 'corners'} to {whole:g}", "mirrored": str(is_mirrored)}
    return Parts(model, loss, *loaders, words)


# --- numbers behind a bound, hidden numbers ---------------------------------------------------------------------------


def learns(parts: Parts) -> bool:
    """Return True if a copy learns, and no channel of its output is left without a number above 0.

    What begins behind a bound at 0 may be dead by chance: such a program is not sound.
    """
    model = copy.deepcopy(parts.model).train()
    optimizer, values = torch.optim.Adam(model.parameters(), 3e-3), list[float]()
    is_alive = torch.zeros(())
    while len(values) < _LEARNT_STEPS:
        for inputs, target in parts.loader:
            optimizer.zero_grad()
            outputs = model(*inputs) if isinstance(inputs, list) else model(inputs)
            value = parts.loss(outputs, target)
            value.backward()
            optimizer.step()
            values.append(float(value.detach()))
            first = (outputs if isinstance(outputs, Tensor) else outputs[0]).detach()
            axis = 1 if first.ndim == 4 else first.ndim - 1
            is_alive = first.movedim(axis, 0).flatten(1).amax(1) > 0
            if len(values) >= _LEARNT_STEPS:
                break
    part = _LEARNT_STEPS // 5
    return bool(is_alive.all()) and sum(values[-part:]) < _LEARNT * sum(values[:part])


def draw_until_it_learns(draw_once: Callable[[random.Random], Parts], choose: random.Random) -> Parts:
    """Draw programs until one learns."""
    parts = draw_once(choose)
    while not learns(parts):
        parts = draw_once(choose)
    return parts


def draw_masked_once(choose: random.Random) -> Parts:
    """Draw rows of patches, of which some are hidden from the network that gives them back."""
    num, num_patches, width = log_uniform(choose, 64, 2000), choose.randint(6, 20), choose.randint(6, 24)
    base = torch.randn(num, 3) @ torch.randn(3, num_patches * width) / 3**0.5
    x = (base + choose.choice([0.1, 0.3]) * torch.randn_like(base)).reshape(num, num_patches, width)
    end = choose.choice(["relu", "clamp", "relu", "", "softplus"])
    x = F.softplus(2 * x) if end else x
    share, is_drawn_inside = choose.uniform(0.25, 0.75), choose.random() < 0.25
    mean = x.mean((0, 1)) if choose.random() < 0.5 else None
    body = "attention" if choose.random() < 0.5 else "mixing"
    model = end_in(Masked(num_patches, width, choose.choice([16, 32]), share, body=body), end, mean)
    counts_all, is_float = choose.random() < 0.3, choose.random() < 0.5
    power = choose.choice([1, 2])

    def lose(outputs: Tensor, x: Tensor, hidden: Tensor) -> Tensor:
        errors = (outputs - x).abs() ** power
        return errors.mean() if counts_all else (errors.mean(-1) * hidden).sum() / hidden.sum().clamp(min=1)

    def hide(inputs: list[Tensor], targets: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = torch.rand(num_patches) < share
        hidden = hidden.float() if is_float else hidden
        return [inputs[0], hidden], [targets[0], hidden]

    def loss(outputs: Any, target: Any) -> Tensor:
        return lose(outputs[0], target, outputs[1]) if is_drawn_inside else lose(outputs, *target)

    read = None if is_drawn_inside else hide
    loaders = load(choose, (x,), (x,), read=read, read_evaluation=read, least=4, most=128)
    words = {"end": end, "counted": "all" if counts_all else "hidden", "inside": str(is_drawn_inside), "body": body}
    return Parts(model, loss, *loaders, words)


def draw_bounded_once(choose: random.Random) -> Parts:
    """Draw numbers that are never below 0, as prices, counts or depths with holes, and a network that ends at 0."""
    kind, end = choose.choice(["numbers", "counts", "depths"]), choose.choice(["relu", "relu", "clamp", "maximum"])
    if kind == "depths":
        num, size = log_uniform(choose, 64, 400), choose.choice([8, 12])
        field = F.interpolate(torch.randn(num, 1, size // 4, size // 4), size=(size, size), mode="bilinear")
        target = 2 + field.clamp(-1.8)
        x = torch.cat([field + 0.3 * torch.randn_like(field), 0.5 * torch.randn(num, 2, size, size)], 1)
        target = torch.where(torch.rand_like(target) < choose.choice([0.05, 0.3]), 0.0, target)
        model = make_map(choose, 3, 1)
    else:
        num, width = log_uniform(choose, 64, 5000), choose.randint(3, 24)
        x = torch.randn(num, width)
        rate = (x @ torch.randn(width, 1) / width**0.5 + 0.3 * torch.randn(num, 1)).exp()
        target = torch.poisson(2 * rate) if kind == "counts" else rate
        model = choose.choice([make_mlp, make_residual])(choose, width, 1)
    # Others may be dead by chance, as `learns` finds.
    model = end_in(model, end, target[target > 0].mean()[None] if choose.random() < 0.5 else None)
    error = choose.choice([F.mse_loss, F.l1_loss, F.smooth_l1_loss])

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return error(outputs[target > 0], target[target > 0]) if kind == "depths" else error(outputs, target)

    loaders = load(choose, (x,), (target,), least=4, drops=has_norm(model))
    return Parts(model, loss, *loaders, {"numbers": kind, "end": end, "loss": error.__name__})


# --- texts ------------------------------------------------------------------------------------------------------------


def draw_captions(choose: random.Random) -> Parts:
    """Draw padded rows of tokens, with an end that is learnt, or of items without one, in updates of micro-batches."""
    num, num_words, most = log_uniform(choose, 100, 2000), choose.randint(8, 40), choose.randint(16, 32)
    form = choose.choice(["pad of its own", "pad of its own", "end as pad", "items"])
    end, first = (1, 2) if form != "items" else (0, 1)  # the pad is 0, or the end
    follows, sure = first + torch.randperm(num_words), choose.uniform(0.3, 0.9)
    rows = []
    for _ in range(num):
        length, row = log_uniform(choose, 3, most), [first + choose.randrange(num_words)]
        while len(row) < length:
            is_sure = choose.random() < sure
            row.append(int(follows[row[-1] - first]) if is_sure else first + choose.randrange(num_words))
        rows.append(torch.tensor(row + [end] * (form != "items")))
    pad = end if form == "end as pad" else 0
    ignored = choose.choice([-100, 0]) if pad == 0 else -100

    def collate(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(row) for row in samples])
        tokens = nn.utils.rnn.pad_sequence(list(samples), batch_first=True, padding_value=pad)
        is_text = torch.arange(tokens.shape[1] - 1) < lengths[:, None] - 1
        return tokens[:, :-1], torch.where(is_text, tokens[:, 1:], ignored)

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), target.flatten(), ignore_index=ignored)

    model = Causal(first + num_words, choose.choice([16, 32]), is_recurrent=choose.random() < 0.5)
    if form == "items":
        model.words = nn.Embedding(first + num_words, model.words.embedding_dim, padding_idx=0)
    kept = num // 5
    batch, window = choose.randint(4, 8), choose.randint(3, 5)
    loader = DataLoader(rows[kept:], batch, shuffle=True, collate_fn=collate, drop_last=choose.random() < 0.3)  # type: ignore[arg-type]
    evaluation = DataLoader(rows[:kept], batch, collate_fn=collate)  # type: ignore[arg-type]
    words = {"form": form, "ignored": str(ignored), "window": str(window)}
    count = lambda target: int((target != ignored).sum())  # noqa: E731
    return Parts(model, loss, loader, evaluation, words, window=window, count=count, watched=1.0)


class Rare(NamedTuple):
    """Kind of programs: its draw, and how many the rates want."""

    draw: Callable[[random.Random], Parts]
    num: int


RARE: Mapping[str, Rare] = {
    "balanced": Rare(draw_balanced, 700),
    "distilled": Rare(draw_distilled, 680),
    "scenes": Rare(draw_scenes, 700),
    "masked": Rare(partial(draw_until_it_learns, draw_masked_once), 640),
    "bounded": Rare(partial(draw_until_it_learns, draw_bounded_once), 1200),
    "captions": Rare(draw_captions, 700),
}
