"""Relations of a DataLoader that hold for every correct one: its data set, sampler and collate function are asked."""

from __future__ import annotations

import copy
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from sightline import instrument
from sightline.contract.pytree import tree_leaves
from sightline.doctor.batches import BatchForm
from sightline.doctor.objects import find_read_generators, iter_reachable, preserve_generators
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.checks.data.augmentation_mismatch import augmentation_mismatch
from sightline.workbench.check.checks.data.channel_contract import label_range
from sightline.workbench.check.checks.data.data_mutation import data_mutation
from sightline.workbench.check.checks.data.empty_loader import empty_loader
from sightline.workbench.check.checks.data.sample_keys import exchanged_rows, own_generator
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.plain.flips import judge_flips
from sightline.workbench.watch.plain.loss_calls import judge_reads
from sightline.workbench.watch.plain.padding import judge_padded
from sightline.workbench.watch.plain.samples import (
    SEEDS,
    Item,
    OutOfReadingTimeError,
    limit_reading,
    list_indices,
    list_leaves,
    read,
    seed_globally,
    to_bytes,
)

logger = logging.getLogger(__name__)

_NUM_ITEMS, _NUM_READS, _NUM_LABELS = 6, 10, 64
_MAX_DRAWN, _MIN_DRAWN, _MIN_DISTINCT = 20_000, 200, 0.05
_MIN_COMMON, _MAX_CONFLICTS, _MAX_OTHER_SHARE = 8, 0.05, 0.1
_MAX_CLASSES, _IGNORED = 64, 255
_NUM_WEIGHED, _MIN_WEIGHED, _MAX_WEIGHING_S, _MAX_BALANCE = 400, 200, 0.4, 1.5
_MAX_READING_S, _MAX_ALL_READING_S, _MAX_STORED = 0.25, 10.0, 2**24
_TORCHS = (SequentialSampler, RandomSampler, WeightedRandomSampler)
_MODES = frozenset(("linear", "bilinear", "bicubic", "trilinear", "area"))


def judge_loader(loader: Any, form: BatchForm, gaps: list[str]) -> Iterator[Found]:
    """Yield what contradicts itself in a loader of a data set with an index; no worker process is started.

    `form` divides a sample, and a batch, into inputs and target.
    The generators of the loader are put back; the global random states are left as the last read has left them. A set
    whose samples take more than a quarter of a second to read is not read, and none for more than ten seconds in all,
    which is added to `gaps`.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    with preserve_generators(find_read_generators(loader)):
        is_fast = _is_fast(loader)
        if not is_fast:
            gaps.append(f"the samples of the data set: one takes over {_MAX_READING_S:g} s to read, or cannot be read")
        with limit_reading(_MAX_ALL_READING_S):
            for judge in (_judge_sampler, *(_READING if is_fast else ())):
                try:
                    yield from judge(loader, form)
                except OutOfReadingTimeError:
                    gaps.append(
                        f"some relations of the data set: its samples took over {_MAX_ALL_READING_S:g} s to read"
                    )
                    return
                except Exception:
                    logger.debug("a relation of the loader does not apply to its samples", exc_info=True)


def _is_fast(loader: DataLoader[Any]) -> bool:
    started = time.perf_counter()
    try:
        read(loader, 0, SEEDS[0])
    except Exception:  # noqa: BLE001 - the data set is the user's
        return False
    return time.perf_counter() - started < _MAX_READING_S


def _judge_sampler(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """An epoch draws from the whole set: a weight for each sample, and not the same few again and again."""
    size, sampler = len(loader.dataset), loader.sampler  # type: ignore[arg-type]
    if isinstance(sampler, WeightedRandomSampler) and len(sampler.weights) != size:
        yield empty_loader.with_fault(
            f"the sampler has {len(sampler.weights)} weights for {size} samples: it draws only the first ones",
            causes=("data.sampling", "data.imbalance"),
            measured=f"indices below {len(sampler.weights)}",
            expected="a weight for each sample",
            action="give the weight of each sample's class: weights[labels]",
        )
        return
    sources = (loader.dataset, getattr(sampler, "data_source", None))  # not copied: they may fill the memory
    drawn = list(itertools.islice(copy.deepcopy(sampler, {id(source): source for source in sources}), _MAX_DRAWN))
    chosen = int((sampler.weights > 0).sum()) if isinstance(sampler, WeightedRandomSampler) else size
    if len(drawn) >= _MIN_DRAWN and len(set(drawn)) < _MIN_DISTINCT * min(len(drawn), chosen):
        yield empty_loader.with_fault(
            f"an epoch draws {len(set(drawn))} of {size} samples, again and again",
            severity="error" if isinstance(sampler, _TORCHS) else "warning",  # a user's own may be a curriculum
            causes=("data.sampling",),
            measured=f"{len(drawn)} draws",
            expected="draws from the whole data set",
            action="look at the indices that the sampler yields",
        )


def _judge_sampled_classes(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Weights of samples that balance as many groups as there are classes balance the classes.

    Such weights, times how often each occurs, are one number.
    """
    sampler, size = loader.sampler, len(loader.dataset)  # type: ignore[arg-type]
    if not isinstance(sampler, WeightedRandomSampler) or len(sampler.weights) != size:
        return
    values, groups, counts = sampler.weights.double().unique(return_inverse=True, return_counts=True)
    balance = values * counts
    if not 2 < len(values) <= _MAX_CLASSES or float(balance.max()) > _MAX_BALANCE * float(balance.min()):
        return
    labels, started = dict[int, int](), compute_seconds()
    for index in list_indices(loader, _NUM_WEIGHED):
        label = _read_label(loader, form, index)
        if label is None or compute_seconds() - started > _MAX_WEIGHING_S:
            break
        labels[index] = label
    classes = sorted(set(labels.values()))
    table = torch.zeros(len(values), len(classes), dtype=torch.float64)
    for index, label in labels.items():
        table[groups[index], classes.index(label)] += 1
    expected = table.sum(dim=1, keepdim=True) * table.sum(dim=0) / max(1, len(labels))
    surprise = float(((table - expected).square() / expected.clamp(min=1e-9)).sum())
    degrees = (len(values) - 1) * (len(classes) - 1)
    if len(classes) != len(values) or len(labels) < _MIN_WEIGHED or not _is_like_classes(counts, table):
        return  # of groups that are no classes, such as the places where samples come from
    if surprise < degrees + 3 * (2 * degrees) ** 0.5:
        yield empty_loader.with_fault(
            f"the sampler's weights are {len(values)} numbers, as of classes, and have nothing to do with the labels",
            severity="warning",
            causes=("data.pairing", "data.sampling", "data.imbalance"),
            measured=f"chi squared {surprise:.1f} of weights and labels of {len(labels)} samples; {degrees} by chance",
            expected="one weight for all samples of a class",
            action="take the labels of the samples in the order of the set that is loaded, also of a Subset: "
            "labels[subset.indices]",
        )


def _is_like_classes(counts: Tensor, table: Tensor) -> bool:
    """Return True if groups of samples are as large as the classes of those that were read (groups, classes)."""
    shares = [(sizes / sizes.sum()).sort().values for sizes in (counts.double(), table.sum(dim=0))]
    return float((shares[0] - shares[1]).abs().max()) < _MAX_OTHER_SHARE


def _judge_reads(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Reading an item leaves what is stored as it is: with the same random numbers it is the same again."""
    generators = find_read_generators(loader)
    for index in list_indices(loader, _NUM_ITEMS):
        read(loader, index, SEEDS[0])  # the first read may fill a cache
        stored, reads = _mark_stored(loader.dataset), []
        for _ in range(3):
            with preserve_generators(generators):
                reads.append(to_bytes(read(loader, index, SEEDS[0])))
        after = _mark_stored(loader.dataset)
        changed = [path for path, mark in stored.items() if after.get(path, mark) != mark]
        if changed and reads[0] != reads[1] and reads[1] != reads[2]:
            yield data_mutation.with_fault(
                f"reading a sample changes what the data set stores: '{changed[0]}'",
                causes=("data.item_mutation",),
                measured=f"three reads of sample {index} with the same random numbers differ",
                expected="equal bits: reading changes nothing that is stored",
                action="copy before editing (`x = x * s`, or clone() first), not `x *= s` on what is stored",
            )
            return


def _mark_stored(dataset: Any) -> dict[str, Any]:
    """Mark the stored tensors by their versions, and arrays by their bytes, up to 16 MiB in all."""
    marks: dict[str, Any] = {}
    for path, tensor in iter_reachable(dataset, Tensor):
        marks[path] = tensor._version
    bytes_left = _MAX_STORED
    for path, array in iter_reachable(dataset, np.ndarray):
        if array.nbytes <= bytes_left:
            bytes_left -= array.nbytes
            marks[path] = hash(array.tobytes())
    return marks


def _judge_reseeding(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Reading an item does not set a global generator: what follows depends on the state before."""
    followed: dict[str, set[Any]] = {}
    if len(loader.dataset) < 2:  # type: ignore[arg-type]
        return  # a seed that depends on the index
    for index, seed in itertools.product(list_indices(loader, 3), SEEDS):
        read(loader, index, seed)
        for name, draw in _GENERATORS.items():
            followed.setdefault(name, set()).add(draw())
    reset = [name for name, draws in followed.items() if len(draws) == 1]
    if reset:
        yield own_generator.with_fault(
            f"reading a sample seeds the global generator of {reset[0]}: each sample gets the same random numbers",
            causes=("data.duplicate_randomness",),
            measured="after reads from two seeds, and of several samples, the next number is the same",
            expected="other random numbers for each sample and epoch",
            action="seed once, at the start of the program, not in __getitem__ or a transform",
        )


_GENERATORS: dict[str, Callable[[], float]] = {
    "numpy": lambda: float(np.random.random_sample()),
    "torch": lambda: float(torch.rand(())),
    "random": lambda: random.random(),
}


def _judge_pairs(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Labels move with their rows of points, and labels of maps are not interpolated."""
    num_common = num_conflicts = 0
    for index in list_indices(loader, 3):
        with_tape: list[Any] = []
        items = [Item(*form.split(_read_taped(loader, index, seed, with_tape))) for seed in range(_NUM_READS)]
        derived = {id(tensor) for tensor in with_tape if not tensor.is_floating_point()}
        if any(id(target) in derived for _, target in items):
            yield label_range.with_fault(
                "labels are interpolated: between two classes there are pixels of a third",
                causes=("data.target_encoding", "data.label_mapping"),
                measured="the integer target of a sample comes from an interpolation of integers that is not 'nearest'",
                expected="labels that occur in the label map",
                action="resize label maps with mode='nearest'",
            )
            return
        for first, second in itertools.pairwise(items):
            common, conflicts = _compare_rows(first, second)
            num_common, num_conflicts = num_common + common, num_conflicts + conflicts
    if num_common >= _MIN_COMMON and num_conflicts > _MAX_CONFLICTS * num_common:
        yield augmentation_mismatch.with_fault(
            "labels do not stay with their points: the same point has another label when it is read again",
            causes=("data.pairing", "data.augment_target_mismatch", "data.sampling"),
            measured=f"{num_conflicts} of {num_common} points that two reads of a sample share",
            expected="the label of a point is the same in each read",
            action="choose and order points and labels by the same indices",
        )


def _judge_calls(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Anchors that a data set assigns to boxes are compared with corners."""
    yield from judge_reads(partial(read, loader, index, SEEDS[0]) for index in list_indices(loader, _NUM_READS))


def _read_taped(loader: DataLoader[Any], index: int, seed: int, interpolated: list[Any]) -> Any:
    """Read an item; `interpolated` gets the tensors that follow from an interpolation of few different integers."""

    def observe(call: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        name, known = getattr(function, "__name__", ""), set(map(id, interpolated))
        is_derived = any(id(tensor) in known for _, tensor in tree_leaves(args))
        is_start = name == "interpolate" and kwargs.get("mode", "nearest") in _MODES and _holds_classes(args[0])
        if isinstance(result, Tensor) and (is_derived or is_start):
            interpolated.append(result)

    with instrument.record({}, functions=observe):
        return read(loader, index, seed)


def _holds_classes(values: Tensor) -> bool:
    distinct = values.unique()
    return 3 <= len(distinct) <= _MAX_CLASSES and bool((distinct == distinct.round()).all())


def _compare_rows(first: Item, second: Item) -> tuple[int, int]:
    """Count the rows of inputs that two reads share, and those among them with another label.

    Labels that are numbered anew are the same: each stands for one of the other read. Those of reads that differ in
    what is no row, such as a chosen point, may depend on it.
    """
    labels = [dict(_list_rows(item)) for item in (first, second)]
    common = labels[0].keys() & labels[1].keys()
    pairs = [(labels[0][row], labels[1][row]) for row in common]
    pairs = [(one, other) for one, other in pairs if min(one, other) >= 0 and _IGNORED not in (one, other)]
    is_renumbered = len(set(pairs)) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
    others = [
        to_bytes([leaf for leaf in list_leaves(item.inputs) if not _is_row(leaf, item)]) for item in (first, second)
    ]
    if is_renumbered or others[0] != others[1]:
        return len(common), 0
    return len(common), sum(one != other for one, other in pairs)


def _is_row(leaf: Any, item: Item) -> bool:
    """Return True for inputs with an entry for each label."""
    leaf, labels = torch.as_tensor(leaf), torch.as_tensor(list_leaves(item.target)[0])
    return leaf.ndim > 0 and labels.ndim > 0 and len(leaf) == len(labels)


def _list_rows(item: Item) -> Iterator[tuple[bytes, int]]:
    """Yield the bits of each row of the inputs that is there once, and its label."""
    points, labels = (torch.as_tensor(leaves[0]) if (leaves := list_leaves(part)) else None for part in item)
    if points is None or labels is None or points.ndim != 2 or labels.ndim != 1 or len(points) != len(labels):
        return
    if not points.is_floating_point() or labels.is_floating_point():
        return
    columns = [torch.as_tensor(leaf).detach().contiguous() for leaf in list_leaves(item.inputs) if _is_row(leaf, item)]
    rows = [b"".join(column[i].numpy().tobytes() for column in columns) for i in range(len(labels))]
    counts: dict[bytes, int] = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    for row, label in zip(rows, labels.tolist(), strict=True):
        if counts[row] == 1:
            yield row, int(label)


def _judge_collate(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """A batch holds the same pairs of inputs and targets in any order of its samples."""
    collate = loader.collate_fn
    if collate is None or loader.batch_size is None:
        return
    samples = [read(loader, index, SEEDS[0]) for index in list_indices(loader, 2 * _NUM_ITEMS)]
    pairs = []
    for order, seed in ((samples, 0), (samples, 1), (samples[::-1], 1), ([*samples[5:], *samples[:5]], 1)):
        seed_globally(SEEDS[seed])
        pairs.append(_list_pairs(Item(*form.split(collate(copy.deepcopy(order)))), len(samples)))
    if pairs[0] != pairs[1]:
        return  # targets that are drawn where samples are collated, such as negatives
    common = set.intersection(*(set(each) for each in pairs))
    exchanged = [row for row in common if len({tuple(each[row]) for each in pairs}) > 1]
    if exchanged:
        yield exchanged_rows.with_fault(
            "collate pairs inputs with targets of other samples",
            causes=("data.pairing", "data.ordering"),
            measured=f"{len(exchanged)} of {len(common)} samples have another target if the samples of a batch come in "
            "another order",
            expected="the target of a sample, in any order of the batch",
            action="sort or choose the samples before inputs and targets are taken apart",
        )


def _list_pairs(batch: Item, size: int) -> dict[tuple[bytes, ...], list[bytes]]:
    """Map the bits of each sample's inputs to those of its target; samples with equal inputs are left out."""
    rows: dict[tuple[bytes, ...], list[bytes]] = {}
    repeated = set()
    parts = [[torch.as_tensor(leaf) for leaf in list_leaves(part)] for part in batch]
    if not all(parts) or any(not leaf.ndim or len(leaf) != size for part in parts for leaf in part):
        return {}
    targets = [leaf.reshape(size, -1) for leaf in parts[1]]
    targets = [leaf[:, ~(leaf == torch.arange(size)[:, None]).all(dim=0)] for leaf in targets]  # numbers of the rows
    for index in range(size):
        key = tuple(to_bytes([leaf[index] for leaf in parts[0]]))
        repeated |= {key} & rows.keys()
        rows[key] = to_bytes([leaf[index] for leaf in targets])
    return {key: value for key, value in rows.items() if key not in repeated}


def _judge_order(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Samples that are read in the order of the set are not sorted by their class."""
    is_batched = loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler
    if not isinstance(loader.sampler, SequentialSampler) or is_batched:
        return  # a sampler of batches has an order of its own
    labels = [_read_label(loader, form, index) for index in list_indices(loader, _NUM_LABELS)]
    distinct = set(labels)
    if None in distinct or len(labels) < _NUM_LABELS or not 2 < len(distinct) <= _NUM_LABELS // 4:
        return
    if _is_monotonic(labels):
        yield report(
            "same-label",
            "the data set is sorted by class and not shuffled: batches hold one class or two",
            causes=("data.ordering", "data.sampling"),
            measured=f"the labels of {len(labels)} samples, in the order in which they are read, rise "
            f"through {len(distinct)} classes",
            action="give the training's loader shuffle=True",
        )


def _read_label(loader: DataLoader[Any], form: BatchForm, index: int) -> int | None:
    _, label = form.split(read(loader, index, SEEDS[0]))
    is_number = isinstance(label, int | np.integer) or (isinstance(label, Tensor) and label.numel() == 1)
    return int(label) if is_number and float(label) == int(label) else None


def _is_monotonic(labels: Sequence[Any]) -> bool:
    return list(labels) in (sorted(labels), sorted(labels, reverse=True))


_READING = (
    _judge_sampled_classes,
    _judge_reads,
    _judge_reseeding,
    _judge_pairs,
    _judge_calls,
    judge_flips,
    judge_padded,
    _judge_collate,
    _judge_order,
)
"""Relations that read samples."""
