"""Reads of the user's data sets with chosen random numbers: what repeats, what changes, how batches are drawn."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data
from torch.utils.data import Subset
from torch.utils.data._utils import worker as torch_worker

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.source import SEED, Source, list_leaves, to_bytes
from sightline.doctor.forms.form import Batch
from sightline.doctor.objects import iter_reachable, preserve_generators
from sightline.doctor.rates import sum_binomial
from sightline.doctor.subject import Subject
from sightline.instrument import record
from sightline.instrument.random_state import seed_all

_NUM_ITEMS, _NUM_READS, _NUM_LABELS, _NUM_COLLATED, _MAX_DRAWN = 6, 8, 400, 12, 20_000
_MAX_STORED, _MIN_DRAWN, _MAX_UNEVEN = 2**24, 8, 1.01
TORCHS = (torch_data.SequentialSampler, torch_data.RandomSampler, torch_data.WeightedRandomSampler)
"""Samplers of torch that draw samples one by one."""
_MODES = frozenset(("linear", "bilinear", "bicubic", "trilinear", "area"))


class Reads(NamedTuple):
    """Reads of one sample: three with the same random numbers, and some with others.

    `changed` names what is stored in the data set and has changed between the second and the last equal read.
    """

    sample: int
    same: list[Batch]
    others: list[Batch]
    changed: list[str]


@measure()
def reads(source: Source) -> list[Reads]:
    """Read a few samples again and again."""
    generators, result = source.generators(), []
    for index in source.take(source.spread(_NUM_ITEMS), least=2):
        source.read(index, SEED)  # the first read may fill a cache
        before, same = _mark_stored(source.loader.dataset), []
        for _ in range(3):
            with preserve_generators(generators):
                same.append(copy.deepcopy(source.read(index, SEED)))
        after = _mark_stored(source.loader.dataset)
        changed = [path for path, mark in before.items() if after.get(path, mark) != mark]
        with preserve_generators(generators):
            others = [copy.deepcopy(source.read(index, SEED + 1 + seed)) for seed in range(_NUM_READS)]
        result.append(Reads(index, same, others, changed))
    return result


def _mark_stored(dataset: Any) -> dict[str, Any]:
    """Mark the stored tensors by their versions, and arrays by their bytes, up to 16 MiB in all."""
    marks: dict[str, Any] = {path: tensor._version for path, tensor in iter_reachable(dataset, Tensor)}
    bytes_left = _MAX_STORED
    for path, array in iter_reachable(dataset, np.ndarray):
        if array.nbytes <= bytes_left and array.dtype.kind != "O":
            bytes_left -= array.nbytes
            marks[path] = hash(array.tobytes())
    return marks


@measure()
def numbers_after_reads(source: Source) -> dict[str, set[Any]]:
    """Draw a number of each global generator after reads of three samples, from two seeds each."""
    if source.size < 3:
        raise LeftOutError("fewer than three samples")
    followed: dict[str, set[Any]] = {}
    with preserve_generators(source.generators()):
        for index, seed in itertools.product(source.spread(3), (SEED, SEED + 1)):
            source.read(index, seed)
            for name, number in draw_numbers().items():
                followed.setdefault(name, set()).add(number)
    return followed


def draw_numbers() -> dict[str, float]:
    """Draw a number of each global generator."""
    return {"random": random.random(), "numpy": float(np.random.random_sample()), "torch": float(torch.rand(()))}


class WorkerSeeds(NamedTuple):
    """Numbers that follow `worker_init_fn` after two seeds, and those generators whose numbers the samples read."""

    numbers: list[dict[str, float]]
    is_read: set[str]


@measure()
def worker_seeds(source: Source) -> WorkerSeeds:
    """Call `worker_init_fn` as the workers of two epochs do: after two seeds."""
    loader = source.loader
    prepare = getattr(loader, "worker_init_fn", None)
    if prepare is None or not loader.num_workers or loader.persistent_workers:
        raise NotApplicableError("no worker_init_fn called each epoch")
    numbers, before = [], torch_worker._worker_info
    try:
        for seed in (SEED, SEED + 1):
            known = {"id": 0, "num_workers": loader.num_workers, "seed": seed, "dataset": copy.copy(loader.dataset)}
            torch_worker._worker_info = torch_worker.WorkerInfo(**known)
            seed_all(seed)
            prepare(0)
            numbers.append(draw_numbers())
    finally:
        torch_worker._worker_info = before
    is_read = set()
    with preserve_generators(source.generators()):
        for index in source.spread(3):
            seed_all(SEED)
            expected = draw_numbers()
            source.read(index, SEED)
            is_read |= {name for name, number in draw_numbers().items() if number != expected[name]}
    return WorkerSeeds(numbers, is_read)


@measure()
def epochs(source: Source) -> list[list[int]]:
    """List the indices that copies of the sampler draw in two epochs, from two seeds."""
    sampler = getattr(source.loader, "sampler", None)
    if sampler is None or getattr(source.loader, "batch_size", None) is None:
        raise NotApplicableError("no sampler of samples")
    parts = (source.loader.dataset, getattr(sampler, "data_source", None))
    drawn, copied = [], copy.deepcopy(sampler, {id(part): part for part in parts})
    for seed in (SEED, SEED + 1):
        seed_all(seed)
        drawn.append([int(index) for index in itertools.islice(copied, _MAX_DRAWN)])
    return drawn


class RepeatedOrder(NamedTuple):
    """Number of indices, or of batches of a loop, that come in the order in which they came so many updates ago.

    The indices are of two epochs of a sampler that shuffles, and 0 of one that draws them in another order.
    """

    number: int
    updates: int = 0


@measure()
def repeated_order(source: Source, epochs: list[list[int]]) -> RepeatedOrder:
    """Compare the order of two epochs of a sampler that shuffles; one of torch does it well."""
    first, second = epochs
    if hasattr(source.loader.sampler, "set_epoch") or len(first) < _MIN_DRAWN:
        raise NotApplicableError("a sampler that is told its epoch")
    is_sorted = first in (sorted(first), sorted(first, reverse=True)) or isinstance(source.loader.sampler, TORCHS)
    is_block = sum(b - a == 1 for a, b in itertools.pairwise(first)) > len(first) // 2
    return RepeatedOrder(len(first) if first == second and not is_sorted and not is_block else 0)


def read_labels(source: Source) -> dict[int, int]:
    """Read the classes of samples. Raises NotApplicableError for targets that are no class.

    They are read in a drawn order: of a set that is slow, those that were read are of all of its parts.
    """
    labels: dict[int, int] = {}
    with preserve_generators(source.generators()):
        for index in source.take(source.draw(_NUM_LABELS)):
            if (label := source.peek(index).label) is None:
                raise NotApplicableError("no class for each sample")
            labels[index] = label
    return labels


@measure()
def labels(source: Source) -> dict[int, int]:
    """Classes of samples of the training's set, by their index."""
    return read_labels(source)


class ReadClasses(NamedTuple):
    """Classes of samples in the order in which an epoch reads them, or those of batches in a row of one class each."""

    classes: list[float]
    are_of_batches: bool


@measure()
def read_classes(epochs: list[list[int]], labels: dict[int, int]) -> ReadClasses:
    """List the classes in the order of the set; none, where an epoch reads it in another order."""
    is_in_order = epochs[0] == sorted(epochs[0])
    return ReadClasses([labels[index] for index in sorted(labels)] if is_in_order else [], are_of_batches=False)


@measure()
def evaluation_labels(evaluation_source: Source) -> dict[int, int]:
    """Classes of samples of the evaluation's set, by their index."""
    return read_labels(evaluation_source)


@measure()
def collations(source: Source) -> list[dict[bytes, bytes]]:
    """Collate the same samples twice in one order, and in two others: the target of each sample's inputs."""
    collate = getattr(source.loader, "collate_fn", None)
    if collate is None or getattr(source.loader, "batch_size", None) is None:
        raise NotApplicableError("no collate of samples")
    tables = []
    with preserve_generators(source.generators()):
        samples = source.list_samples(_NUM_COLLATED)
        for order, seed in ((samples, 0), (samples, 1), (samples[::-1], 1), ([*samples[5:], *samples[:5]], 1)):
            seed_all(SEED + seed)
            batch = source.form.split(collate(copy.deepcopy(order)))
            tables.append(_list_pairs(batch, len(samples)))
    return tables


def _list_pairs(batch: Batch, size: int) -> dict[bytes, bytes]:
    """Map the bits of each sample's inputs to those of its target; samples with equal inputs are left out."""
    inputs, targets = map(list_leaves, batch)
    if not inputs or not targets or any(not t.ndim or len(t) != size for t in (*inputs, *targets)):
        raise NotApplicableError("no row of a batch for each sample")
    targets = [t.reshape(size, -1) for t in targets if t.ndim > 1 or t.is_floating_point() or len(t.unique()) < size]
    targets = [t[:, ~(t == torch.arange(size)[:, None]).all(dim=0)] for t in targets]  # numbers of rows, or of samples
    keys = [to_bytes([t[i] for t in inputs]) for i in range(size)]
    return {key: to_bytes([t[i] for t in targets]) for i, key in enumerate(keys) if keys.count(key) == 1}


class Padded(NamedTuple):
    """Target of samples of several lengths: its places beyond their ends, and those with a gradient."""

    target: Tensor
    is_padded: Tensor
    is_counted: Tensor


@measure(passes=1)
def padded(source: Source, subject: Subject) -> Padded:
    """Collate samples of several lengths; find the places that no sample has filled, and that the loss counts."""
    if source.by_lists:
        raise NotApplicableError("no collate of samples")
    with preserve_generators(source.generators()):
        samples = source.list_samples(_NUM_COLLATED)
        leaves = [list_leaves(source.divide(sample).target) for sample in samples]
        batch = source.form.split(source.loader.collate_fn(copy.deepcopy(samples)))
    targets = [tensor for _, tensor in tree_leaves(batch.target)]
    if len(targets) != 1 or any(len(each) != 1 or each[0].ndim != 1 for each in leaves):
        raise NotApplicableError("no targets of a length of their own")
    (target,), lengths = targets, [len(each[0]) for each in leaves]
    fits = target.ndim == 2 and len(target) == len(lengths) and target.shape[1] >= max(lengths)
    if not fits or len(set(lengths)) == 1:
        raise NotApplicableError("no targets of a length of their own")
    if any(not torch.equal(target[row, :n].cpu(), leaves[row][0]) for row, n in enumerate(lengths)):
        raise NotApplicableError("samples that collate edits")
    is_padded = torch.arange(target.shape[1]) >= torch.tensor(lengths)[:, None]
    return Padded(target, is_padded, _list_counted(subject, batch, target))


def _list_counted(subject: Subject, batch: Batch, target: Tensor) -> Tensor:
    """Return the places of a sequence of targets at whose outputs the loss has a gradient."""
    device = next((parameter.device for parameter in subject.model.parameters()), torch.device("cpu"))
    passed = subject.run(subject.copy("train"), Batch(*tree_map(tuple(batch), lambda _, t: t.to(device))))
    if not isinstance(passed.outputs, Tensor) or not passed.outputs.requires_grad:
        raise NotApplicableError("outputs of another form than one tensor")
    (gradient,) = torch.autograd.grad(passed.value, [passed.outputs])
    axis = 1 if gradient.ndim == 3 and gradient.shape[2:] == target.shape[1:] else gradient.ndim - 1
    at_places = gradient.abs().sum(dim=axis) if gradient.ndim == 3 else gradient.abs()
    if at_places.shape != target.shape:
        raise NotApplicableError("outputs that are no sequence")
    return (at_places > 0).cpu()


@measure()
def interpolated(source: Source) -> list[int]:
    """List samples whose integer target comes from an interpolation of whole numbers that is not nearest."""
    found, samples = [], source.spread(3)
    with preserve_generators(source.generators()):
        for index in samples:
            known: list[Any] = []

            def observe(call: Any, function: Any, args: Any, kwargs: Any, result: Any, known: Any = known) -> None:
                is_start = getattr(function, "__name__", "") == "interpolate" and kwargs.get("mode") in _MODES
                is_derived = any(tensor is own for _, tensor in tree_leaves(args) for own in known)
                if isinstance(result, Tensor) and (is_derived or (is_start and _holds_classes(args[0]))):
                    known.append(result)

            with record({}, functions=observe):
                target = source.read(index, SEED).target
            if any(tensor is own and not own.is_floating_point() for _, tensor in tree_leaves(target) for own in known):
                found.append(index)
    return found


def _holds_classes(values: Tensor) -> bool:
    distinct = values.unique()
    return 3 <= len(distinct) <= 64 and bool((distinct == distinct.round()).all())


class Split(NamedTuple):
    """Samples that both parts hold: by their index in a common set, or by the bits of their inputs.

    `repeated` are those among them that repeat in training, too; `num_repeats` all samples of training that were there
    before. Inputs of whole numbers, as words are, may be equal by chance (`is_coarse`).
    """

    kind: str
    common: int
    training: int
    evaluation: int
    repeated: int
    num_repeats: int = 0
    is_coarse: bool = False

    @property
    def chance(self) -> float:
        """Probability of so many common samples, or more, if all equal pairs are spread over both parts by chance."""
        share = self.evaluation / max(self.evaluation + self.training / 2, 1)
        return 1 - sum_binomial(self.common + self.num_repeats, self.common - 1, share)


@measure()
def split(source: Source, evaluation_source: Source) -> Split:
    """Compare the samples of the training's set with those of the evaluation's."""
    data = source.loader.dataset, evaluation_source.loader.dataset
    if all(isinstance(each, Subset) for each in data) and data[0].dataset is data[1].dataset:
        first, second = (set(map(int, each.indices)) for each in data)
        return Split("indices of one set", len(first & second), len(first), len(second), 0)
    keys = []
    for each in (source, evaluation_source):
        with preserve_generators(each.generators()):
            peeks = [each.peek(index) for index in each.take(range(min(each.size, each.most)))]
        if peeks and all(peek.few for peek in peeks) and _are_on_grid([peek.few for peek in peeks]):
            raise NotApplicableError("inputs that are places of a grid")
        keys.append([peek.key for peek in peeks])
    first, second = set(keys[0]), set(keys[1])
    common = first & second
    repeated = sum(keys[0].count(key) > 1 for key in itertools.islice(common, 50))
    leaves = list_leaves(source.read(0, SEED).inputs)
    is_coarse = not any(leaf.is_floating_point() for leaf in leaves)
    sizes = len(keys[0]), len(keys[1])
    return Split("inputs of equal bits", len(common), *sizes, repeated, sizes[0] - len(first), is_coarse)


class SharedSet(NamedTuple):
    """Set that training and evaluation read parts of: its class, and the names of its transforms."""

    name: str
    transforms: list[str]


@measure()
def shared_set(source: Source, evaluation_source: Source) -> SharedSet:
    """Find the object behind both parts that has transforms."""
    return find_shared_set(source.loader.dataset, evaluation_source.loader.dataset)


def find_shared_set(one: Any, other: Any) -> SharedSet:
    """Find one object behind two sets, as `random_split` leaves it. Raises NotApplicableError without a transform."""
    if not (isinstance(one, Subset) and isinstance(other, Subset) and one.dataset is other.dataset):
        raise NotApplicableError("training and evaluation read sets of their own")
    names = [name for name, value in vars(one.dataset).items() if "transform" in name and callable(value)]
    if not names:
        raise NotApplicableError("the set that both parts read has no transform")
    return SharedSet(type(one.dataset).__name__, names)


def _are_on_grid(rows: Sequence[Sequence[float]]) -> bool:
    """Return True for rows of few numbers each of which takes values at equal distances, or of equal ratios.

    Places at which a function is fitted may be those at which it is evaluated.
    """
    for column in zip(*rows, strict=False):
        values = np.unique(column)
        scales = [values, np.log(values)] if len(values) and values[0] > 0 else [values]
        steps = [np.diff(scale) for scale in scales]
        if len(values) > 2 and not any(each.max() < _MAX_UNEVEN * each.min() for each in steps):
            return False
    return True


@measure()
def evaluation_remainder(evaluation_source: Source) -> Mapping[str, int]:
    """Count the samples of the evaluation's set, and those that its loader leaves out as a remainder."""
    return count_remainder(evaluation_source.loader)


def count_remainder(loader: Any) -> Mapping[str, int]:
    """Count the samples that a loader draws, and those that it leaves out as a remainder."""
    if getattr(loader, "batch_size", None) is None or not hasattr(loader.sampler, "__len__"):
        raise NotApplicableError("no batches of a fixed size")
    drawn = len(loader.sampler)
    return {"samples": drawn, "left_out": drawn % loader.batch_size if loader.drop_last else 0}
