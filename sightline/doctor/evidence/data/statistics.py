"""Statistics of what enters the network and the loss, in training and in evaluation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves, tree_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.source import Reading, open_source, take_batches
from sightline.doctor.evidence.samples import update
from sightline.doctor.forms.form import Batch
from sightline.doctor.loaders import iterate
from sightline.doctor.subject import Pass, Subject, count_samples
from sightline.instrument.work import WorkCounter

_MAX_TRAIN_S, _MAX_BATCHES, _MAX_CLASSES = 1.0, 40, 64
_MIN_SAMPLES = 16


@measure()
def byte_steps(subject: Subject) -> dict[str, float]:
    """Largest number of each input of images whose numbers are multiples of 1 / 255², up to 255 of them."""
    found = {}
    images = [(path, t) for path, t in dense_leaves(subject.batches[0].inputs) if t.ndim == 4 and t.is_floating_point()]
    for path, image in images:
        steps, largest = image.double() * 255**2, float(image.max())
        is_grid = bool(((steps - steps.round()).abs() < 1e-2).all()) and float(image.min()) >= 0
        if is_grid and 32 / 255**2 < largest <= 1.001 / 255 and len(steps.round().unique()) > 16:
            found[path] = largest
    if not images:
        raise NotApplicableError("no images")
    return found


@measure()
def same_views(subject: Subject, passed: Pass) -> list[str]:
    """List inputs of one shape, or halves of one along an axis of two, that are equal in each batch.

    Not those that are the target too: what is to be given back may be among the inputs, as in an autoencoder. Nor those
    of calls of the model whose outputs differ: dropout makes views of them.
    """
    if _draws_views(passed):
        return []
    found: list[set[str]] = []
    for batch in subject.batches:
        targets = [tensor for _, tensor in dense_leaves(batch.target)]
        views = {p: t for p, t in dense_leaves(batch.inputs) if not any(_is_equal(t, target) for target in targets)}
        for path, tensor in [*views.items()]:
            if tensor.ndim > 4 and tensor.shape[1] == 2:  # axes of images; two channels may be equal
                views |= {f"{path}[:, {place}]": part for place, part in enumerate(tensor.unbind(1))}
        views = {path: t for path, t in views.items() if t.ndim > 1 and t.is_floating_point() and len(t.unique()) > 8}
        pairs = itertools.combinations(views, 2)
        equal = [
            pair
            for pair in pairs
            if views[pair[0]].shape == views[pair[1]].shape and torch.equal(views[pair[0]], views[pair[1]])
        ]
        found.append({" and ".join(pair) for pair in equal})
    common = set.intersection(*found)
    return sorted(common)[0].split(" and ") if common else []


def _draws_views(passed: Pass) -> bool:
    """Return True for several calls of a model with equal inputs and other outputs."""
    trees = passed.inputs, passed.outputs
    if not all(isinstance(tree, tuple) for tree in trees) or len(trees[0]) != len(trees[1]):
        return False
    inputs, outputs = ([[t for _, t in dense_leaves(call)] for call in tree] for tree in trees)
    for one, other in itertools.combinations(range(len(inputs)), 2):
        is_same, is_answered = (
            len(tree[one]) == len(tree[other]) > 0 and all(map(_is_equal, tree[one], tree[other]))
            for tree in (inputs, outputs)
        )
        if is_same and not is_answered:
            return True
    return False


def _is_equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


class Gap(NamedTuple):
    """Difference of one channel of an input between training and evaluation.

    `mean` is in spreads of a number of the training's, `ratio` that of the spreads; `z` is the larger one's distance
    in spreads of what samples of one part differ by.
    """

    path: str
    channel: int
    mean: float
    ratio: float
    z: float


@measure()
def input_gaps(subject: Subject, program_reading: Reading) -> list[Gap]:
    """Compare statistics of each sample, channel by channel: training against evaluation."""
    if not subject.evaluation:
        raise NotApplicableError("no evaluation given", lacks="evaluation")
    loaders = (subject.loader, subject.batches, "loader"), (subject.evaluation_loader, subject.evaluation, "evaluation")
    parts = [dict(_describe(_spread(subject, program_reading, *each))) for each in loaders]
    gaps = []
    for (path, channel), first in parts[0].items():
        second = parts[1].get((path, channel))
        if second is None or min(len(first), len(second)) < _MIN_SAMPLES:
            continue
        gaps.append(_compare(path, channel, first, second))
    if not gaps:
        raise LeftOutError("too few samples in evaluation")
    return gaps


def _spread(subject: Subject, reading: Reading, loader: Any, batches: Sequence[Batch], name: str) -> Sequence[Batch]:
    """Return samples of all parts of a loader's set: the first of a sorted one are of one class, a sampler may balance.

    They are as many as its first batches hold, which are returned where the set has no index.
    """
    words = {"loader": loader, "form": subject.form, "reading": reading, "lacks": name}
    source = attempt("source", open_source, words)
    if isinstance(source, MissingError) or getattr(source.loader, "batch_size", None) is None:
        return batches
    batch = attempt("source", source.collate, {"count": sum(map(count_samples, batches))})
    return batches if isinstance(batch, MissingError) or not count_samples(batch) else [batch]


def _compare(path: str, channel: int, first: Tensor, second: Tensor) -> Gap:
    """Compare samples' means and mean squares of one channel (samples, 2)."""
    spreads = [float((each[:, 1].mean() - each[:, 0].mean().square()).clamp(min=0).sqrt()) for each in (first, second)]
    error = (first.var(dim=0) / len(first) + second.var(dim=0) / len(second)).sqrt()
    z = float(((first.mean(dim=0) - second.mean(dim=0)).abs() / error.clamp(min=1e-12)).max())
    scale = max(spreads[0], 1e-12)
    mean = float(first[:, 0].mean() - second[:, 0].mean()) / scale
    return Gap(path, channel, mean, max(spreads[1], 1e-12) / scale, z)


def _describe(batches: Sequence[Batch]) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """Yield mean and mean square of each sample (samples, 2), by path and channel of float inputs."""
    rows: dict[tuple[str, int], list[Tensor]] = {}
    for batch in batches:
        size = count_samples(batch)
        for path, tensor in dense_leaves(batch.inputs):
            if not size or not tensor.is_floating_point() or tensor.ndim < 2:
                continue
            values = tensor.detach().double().cpu()
            values = values.flatten(2) if values.ndim > 2 else values[:, :, None]
            if values.shape[1] > 64:
                values = values.reshape(size, 1, -1)
            moments = torch.stack((values.mean(dim=2), values.square().mean(dim=2)), dim=2)
            for channel in range(values.shape[1]):
                rows.setdefault((path, channel), []).append(moments[:, channel])
    yield from ((key, torch.cat(parts)) for key, parts in rows.items())


class Confusion(NamedTuple):
    """Counts (classes, answers) of a model that has trained: on samples like those of training, and on evaluation's."""

    kept_back: np.ndarray
    evaluation: np.ndarray


@measure(seconds=2 * _MAX_TRAIN_S)
def confusion(subject: Subject, program_reading: Reading) -> Confusion:
    """Train a copy for a counted second, and count its answers for classes of batches kept back and of evaluation."""
    if not subject.evaluation:
        raise NotApplicableError("no evaluation given", lacks="evaluation")
    training = list(_read(subject, program_reading, subject.loader, subject.batches))
    evaluation = list(_read(subject, program_reading, subject.evaluation_loader, subject.evaluation))
    if len(training) < 4 or not _is_classified(subject, training[0]):
        raise LeftOutError("no classes, or few batches")
    kept = max(1, len(training) // 4)
    model = subject.copy("train")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    work, nominal_s = WorkCounter(), 0.0
    for batch in itertools.cycle(training[kept:]):
        with contextlib.nullcontext() if nominal_s else work:
            update(optimizer, subject.run(model, batch).value)
        nominal_s += work.nominal_s
        if nominal_s > _MAX_TRAIN_S:
            break
    model.eval()
    return Confusion(*(_count(subject, model, part) for part in (training[:kept], evaluation)))


def _read(subject: Subject, reading: Reading, loader: Any, first: Sequence[Batch]) -> Iterator[Batch]:
    if loader is None:
        yield from first
        return
    device = first[0].target.device if isinstance(first[0].target, Tensor) else torch.device("cpu")
    for batch in take_batches(iterate(loader), reading, most=_MAX_BATCHES):
        yield subject.form.split(tree_map(batch, lambda _, tensor: tensor.to(device)))


def _is_classified(subject: Subject, batch: Batch) -> bool:
    """Return True for one class a sample, and an answer for each class."""
    target = batch.target
    if not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point():
        return False
    with torch.no_grad():
        outputs = subject.call(subject.copy("eval"), batch.inputs)
    return isinstance(outputs, Tensor) and outputs.ndim == 2 and 2 < outputs.shape[1] <= _MAX_CLASSES


def _count(subject: Subject, model: torch.nn.Module, batches: Sequence[Batch]) -> np.ndarray:
    table: np.ndarray | None = None
    with torch.no_grad():
        for batch in batches:
            outputs = subject.call(model, batch.inputs)
            size = outputs.shape[1]
            table = np.zeros((size, size), dtype=np.int64) if table is None else table
            is_class = ((batch.target >= 0) & (batch.target < size)).cpu().numpy()
            pair = batch.target.cpu().numpy()[is_class], outputs.argmax(dim=1).cpu().numpy()[is_class]
            np.add.at(table, pair, 1)
    assert table is not None
    return table


class Seams(NamedTuple):
    """Class of label maps, and how many of its pixels lie between a lower and a higher neighbour."""

    label: int
    pixels: int
    between: int


@measure()
def seams(subject: Subject) -> list[Seams]:
    """Count for each class of label maps the pixels that lie on a seam between a lower and a higher class."""
    counts: dict[int, list[int]] = {}
    for batch in subject.batches:
        for _, tensor in tree_leaves(batch.target):
            if tensor.is_floating_point() or tensor.ndim not in (3, 4) or min(tensor.shape[-2:]) < 8:
                continue
            maps = tensor.detach().float().reshape(-1, 1, *tensor.shape[-2:]).cpu()
            highest = torch.nn.functional.max_pool2d(maps, 3, 1, 1)
            lowest = -torch.nn.functional.max_pool2d(-maps, 3, 1, 1)
            is_between = (lowest < maps) & (maps < highest)
            for label in maps.unique().tolist():
                total = counts.setdefault(int(label), [0, 0])
                total[0] += int((maps == label).sum())
                total[1] += int(((maps == label) & is_between).sum())
    if not 2 < len(counts) <= 256:
        raise NotApplicableError("no label maps of classes")
    return [Seams(label, *total) for label, total in sorted(counts.items())]
