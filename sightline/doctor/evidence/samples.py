"""Samples in other company: exchanged, doubled, padded, and a copy that is trained on the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.losses import Labelled, value_of
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.forms.form import Batch
from sightline.doctor.subject import Pass, Subject, count_samples, replace_leaf, take_rows
from sightline.instrument import InterceptedOperators
from sightline.instrument.random_state import seed_all

NUM_TAUGHT, _NUM_EXCHANGES = 120, 40
"""Steps of a copy that is trained, whatever the speed of the machine; exchanges of targets."""
MIN_Z = 2.5
"""Spreads below the mean loss of exchanged targets at which a copy has learnt which are a sample's own."""


@measure()
def num_samples(passed: Pass, slopes: list[Slope]) -> int:
    """Count the samples of a batch whose tensors all have a row for each."""
    num = count_samples(passed.batch)
    if 0 < num < 3:
        raise LeftOutError("fewer than three samples in a batch")
    if not num or any(slope.output.ndim == 0 or len(slope.output) != num for slope in slopes):
        raise NotApplicableError("batches without a row for each sample")
    return num


_NUM_JITTERED = 4
_BROADCAST = frozenset("add sub mul div pow where mse_loss smooth_l1_loss huber_loss".split())
"""Operators that take a column (B, 1) and a row (B,), and give (B, B)."""


class Exchange(NamedTuple):
    """Leaf of the target that may be given to other samples without a change of the loss, though it counts."""

    path: str
    value: float
    exchanged: float
    other: float
    is_additive: bool
    """Whether two halves of the target count on their own: not where the nearest of all is taken."""


class Pairing(NamedTuple):
    """Broadcasts of a column and a row inside the loss, and the leaves of the target of which it ignores the order."""

    broadcasts: int
    exchanges: list[Exchange]


@measure(passes=3)
def pairing(subject: Subject, passed: Pass, num_samples: int, slopes: list[Slope]) -> Pairing:
    """Give each leaf of the target to other samples, and look for broadcasts of samples against samples."""
    target, num_found = passed.batch.target, 0

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        nonlocal num_found
        shapes = {tuple(each.shape) for each in args if isinstance(each, Tensor)}
        name, result = operator.overloadpacket.__name__.strip("_"), operator(*args, **kwargs)
        num_found += name in _BROADCAST and any(
            shape[:1] == (num_samples,) and (num_samples, 1, *shape[1:]) in shapes for shape in shapes
        )
        num_found += name == "expand" and result.shape[:2] == (num_samples, num_samples) and result.shape not in shapes
        return result

    with torch.no_grad():
        with InterceptedOperators(run):
            value = float(value_of(subject, passed, {}))
        if not num_found:
            return Pairing(0, [])
        order = torch.arange(num_samples).roll(1)
        found = []
        for path, leaf in dense_leaves(target):
            other = leaf.flip(0) * 2 + 1 if leaf.is_floating_point() else leaf[:1].expand_as(leaf)
            half = num_samples // 2
            parts = [torch.cat((a[:half], b[half:])) for a, b in ((other, leaf), (leaf, other))]
            exchanged, whole, *halves = (
                float(value_of(subject, passed, {}, replace_leaf(target, path, new)))
                for new in (leaf[order], other, *parts)
            )
            is_additive = abs(sum(halves) - whole - value) < 1e-3 * max(abs(whole - value), 1e-9)
            if leaf.ndim and not torch.equal(leaf[order], leaf):
                found.append(Exchange(path, value, exchanged, whole, is_additive))
    return Pairing(num_found, found)


@measure(passes=1)
def is_separable(subject: Subject, passed: Pass, num_samples: int, slopes: list[Slope]) -> bool:
    """Change the outputs of all samples but the first: is the gradient at the first what it was?"""
    outputs = {}
    for slope in slopes:
        changed = slope.output.roll(1, 0) * 1.5
        changed[0] = slope.output[0]
        outputs[slope.path] = changed.requires_grad_()
    value = value_of(subject, passed, dict(outputs))
    gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    return all(
        gradient is not None and torch.allclose(gradient[0], slope.gradient[0], rtol=1e-3, atol=1e-8)
        for gradient, slope in zip(gradients, slopes, strict=True)
    )


@measure(passes=1)
def common_factor(subject: Subject, passed: Pass, num_samples: int, labelled: list[Labelled]) -> float:
    """Change the outputs of the later samples; by which one factor the gradient at the earlier ones changes, 1 if none.

    Where it changes otherwise, as in a loss of overlaps or of pairs, the factor is 1, too.
    """
    half, path = num_samples // 2, labelled[0].slope.path
    output, own = labelled[0].slope.output, labelled[0].slope.gradient[:half].double()
    changed = torch.cat((output[:half], output[half:].roll(1, 0) * -4)).requires_grad_()
    (gradient,) = torch.autograd.grad(value_of(subject, passed, {path: changed}), [changed])
    is_counted = own.abs() > 1e-3 * own.abs().max()
    ratios = gradient[:half].double()[is_counted] / own[is_counted]
    return float(ratios.mean()) if len(ratios) and float(ratios.std()) < 1e-3 * float(ratios.mean().abs()) else 1.0


class Doubled(NamedTuple):
    """Shares of an output's gradients that halve, and that stay, when each sample is there twice."""

    path: str
    num: int
    halved: float
    kept: float


@measure(passes=1)
def doubled(subject: Subject, passed: Pass, num_samples: int, slopes: list[Slope]) -> list[Doubled]:
    """Give the loss each sample twice: gradients of a mean over samples halve, those of a sum stay."""
    twice = torch.arange(num_samples).repeat(2)
    outputs = {slope.path: take_rows(slope.output, twice).requires_grad_() for slope in slopes}
    rest = tree_map(
        passed.outputs,
        lambda path, t: (
            outputs[path]
            if path in outputs
            else take_rows(t.detach(), twice)
            if t.ndim and len(t) == num_samples
            else t
        ),
    )
    seed_all(0)
    value = subject.evaluate(passed.model, rest, take_rows(passed.batch.target, twice))
    gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    found = []
    for slope, gradient in zip(slopes, gradients, strict=True):
        is_counted = slope.gradient.abs() > 1e-6 * slope.gradient.abs().max()
        if gradient is None or not bool(is_counted.any()):
            continue
        ratios = gradient[:num_samples][is_counted].double() / slope.gradient[is_counted].double()
        halved, kept = (float(((ratios - r).abs() < 2e-3).double().mean()) for r in (0.5, 1.0))
        found.append(Doubled(slope.path, int(is_counted.sum()), halved, kept))
    return found


class Padding(NamedTuple):
    """Rows of an input that end in padding, and the shares of the padded and the other places that the loss counts."""

    input_path: str
    output_path: str
    lengths: list[int]
    padded: float
    real: float


@measure()
def padding(subject: Subject, passed: Pass, num_samples: int, slopes: list[Slope]) -> list[Padding]:
    """Find inputs whose rows end in one token, or in zeros, at different lengths, and what of the outputs counts."""
    found = []
    for path, leaf in dense_leaves(passed.batch.inputs):
        lengths = _find_lengths(leaf)
        for slope in slopes if lengths is not None else ():
            axis = next((a for a in (1, 2) if slope.output.ndim > a and slope.output.shape[a] == leaf.shape[1]), None)
            if lengths is None or axis is None or not _is_of_steps(subject, passed, slope, axis, leaf.shape[1]):
                continue
            counted = slope.gradient.movedim(axis, 1).reshape(num_samples, leaf.shape[1], -1).abs().sum(-1) > 0
            places = torch.arange(leaf.shape[1], device=leaf.device)
            tail, real = places > lengths[:, None], places < lengths[:, None]
            shares = [float(counted[mask].double().mean()) for mask in (tail, real)]
            found.append(Padding(path, slope.path, lengths.tolist(), shares[0], shares[1]))
    if not found:
        raise NotApplicableError("no padded inputs")
    return found


def _is_of_steps(subject: Subject, passed: Pass, slope: Slope, axis: int, num_steps: int) -> bool:
    """Return True unless the axis of an output stays as it is with a step less: one of as many classes."""

    def cut(_: str, tensor: Tensor) -> Tensor:
        if tensor.ndim == 1 and not tensor.is_floating_point():
            return tensor.clamp(max=num_steps - 1)  # lengths
        return tensor[:, :-1] if tensor.ndim > 1 and tensor.shape[1] == num_steps else tensor

    shorter = {"model": subject.copy("train"), "inputs": tree_map(passed.batch.inputs, cut)}
    with torch.no_grad():
        outputs = attempt("a step less", subject.call, shorter)
    found = {} if isinstance(outputs, MissingError) else dict(dense_leaves(outputs))
    return slope.path not in found or found[slope.path].shape[axis] != num_steps


def _find_lengths(leaf: Tensor) -> Tensor | None:
    """Find the length of each row (B, T) of tokens or (B, T, C) of numbers before a tail of padding."""
    is_tokens = leaf.ndim == 2 and leaf.dtype in (torch.long, torch.int32)
    if not is_tokens and not (leaf.ndim == 3 and leaf.is_floating_point()):
        return None
    if is_tokens:
        value = leaf[:, -1].mode()[0]
        is_pad = leaf == value
    else:
        is_pad = (leaf == 0).all(-1)
    tail = is_pad.flip(1).long().cumprod(1).sum(1)
    inside = int(is_pad.sum() - tail.sum())
    num_padded = int((tail > 1).sum())
    if num_padded < 2 or len(tail.unique()) < 3 or inside or int(tail.max()) >= leaf.shape[1]:
        return None
    return leaf.shape[1] - tail


class Told(NamedTuple):
    """Loss of a batch, with its mean and spread over exchanges of the targets."""

    own: float
    mean: float
    spread: float

    @property
    def z(self) -> float:
        """How many spreads the loss is below that of exchanged targets."""
        return (self.mean - self.own) / max(self.spread, 1e-12)


class Taught(NamedTuple):
    """A trained copy on a batch kept back, and the fall of its loss.

    `by_heart` is the mean z of the batches that it was trained on, less that of the batch kept back; `ease` the mean
    loss while it was trained, as a share of that of a copy trained with exchanged targets. `control` is the mean z of
    samples of these very batches, which a copy trained on their other half has not seen. All three are NaN where the
    loss on the batch kept back tells enough.
    """

    kept: Told
    fell: float
    by_heart: float = math.nan
    ease: float = math.nan
    control: float = math.nan


@measure()
def batches_to_teach(subject: Subject, num_samples: int) -> list[Batch]:
    """List the batches, if there are at least two of 16 samples."""
    if len(subject.batches) < 2 or min(map(count_samples, subject.batches)) < 16:
        raise LeftOutError("fewer than two batches of 16 samples")
    return list(subject.batches)


@measure(passes=NUM_TAUGHT)
def taught(subject: Subject, batches_to_teach: list[Batch]) -> Taught:
    """Train a copy on all batches but one; compare its loss there with that of exchanged targets.

    Where it does not tell them apart, a second copy is trained on halves of the same batches, and asked of the others.
    """
    *others, kept = batches_to_teach
    model, values = _teach(subject, others)
    told = _tell(subject, model, kept)
    near = len(others) * 2
    first, last = (sum(part) / len(part) for part in (values[:near], values[-near:]))
    fell = 1 - last / first if first > 0 else 0.0
    if told.z >= MIN_Z:
        return Taught(told, fell)
    by_heart = _mean([_tell(subject, model, batch).z for batch in others]) - told.z
    halves = [[_take_half(batch, place) for batch in others] for place in range(2)]
    half_taught, _ = _teach(subject, halves[0])
    control = _mean([_tell(subject, half_taught, batch).z for batch in halves[1]])
    return Taught(told, fell, by_heart, _measure_ease(subject, others, values), control)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _take_half(batch: Batch, place: int) -> Batch:
    """Take each second sample."""
    return Batch(*take_rows(tuple(batch), range(place, count_samples(batch), 2)))


def _tell(subject: Subject, model: nn.Module, batch: Batch) -> Told:
    """Compare the loss of a batch with that of exchanged targets."""
    with torch.no_grad():
        outputs = subject.call(model.eval(), batch.inputs)
        targets = _exchange(batch.target, count_samples(batch))
        own, *exchanged = (float(subject.evaluate(model, outputs, target)) for target in targets)
    if max(exchanged) - min(exchanged) <= 1e-6 * abs(own):
        raise LeftOutError("the loss reads no order of targets")
    spread = torch.tensor(exchanged).double()
    return Told(own, float(spread.mean()), float(spread.std()))


def _measure_ease(subject: Subject, batches: Sequence[Batch], values: Sequence[float]) -> float:
    """Compare the losses of a training with those of one from exchanged targets, over as many steps."""
    turned = [Batch(each.inputs, [*_exchange(each.target, count_samples(each))][1]) for each in batches]
    _, others = _teach(subject, turned)
    return sum(values) / (sum(others) or 1.0)


def _teach(subject: Subject, batches: Sequence[Batch]) -> tuple[nn.Module, list[float]]:
    """Train a copy; return it and its losses."""
    model = subject.copy("train")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for step in range(NUM_TAUGHT):
        batch = batches[step % len(batches)]
        value = subject.evaluate(model, subject.call(model, batch.inputs), batch.target)
        update(optimizer, value)
        values.append(float(value))
    if not all(map(math.isfinite, values)):
        raise LeftOutError("training a copy was not finite")
    return model, values


def update(optimizer: torch.optim.Adam, value: Tensor) -> None:
    """Make an update by a loss; sparse gradients, which Adam does not take, become dense."""
    optimizer.zero_grad()
    value.backward()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
    optimizer.step()


def _exchange(target: object, num: int) -> Iterator[object]:
    generator = torch.Generator().manual_seed(0)
    yield target
    for _ in range(_NUM_EXCHANGES):
        yield take_rows(target, torch.randperm(num, generator=generator))


class Ends(NamedTuple):
    """Token that follows each padded row's last counted label, how often it is counted, and those last labels.

    `is_declared` tells a token that an embedding has as its `padding_idx`.
    """

    token: int
    counted: int
    last: list[int]
    is_declared: bool = False


@measure()
def ends(subject: Subject, passed: Pass, num_samples: int, labelled: list[Labelled]) -> Ends:
    """Find the token that fills up the rows of a language model, and the labels that are counted before it."""
    declared = {getattr(module, "padding_idx", None) for module in subject.model.modules()}
    for _, leaf in dense_leaves(passed.batch.inputs):
        lengths = _find_lengths(leaf) if leaf.ndim == 2 else None
        for item in labelled if lengths is not None else ():
            if lengths is None or item.shift not in (0, 1) or item.wanted.shape != leaf.shape:
                continue
            following, counted = leaf.roll(-1, 1)[:, :-1], item.is_counted[:, :-1]
            if not torch.equal(following[counted], item.wanted[:, :-1][counted]):
                continue
            token = int(leaf[:, -1].mode()[0])
            rows = (lengths > 1) & (lengths < leaf.shape[1])
            last = leaf[rows, lengths[rows] - 1]
            return Ends(token, int((following[counted] == token).sum()), last.tolist(), token in declared)
    raise NotApplicableError("no padded rows of tokens that follow")


class SharedRows(NamedTuple):
    """Outputs whose rows are equal for unlike samples, in each of several passes, and how many others there are.

    In a loop, `passes` are so many of those that are measured, in a row; 0 are those of jittered weights.
    """

    paths: list[str]
    others: int = 0
    passes: int = 0


@measure(passes=0.5)
def shared_rows(subject: Subject) -> SharedRows:
    """List the outputs, if all are so, whose rows are equal for unlike samples, at several jittered weights.

    Outputs behind a bound at 0 may all be 0 at some weights by chance, and come back as these move. Ranges, codebooks
    and other state may be empty until the first pass in training mode: the copies have had one.
    """
    batch = subject.batches[0]
    count = count_samples(batch)
    inputs = [tensor for _, tensor in dense_leaves(batch.inputs) if tensor.is_floating_point()]
    if count < 2 or not inputs or all(bool((tensor == tensor[:1]).all()) for tensor in inputs):
        raise NotApplicableError("samples that are alike")
    rows: dict[str, Tensor] = {}
    for seed in range(_NUM_JITTERED):
        model = subject.jitter(subject.copy("train"), seed=seed)
        with torch.no_grad():
            subject.call(model, batch.inputs)
            outputs = subject.call(model.eval(), batch.inputs)
        rows = {path or "output": leaf for path, leaf in dense_leaves(outputs) if leaf.ndim and len(leaf) == count}
        if not rows or any(bool((leaf != leaf[:1]).any()) for leaf in rows.values()):
            return SharedRows([])
    return SharedRows(list(rows))
