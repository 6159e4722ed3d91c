"""Rules of what is read: samples, their order and pairs, batches, splits, and evaluation against training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence.data.reading import (
    TORCHS,
    Padded,
    ReadClasses,
    Reads,
    RepeatedOrder,
    SharedSet,
    Source,
    Split,
    WorkerSeeds,
    list_leaves,
    to_bytes,
)
from sightline.doctor.evidence.data.statistics import Confusion, Gap, Seams
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.forms.form import Batch
from sightline.doctor.rules import rule

_MIN_DRAWN, _MIN_DISTINCT, _MIN_LABELS, _MIN_SHARED_ROWS = 200, 0.05, 48, 8
_MAX_CHANCE = 1e-4
_MAX_RATIO = 1.8
"""Ratio of two spreads beyond which scalings differ: numbers of -1 to 1 beside those of 0 to 1 have one of about 2."""
_MIN_REPEATED = 6
"""Different batches in a row that came in this order before: a shuffled set never gives so many."""


@rule(
    "data-mutation",
    "error",
    "data.item_mutation",
    holds="equal bits: reading changes nothing that is stored",
    do="copy before editing (`x = x * s`, or clone() first), not `x *= s` on what is stored",
)
def data_mutation(reads: list[Reads]) -> Iterator[Fault]:
    """Compare reads of a sample with equal random numbers, and what is stored before and after."""
    for read in reads:
        bits = [to_bytes(tuple(each)) for each in read.same]
        if read.changed and bits[0] != bits[1] and bits[1] != bits[2]:
            yield Fault(
                f"reading a sample changes what the data set stores: '{read.changed[0]}'",
                measured=f"three reads of sample {read.sample} with the same random numbers differ",
                where=FindingLocation(sample=read.sample),
            )
            return


@rule(
    "own-generator",
    "error",
    "data.duplicate_randomness",
    holds="other random numbers for each sample and epoch",
    do="seed once, at the start of the program, not in __getitem__ or a transform",
)
def own_generator(numbers_after_reads: dict[str, set[float]]) -> Fault | None:
    """Compare the numbers that follow reads of several samples after two seeds."""
    reset = [name for name, numbers in numbers_after_reads.items() if len(numbers) == 1]
    if not reset:
        return None
    return Fault(
        f"reading a sample seeds the global generator of {reset[0]}: each sample gets the same random numbers",
        measured="after reads of three samples from two seeds each, the next number is the same",
    )


@rule(
    "worker-seeds",
    "error",
    "data.duplicate_randomness",
    holds="other random numbers in each epoch",
    do="let worker_init_fn use torch.initial_seed(), which differs in each epoch, or leave it out",
)
def worker_seed(worker_seeds: WorkerSeeds) -> Iterator[Fault]:
    """Compare the numbers after worker_init_fn from two seeds, of generators that the samples read."""
    first, second = worker_seeds.numbers
    for name in sorted(worker_seeds.is_read):
        if first[name] == second[name]:
            yield Fault(
                f"worker_init_fn seeds {name} alike in each epoch: its samples get the same random numbers again",
                measured=f"after two seeds the next number of {name} is {first[name]:.6f} both times",
            )
            return
    if not worker_seeds.is_read:
        raise NotApplicableError("samples without random numbers")


@rule(
    "empty-loader",
    "error",
    "data.sampling data.imbalance",
    holds="draws from the whole data set",
    do="give the weight of each sample's class, weights[labels]; look at the indices that the sampler yields",
)
def drawn_samples(source: Source, epochs: list[list[int]]) -> Fault | None:
    """Compare what an epoch draws with the size of the set."""
    sampler, size, drawn = source.loader.sampler, source.size, epochs[0]
    if isinstance(sampler, WeightedRandomSampler) and len(sampler.weights) != size:
        return Fault(
            f"the sampler has {len(sampler.weights)} weights for {size} samples: it draws only the first ones",
            measured=f"indices below {len(sampler.weights)}",
        )
    chosen = int((sampler.weights > 0).sum()) if isinstance(sampler, WeightedRandomSampler) else size
    if len(drawn) >= _MIN_DRAWN and len(set(drawn)) < _MIN_DISTINCT * min(len(drawn), chosen):
        return Fault(
            f"an epoch draws {len(set(drawn))} of {size} samples, again and again",
            measured=f"{len(drawn)} draws",
            severity="error" if isinstance(sampler, TORCHS) else "warning",  # a user's own may be a curriculum
        )
    return None


@rule(
    "same-order",
    "warning",
    "data.ordering dist.sampler data.sampling data.duplicate_randomness",
    holds="another order in each epoch",
    do="shuffle; call sampler.set_epoch(epoch) at the start of each epoch, and make its generator once, not in each "
    "__iter__; declare it with declared=('same-order',) if intended",
)
def same_order(repeated_order: RepeatedOrder) -> Fault | None:
    """Ask whether samples, or batches, come in an order in which they came before."""
    number, updates = repeated_order
    if number < _MIN_REPEATED:
        return None
    came = f"the batches come in the order of {updates} updates ago"
    where = "batches in a row that had the same bits" if updates else "indices of two epochs with other seeds"
    return Fault(
        f"{came if updates else 'the sampler shuffles, and draws the same order'}: every epoch has the same order",
        measured=f"{number} {where}, in the same order",
    )


@rule(
    "sampler-weights",
    "warning",
    "data.pairing data.sampling data.imbalance",
    holds="one weight for all samples of a class",
    do="take the labels in the order of the set that is loaded, also of a Subset: labels[subset.indices]",
    is_statistical=True,
)
def sampler_weights(source: Source, labels: dict[int, int]) -> Fault | None:
    """Weights that balance as many groups as there are classes have to do with the classes."""
    sampler = source.loader.sampler
    if not isinstance(sampler, WeightedRandomSampler) or len(sampler.weights) != source.size:
        raise NotApplicableError("no weight for each sample")
    values, groups, counts = sampler.weights.double().unique(return_inverse=True, return_counts=True)
    classes, balance = sorted(set(labels.values())), values * counts
    is_alike = 3 <= len(values) == len(classes) and float(balance.max()) <= 1.5 * float(balance.min())
    table = torch.zeros(len(values), len(classes), dtype=torch.float64)
    for index, label in labels.items():
        table[groups[index], classes.index(label)] += 1
    sizes = [(part / part.sum()).sort().values for part in (counts.double(), table.sum(dim=0))]
    if not is_alike or len(labels) < 2 * _MIN_LABELS or float((sizes[0] - sizes[1]).abs().max()) > 0.1:
        raise NotApplicableError("weights of no classes")
    expected = table.sum(dim=1, keepdim=True) * table.sum(dim=0) / len(labels)
    surprise = float(((table - expected).square() / expected.clamp(min=1e-9)).sum())
    degrees = (len(values) - 1) * (len(classes) - 1)
    if surprise >= degrees + 3 * (2 * degrees) ** 0.5:
        return None
    return Fault(
        f"the sampler's weights are {len(values)} numbers, as of classes, and have nothing to do with the labels",
        measured=f"chi squared {surprise:.1f} of weights and labels of {len(labels)} samples; {degrees} by chance",
    )


@rule(
    "same-label",
    "warning",
    "data.ordering data.sampling",
    holds="batches of several classes",
    do="look at how labels are read, and give the training's loader shuffle=True",
    is_statistical=True,
)
def sorted_labels(read_classes: ReadClasses) -> Fault | None:
    """Ask whether samples are read sorted by their class, or batches have one class each."""
    classes, are_of_batches = read_classes
    distinct = len(set(classes))
    if are_of_batches:
        return Fault(
            f"all labels of a batch are the same class, at each of {len(classes)} batches",
            measured=f"{distinct} classes in {len(classes)} batches",
            causes=("data.label_mapping", "data.ordering", "data.imbalance"),
        )
    if not classes or classes not in (sorted(classes), sorted(classes, reverse=True)):
        return None
    if len(classes) < _MIN_LABELS or not 2 < distinct <= len(classes) // 4:
        raise LeftOutError("few samples for each class")
    return Fault(
        "the data set is sorted by class and not shuffled: batches hold one class or two",
        measured=f"the labels of {len(classes)} samples, in the order in which they are read, rise through {distinct} "
        "classes",
    )


@rule(
    "exchanged-rows",
    "error",
    "data.pairing data.ordering",
    holds="the target of a sample, in any order of the batch",
    do="sort or choose the samples before inputs and targets are taken apart",
)
def exchanged_rows(collations: list[dict[bytes, bytes]]) -> Fault | None:
    """Expect that a batch holds the same pairs of inputs and targets in any order of its samples."""
    if collations[0] != collations[1]:
        raise NotApplicableError("a collate that draws numbers")
    common = set.intersection(*(set(each) for each in collations))
    exchanged = [key for key in common if len({each[key] for each in collations}) > 1]
    if not exchanged:
        return None
    return Fault(
        "collate pairs inputs with targets of other samples",
        measured=f"{len(exchanged)} of {len(common)} samples have another target if the samples of a batch come in "
        "another order",
    )


@rule(
    "augmentation-mismatch",
    "error",
    "data.pairing data.augment_target_mismatch data.sampling",
    holds="the label of a point is the same in each read",
    do="choose and order points and labels by the same indices",
)
def row_labels(reads: list[Reads]) -> Fault | None:
    """Rows that two reads of a sample share have the same label, or labels that are numbered anew."""
    common = conflicts = 0
    for read in reads:
        for first, second in itertools.pairwise(map(_list_rows, read.others)):
            pairs = [(first[row], second[row]) for row in first.keys() & second.keys()]
            renumbered = len(set(pairs)) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
            common += len(pairs)
            conflicts += 0 if renumbered else sum(one != other for one, other in pairs)
    if common < _MIN_SHARED_ROWS:
        raise NotApplicableError("no rows with labels read twice")
    if conflicts <= 0.05 * common:
        return None
    return Fault(
        "labels do not stay with their points: the same point has another label when it is read again",
        measured=f"{conflicts} of {common} points that two reads of a sample share",
    )


def _list_rows(item: Batch) -> dict[bytes, int]:
    """Map the bits of each row of the inputs that is there once to its label; labels that are ignored left out."""
    inputs, targets = map(list_leaves, item)
    if len(inputs) != 1 or len(targets) != 1 or inputs[0].ndim != 2 or targets[0].shape != inputs[0].shape[:1]:
        return {}
    if not inputs[0].is_floating_point() or targets[0].is_floating_point():
        return {}
    rows = [to_bytes(row) for row in inputs[0]]
    once = {
        row
        for row, count in zip(*np.unique(np.array(rows, dtype=object), return_counts=True), strict=True)
        if count == 1
    }
    labels = zip(rows, targets[0].tolist(), strict=True)
    return {row: int(label) for row, label in labels if row in once and 0 <= label != 255}


_TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored left to right": lambda t: t.flip(-1),
    "mirrored top to bottom": lambda t: t.flip(-2),
    "turned by 90°": lambda t: t.rot90(1, (-2, -1)),
    "turned by 180°": lambda t: t.rot90(2, (-2, -1)),
    "turned by 270°": lambda t: t.rot90(3, (-2, -1)),
    "transposed": lambda t: t.transpose(-2, -1),
}


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch",
    holds="a map that is turned as its image is",
    do="draw the augmentation once, and apply it to image and map",
)
def turned_maps(reads: list[Reads]) -> Fault | None:
    """Expect of an image that is read turned, bit for bit, that its map is turned alike, not left as it was."""
    num_turned = 0
    for read in reads:
        for one, other in itertools.permutations(read.others, 2):
            images, maps = zip(_list_maps(one), _list_maps(other), strict=True)
            turns = _find_turns(*images)
            if len(turns) != 1 or not maps[0] or len(maps[0]) != len(maps[1]) or _is_view(images[0], maps[0]):
                continue
            num_turned += 1
            target = _find_turns(*maps) if not _equal(*maps) else ["left as it was"]
            if target and turns[0] not in target and not _equal(_turn(maps[0], turns[0]), maps[1]):
                return Fault(
                    f"an image is {turns[0]}, and its map {target[0]}",
                    measured=f"two reads of sample {read.sample}: equal bits after these turns",
                    where=FindingLocation(sample=read.sample),
                )
    if not num_turned:
        raise NotApplicableError("no image read turned, with maps")
    return None


def _list_maps(item: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """List images of the inputs, and maps of the target that are as large, axes of channels first."""
    inputs = [leaf for leaf in list_leaves(item.inputs) if leaf.ndim in (2, 3) and min(leaf.shape[-2:]) > 4]
    sizes = {frozenset(leaf.shape[-2:]) for leaf in inputs}
    targets = [t for t in list_leaves(item.target) if t.ndim in (2, 3) and frozenset(t.shape[-2:]) in sizes]
    return inputs, targets


def _find_turns(first: list[Tensor], second: list[Tensor]) -> list[str]:
    """List the turns after which the first are the second; none where they are equal."""
    if not first or len(first) != len(second) or _equal(first, second):
        return []
    return [name for name in _TURNS if _equal(_turn(first, name), second)]


def _is_view(images: list[Tensor], maps: list[Tensor]) -> bool:
    """Return True for a target that is the image itself, or this turned: another view of it."""
    return len(images) == len(maps) and (_equal(images, maps) or bool(_find_turns(images, maps)))


def _turn(images: list[Tensor], name: str) -> list[Tensor]:
    return [_TURNS[name](image) for image in images]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@rule(
    "split-overlap",
    "error",
    "data.split",
    holds="no sample in both training and evaluation",
    do="divide the indices once, before the loaders; remove duplicates, also of recordings and subjects",
)
def overlapping_split(split: Split) -> Fault | None:
    """No sample is in both parts; inputs that repeat within training itself are no evidence."""
    if not split.common or split.repeated > 0.2 * min(split.common, 50):
        return None
    if (split.is_coarse or split.num_repeats) and split.chance > _MAX_CHANCE:
        return None
    share = split.common / max(1, split.evaluation)
    if split.common < 3 and share < 0.02:
        return None
    return Fault(
        f"training and evaluation share {split.common} samples",
        measured=f"{split.kind}: {split.common} of {split.evaluation} of evaluation are among {split.training} of "
        "training",
        severity="warning" if share == 1 else None,  # evaluation on all of training may be meant
    )


@rule(
    "shared-transform",
    "note",
    "data.split eval.protocol data.augment_target_mismatch",
    holds="training and evaluation have transforms of their own",
    do="make the set twice, with the transform of each part, and take the same indices of both",
)
def shared_transform(shared_set: SharedSet) -> Fault:
    """Say that parts of one object have one transform: the last that was set holds for both."""
    names = " and ".join(shared_set.transforms)
    return Fault(
        f"training and evaluation read one object of {shared_set.name}, and so with one {names}",
        measured=f"both are parts of it, as random_split makes them: the {names} that was set last holds for both",
    )


@rule(
    "dropped-remainder",
    "warning",
    "eval.protocol eval.aggregation",
    holds="every sample of evaluation in a batch",
    do="give the evaluation's loader drop_last=False",
)
def dropped_remainder(evaluation_remainder: Mapping[str, int]) -> Fault | None:
    """Expect that evaluation reads every sample."""
    left_out, samples = evaluation_remainder["left_out"], evaluation_remainder["samples"]
    if not left_out:
        return None
    return Fault(
        f"evaluation leaves {left_out} of {samples} samples out",
        measured="drop_last=True, and a number of samples that the size of a batch does not divide",
    )


@rule(
    "input-statistics",
    "warning",
    "data.normalisation data.layout",
    holds="inputs of evaluation as those of training",
    do="apply the same scaling, order of channels and unit in both",
    is_statistical=True,
)
def input_statistics(input_gaps: list[Gap]) -> Fault | None:
    """Compare inputs of training and evaluation, channel by channel, with what samples differ by."""
    broken = [
        gap for gap in input_gaps if gap.z > 6 and (abs(gap.mean) > 1 or not 1 / _MAX_RATIO < gap.ratio < _MAX_RATIO)
    ]
    if not broken:
        return None
    worst = max(broken, key=lambda gap: abs(gap.mean) + abs(float(np.log(gap.ratio))))
    return Fault(
        f"inputs of evaluation are not those of training: {len(broken)} of {len(input_gaps)} channels differ",
        measured=f"input {worst.path or 'of the model'}, channel {worst.channel}: the mean is {worst.mean:+.3g} "
        f"spreads away, the spread {worst.ratio:.3g} times as large; z {worst.z:.1f}",
        evidence={"z": worst.z},
    )


@rule(
    "label-permutation",
    "warning",
    "data.label_mapping data.split",
    holds="the classes of evaluation numbered as those of training",
    do="number the classes by one table of names for both parts",
    is_statistical=True,
)
def permuted_labels(confusion: Confusion) -> Fault | None:
    """Ask whether the answers to the classes of evaluation are a permutation of those to the classes of training."""
    shares = []
    for table in confusion:
        seen = table.sum(axis=1) > 0
        best = table[seen].argmax(axis=1)
        is_map = len(set(best.tolist())) == len(best) > 2
        is_own = bool((best == np.flatnonzero(seen)).all())
        total = max(1, int(table.sum()))
        shares.append(
            (float(np.trace(table)) / total, float(table[seen].max(axis=1).sum()) / total, is_map, is_own, total)
        )
    (own, _, _, is_learnt, kept), (evaluation, mapped, is_map, is_own, total) = shares
    if own < 0.5 or not is_learnt or min(kept, total) < 24:
        raise LeftOutError("classes not learnt")
    z = (mapped - evaluation) / (max(mapped * (1 - mapped), 0.01) / total) ** 0.5
    if not is_map or is_own or mapped - evaluation < 0.2 or z < 5:
        return None
    best = [int(k) for k in confusion.evaluation.argmax(axis=1)]
    return Fault(
        "the classes of evaluation are numbered otherwise than those of training",
        measured=f"right for {own:.0%} of training's samples and {evaluation:.0%} of evaluation's; "
        f"{mapped:.0%} if its classes are renumbered {best}; z {z:.1f}",
        evidence={"z": z},
    )


@rule(
    "missing-classes",
    "warning",
    "data.split data.label_mapping",
    holds="each class of evaluation in training",
    do="divide the samples class by class, and number the classes by one table",
    is_statistical=True,
)
def missing_classes(labels: dict[int, int], evaluation_labels: dict[int, int]) -> Fault | None:
    """Look for classes that are common in evaluation and absent from training."""
    known, size = set(labels.values()), len(evaluation_labels)
    counts = {label: list(evaluation_labels.values()).count(label) for label in set(evaluation_labels.values())}
    expected = {label: count / size * len(labels) for label, count in counts.items()}
    common = sorted(label for label, count in expected.items() if count > 9 and counts[label] > 3)
    if not common or len(counts) > size // 4:
        raise LeftOutError("few samples for each class")
    absent = [label for label in common if label not in known]
    if not absent:
        return None
    return Fault(
        f"training has no sample of {len(absent)} classes of evaluation: {absent[:5]}",
        measured=f"{counts[absent[0]]} of {size} samples of evaluation are of class {absent[0]}; "
        f"{expected[absent[0]]:.0f} of {len(labels)} expected in training, 0 found",
    )


@rule(
    "label-range",
    "error",
    "data.target_encoding data.label_mapping",
    holds="labels that occur in the label map, also inside of a region",
    do="resize and turn label maps with mode='nearest'",
    is_statistical=True,
)
def interpolated_labels(seams: list[Seams]) -> Fault | None:
    """Two or more classes that exist only on seams between a lower and a higher one come from an interpolation."""
    suspect = [each for each in seams if each.pixels >= 8 and each.between >= 0.9 * each.pixels]
    solid = [each for each in seams if each.between < 0.5 * each.pixels]
    if len(suspect) < 2 or len(solid) < 2:
        return None
    if any(not solid[0].label < each.label < solid[-1].label for each in suspect):
        return None
    return Fault(
        "labels are interpolated: between two classes there are pixels of a third",
        measured=f"labels {[each.label for each in suspect][:6]} lie on seams between a lower and a higher label: "
        f"{sum(each.between for each in suspect)} of {sum(each.pixels for each in suspect)} pixels",
        severity=None if len(suspect) > 2 else "warning",
    )


@rule(
    "label-range",
    "error",
    "data.target_encoding data.label_mapping",
    holds="labels that occur in the label map",
    do="resize and turn label maps with mode='nearest'",
)
def interpolated_classes(interpolated: list[int]) -> Iterator[Fault]:
    """Report label maps that the data set interpolates itself."""
    if interpolated:
        yield Fault(
            "labels are interpolated: between two classes there are pixels of a third",
            measured="the integer target of a sample comes from an interpolation of whole numbers",
            where=FindingLocation(sample=interpolated[0]),
        )


@rule(
    "input-statistics",
    "warning",
    "data.normalisation",
    holds="bytes are divided by 255 once",
    do="divide once: a transform such as ToTensor() does so itself",
)
def divided_twice(byte_steps: dict[str, float]) -> Iterator[Fault]:
    """Find images whose numbers are bytes divided by 255 twice: whole multiples of 1 / 255², at most 255 of them."""
    for path, largest in byte_steps.items():
        yield Fault(
            f"images{f' {path}' if path else ''} are divided by 255 twice: their values end at 1 / 255",
            measured=f"all numbers are whole multiples of 1 / 65025, up to {largest:.4g}",
        )


@rule(
    "mismatched-views",
    "warning",
    "data.duplicate_randomness",
    holds="two views of a sample differ",
    do="draw the augmentation of each view with random numbers of its own",
)
def equal_views(same_views: list[str]) -> Iterator[Fault]:
    """Find inputs that are one and the same in each sample of each batch."""
    if same_views:
        yield Fault(
            f"both views of a sample are the same: {' and '.join(same_views[:2])}",
            measured="equal bits in all samples of all batches",
        )


@rule(
    "padded-points",
    "warning",
    "data.padding data.ignore_handling",
    holds="no gradient of the loss at places that collate has filled up",
    do="pad targets with the value that the loss ignores, such as -100, or mask the loss",
)
def padding_counted(padded: Padded) -> Fault | None:
    """Ask whether the loss counts places beyond the end of a sample, that hold a value which is also a label."""
    values = padded.target[padded.is_padded].unique()
    if len(values) != 1:
        raise NotApplicableError("padding of several values")
    counted = int((padded.is_counted & padded.is_padded).sum())
    if not counted or not bool((padded.target[~padded.is_padded] == values[0]).any()):
        return None
    return Fault(
        f"the loss counts {counted} places that are only padding, as label {values[0].item():g}",
        measured=f"{counted} of {int(padded.is_padded.sum())} places beyond the end of their samples have a gradient",
    )
