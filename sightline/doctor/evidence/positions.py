"""Which outputs depend on other samples, on later time steps, or on padding.

Weights are jittered so that zeros hide nothing.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.source import Source, open_source
from sightline.doctor.forms.form import Batch
from sightline.doctor.objects import preserve_generators
from sightline.doctor.subject import Subject, count_samples, replace_leaf, take_rows
from sightline.instrument.random_state import seed_all

_BOUND, _MAX_COMPARED, _NUM_COLLATED = 1e-3, 4096, 5
"""Share of the spread of an output beyond which it has moved; float32 sums differ by 1e-6."""


class Reach(NamedTuple):
    """Output that moves as a part of the inputs does that should not reach it: how far, in its spread.

    `module` is the innermost one that is given equal inputs, and returns others; "" where none is.
    """

    path: str
    size: float
    module: str = ""


def _jittered_copy(subject: Subject) -> nn.Module:
    return subject.jitter(subject.copy("eval"), seed=5)


def _run_model(subject: Subject, model: nn.Module, inputs: Any, *, seed: int = 0) -> dict[str, Tensor]:
    seed_all(seed)
    with torch.no_grad():
        outputs = subject.call(model, tree_map(inputs, lambda _, tensor: tensor.clone()))
        return {path: t.detach().double() for path, t in dense_leaves(outputs) if t.dtype != torch.bool}


def _relative_change(first: Tensor, other: Tensor, whole: Tensor) -> float:
    """Measure a difference in the spread of an output; 0 for numbers that are none."""
    spread = float(whole.std()) if whole.numel() > 1 else 0.0
    moved = float((first - other).abs().max()) if first.numel() else 0.0
    return moved / (spread + 1e-9 + 1e-3 * float(whole.abs().mean())) if moved == moved else 0.0


@measure(passes=1)
def neighbours(subject: Subject) -> list[Reach]:
    """Put one half of a batch in the place of the other, and turn its order: a sample keeps its outputs."""
    batch = subject.batches[0]
    axes = _find_axes(subject)
    sizes = {t.shape[axes[path]] for path, t in dense_leaves(batch.inputs) if path in axes}
    count = sizes.pop() if len(sizes) == 1 else count_samples(batch)
    if count < 4:
        raise NotApplicableError("no row for each sample")
    if not axes and any(t.ndim > 1 and t.shape[1] == count for _, t in dense_leaves(batch.inputs)):
        raise NotApplicableError("rows may be nodes or steps")
    if any(_numbers_samples(t, count) for _, t in dense_leaves(batch.inputs)):
        raise NotApplicableError("rows are points or nodes of numbered samples")
    if not subject.form.is_divided:
        raise LeftOutError("inputs and target are not divided")
    if subject.loader is None and len(subject.batches) == 1 and all(t.ndim < 3 for _, t in dense_leaves(batch.inputs)):
        raise NotApplicableError("rows may be nodes of one graph")
    model, half, is_by_rows = _jittered_copy(subject), count // 2, not any(axes.values())

    def answer(rows: Tensor, seed: int = 0) -> dict[str, Tensor]:
        outputs = _run_model(subject, model, _take(batch.inputs, axes, rows), seed=seed)
        return _bring_samples_first(outputs, fewer) if axes else outputs

    every = torch.arange(count)
    fewer = _run_model(subject, model, _take(batch.inputs, axes, every[:-1])) if axes else {}
    first, again = (answer(every, seed) for seed in (0, 1))
    first = first if axes else {name: t for name, t in first.items() if not _is_square(t)}
    if not any(t.ndim and len(t) == count for t in first.values()):
        raise NotApplicableError("no output of each sample")
    found: list[Reach] = []
    for kept in (every[:half], every[count - half :]):
        rows = every % half + int(kept[0])
        rows[kept] = kept
        reached = list(_compare(first, again, answer(rows), count, (kept, kept)))
        if reached and _reach_by_lengths(subject, model):
            raise NotApplicableError("padding reaches samples, which is judged by itself")
        name = _find_mixing(subject, model, rows, kept) if reached and not found and is_by_rows else ""
        found += [reach._replace(module=name) for reach in reached]
    order = every.roll(1)
    reached = list(_compare(first, again, answer(order), count, (order, every)))
    name = _find_mixing(subject, model, order, every) if reached and not found and is_by_rows else ""
    found += [reach._replace(module=name) for reach in reached]
    if found and not axes and _is_by_columns(subject, model, batch):
        raise NotApplicableError("samples lie along axis 1")
    return found


def _is_square(tensor: Tensor) -> bool:
    """Return True for an output whose first two axes are as long, as those of each sample with each are."""
    return tensor.ndim > 1 and tensor.shape[0] == tensor.shape[1]


def _find_axes(subject: Subject) -> dict[str, int]:
    """Find the axis of each input along which samples lie, by their paths; none where it is not known.

    The loader's `collate_fn` is given some samples, and twice one less: it is the axis that is one shorter both times,
    whatever the sizes are. A padded length is so at most once.
    """
    source = attempt("source", open_source, {"loader": subject.loader, "form": subject.form, "lacks": "loader"})
    if isinstance(source, MissingError) or getattr(source.loader, "collate_fn", None) is None:
        return {}
    shapes = attempt("axes", _collate_shapes, {"source": source})
    if isinstance(shapes, MissingError):
        return {}
    (whole, *fewer), axes = shapes, dict[str, int]()
    if any(each.keys() != whole.keys() or any(len(each[n]) != len(whole[n]) for n in each) for each in fewer):
        return {}
    for name, size in whole.items():
        shorter = [
            {axis for axis, (a, b) in enumerate(zip(size, each[name], strict=True)) if a == b + 1} for each in fewer
        ]
        common = set.intersection(*shorter)
        if len(common) == 1:
            axes[name] = common.pop()
    current = {name: t.ndim for name, t in dense_leaves(subject.batches[0].inputs)}
    is_known = {name: len(size) for name, size in whole.items()} == current and len(axes) == len(whole)
    return axes if is_known else {}


def _collate_shapes(source: Source) -> list[dict[str, tuple[int, ...]]]:
    """Collate a few samples, all but the last, and all but the first; return the shapes of the inputs."""
    found = []
    with preserve_generators(source.generators()):
        samples = source.list_samples(_NUM_COLLATED)
        for part in (samples, samples[:-1], samples[1:]):
            batch = source.form.split(source.loader.collate_fn(copy.deepcopy(part)))
            found.append({name: tuple(t.shape) for name, t in dense_leaves(batch.inputs)})
    return found


def _take(inputs: Any, axes: Mapping[str, int], rows: Tensor) -> Any:
    """Take samples of inputs, along the axis of each; along the first where none is known."""
    if not axes:
        return take_rows(inputs, rows)
    return tree_map(inputs, lambda name, t: t.index_select(axes[name], rows.to(t.device)) if name in axes else t)


def _bring_samples_first(outputs: dict[str, Tensor], fewer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the axis that is shorter with one sample less to the front of each output; leave out those without one.

    Those in which two of as many places are shorter are of each sample with each.
    """
    moved = dict[str, Tensor]()
    for name, value in outputs.items():
        other = fewer.get(name)
        if other is not None and other.ndim == value.ndim:
            shorter = [axis for axis in range(value.ndim) if value.shape[axis] != other.shape[axis]]
            is_clear = len(shorter) == 1 or (shorter[:1] == [0] and not _is_square(value))
            moved |= {name: value.movedim(shorter[0], 0)} if is_clear else {}
    return moved


def _numbers_samples(tensor: Tensor, count: int) -> bool:
    """Return True for the number of its sample beside each row: 0, 0, 0, 1, 1, 2, ..., in this order."""
    if tensor.shape != (count,) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        return False
    steps = tensor.diff()
    return int(tensor[0]) == 0 and bool(((steps == 0) | (steps == 1)).all()) and 0 < int(steps.sum()) < count - 1


def _find_mixing(subject: Subject, model: nn.Module, rows: Tensor, kept: Tensor) -> str:
    """Name the innermost module that is given the same for the kept rows, and returns other numbers for them.

    `rows` are the samples of a second pass by their rows in the first.
    """
    inputs = subject.batches[0].inputs
    first = _record_modules(subject, model, inputs, len(rows), rows[kept])
    second = _record_modules(subject, model, take_rows(inputs, rows), len(rows), kept)
    for (name, *before), (other, *after) in zip(first, second, strict=False):
        is_given, is_returned = (all(map(_is_alike, *pair)) for pair in zip(before, after, strict=True))
        if name == other and is_given and not is_returned:
            return name
    return ""


def _is_alike(first: Tensor, other: Tensor) -> bool:
    return first.shape == other.shape and _relative_change(first, other, first) <= _BOUND


def _record_modules(
    subject: Subject, model: nn.Module, inputs: Any, count: int, rows: Tensor
) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    """List what each inner module is given, and returns, for some samples, in the order in which the calls end."""
    calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def take(values: Any) -> list[Tensor]:
        leaves = [t for _, t in dense_leaves(values) if t.numel() and t.ndim and len(t) % count == 0]
        return [t.detach().reshape(count, -1)[rows].double() for t in leaves]

    def record(name: str, _: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        calls.append((name, take((args, kwargs)), take(outputs)))

    handles = [
        module.register_forward_hook(functools.partial(record, name), with_kwargs=True)
        for name, module in model.named_modules()
        if module is not model
    ]
    try:
        _run_model(subject, model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _compare(
    first: dict[str, Tensor],
    again: dict[str, Tensor],
    other: dict[str, Tensor],
    count: int,
    places: tuple[Tensor, Tensor],
) -> Iterator[Reach]:
    """List the outputs that differ for samples whose places in the first and in the other pass are given."""
    before, after = places
    for path, value in first.items():
        if path not in other or other[path].shape != value.shape:
            continue
        pairs = zip(_list_by_sample(value, count), _list_by_sample(other[path], count), strict=True)
        size = min((_relative_change(a[before], b[after], value) for a, b in pairs), default=0.0)
        if size > _BOUND and _relative_change(value, again[path], value) == 0.0:
            yield Reach(path, size)


def _list_by_sample(value: Tensor, count: int) -> list[Tensor]:
    """List how an output may be of samples: those of several rows have them one after another, or by turns."""
    if not value.ndim or not len(value) or len(value) % count:
        return []
    return [value.unflatten(0, (count, -1)), value.unflatten(0, (-1, count)).transpose(0, 1)]


def _is_by_columns(subject: Subject, model: nn.Module, batch: Batch) -> bool:
    """Return True if axis 1 of inputs, outputs and target has one size, and nothing passes between its places."""
    leaves = [t for _, t in dense_leaves(tuple(batch))]
    sizes = {t.shape[1] if t.ndim > 1 else len(t) for t in leaves}
    if len(sizes) != 1 or min(sizes) < 2:
        return False
    half = min(sizes) // 2
    places = torch.arange(min(sizes))
    places[half:] = torch.arange(min(sizes) - half) % half
    turned = tree_map(batch.inputs, lambda _, t: t[:, places] if t.ndim > 1 else t[places])
    outputs = [_run_model(subject, model, inputs).values() for inputs in (batch.inputs, turned)]
    pairs = zip(*outputs, strict=True)
    return all(_relative_change(a[:, :half], b[:, :half], a) <= _BOUND for a, b in pairs if a.ndim > 1)


@measure(passes=2)
def later_steps(subject: Subject) -> list[Reach]:
    """Exchange the later steps of inputs whose next step is the target: outputs of earlier steps stay."""
    batch = subject.batches[0]
    path, steps = _find_next(subject)
    length, cut = steps.shape[1], max(1, steps.shape[1] // 2)
    model = _jittered_copy(subject)
    first, found = _run_model(subject, model, batch.inputs), []
    mixed = torch.cat((steps[:, :cut], steps.roll(1, 0)[:, cut:]), 1)
    other = _run_model(subject, model, tree_map(batch.inputs, lambda name, t: mixed if name == path else t))
    for name, value in first.items():
        if value.ndim < 2 or length not in value.shape[1:] or len(value) != len(steps):
            continue
        axis = value.shape.index(length, 1)
        size = _relative_change(value.narrow(axis, 0, cut), other[name].narrow(axis, 0, cut), value)
        if size > _BOUND:
            found.append(Reach(name, size))
    return found


def _find_next(subject: Subject) -> tuple[str, Tensor]:
    """Find the input of which the target of each batch is the next step."""
    for path, steps in dense_leaves(subject.batches[0].inputs):
        if steps.ndim < 2 or steps.shape[1] < 4 or steps.dtype == torch.bool:
            continue
        if all(_is_next(dict(dense_leaves(b.inputs)).get(path), b.target) for b in subject.batches):
            return path, steps
    raise NotApplicableError("the target is not the next input")


def _is_next(steps: Tensor | None, target: Any) -> bool:
    """Return True for a target that is the next step of each, if it has one for the last step or not."""
    for _, wanted in dense_leaves(target):
        if steps is None or wanted.ndim != steps.ndim or torch.equal(steps[:, 1:], steps[:, :-1]):
            continue
        following, ahead = steps[:, 1:], wanted[:, : steps.shape[1] - 1]
        if ahead.shape == following.shape and wanted.shape[1] <= steps.shape[1]:
            counted = ahead >= 0 if not ahead.is_floating_point() else torch.ones_like(ahead) > 0
            if torch.equal(ahead[counted], following[counted]) and bool(counted.float().mean() > 0.3):
                return not torch.equal(wanted, steps)
    return False


class PaddedSteps(NamedTuple):
    """Outputs that padded places reach, and whether true places reach outputs of others; `has_mask`: one was given.

    In a loop `layer` is an attention that reads the rows that are the same in all samples, and leaves out the others.
    """

    reached: list[Reach]
    is_read: bool
    has_mask: bool
    layer: str = ""


@measure(passes=3)
def padded_steps(subject: Subject) -> PaddedSteps:
    """Replace padded steps, or cut them off, then replace true ones, and see which outputs of true steps move."""
    inputs = subject.batches[0].inputs
    path, steps, is_true, has_mask = _find_padding(inputs)
    lengths = is_true.long().sum(1)
    model = _jittered_copy(subject)
    rows = ((lengths < steps.shape[1] - 1) & (lengths > 2)).nonzero().flatten().tolist()
    reached, is_read = [], False
    of_steps = _list_of_steps(subject, model, inputs, steps.shape[1]) if rows else set()
    for row in rows[:3]:
        alone, length = take_rows(inputs, [row]), int(lengths[row])
        first = _run_model(subject, model, alone)
        donor = steps[lengths.argmax()][None]
        if has_mask:
            places = ~is_true[row].reshape(1, -1, *[1] * (steps.ndim - 2))
            other = _run_model(
                subject, model, replace_leaf(alone, path, torch.where(places, donor, _get_leaf(alone, path)))
            )
        else:
            cut = _cut(alone, steps.shape[1], length)
            other = _run_model(subject, model, cut)
        changed = _get_leaf(alone, path).clone()
        changed[:, 0] = donor[:, 1]
        changed[:, 1] = donor[:, 2]
        last = _run_model(subject, model, replace_leaf(alone, path, changed))
        reached += list(_list_reached(first, other, of_steps, range(length)))
        is_read |= bool(list(_list_reached(first, last, of_steps, range(2, length))))
    if not rows:
        raise NotApplicableError("no padded rows")
    return PaddedSteps(reached, is_read, has_mask)


@measure(passes=2)
def longer_padding(subject: Subject) -> list[Reach]:
    """Pad inputs of stated lengths further, with the number that pads them, and see which outputs of samples move."""
    inputs = subject.batches[0].inputs
    path, longer = _pad_further(inputs)
    model = _jittered_copy(subject)
    first, other = (_run_model(subject, model, each) for each in (inputs, replace_leaf(inputs, path, longer)))
    return _list_moved(first, other) or _reach_by_lengths(subject, model)


def _list_moved(first: dict[str, Tensor], other: dict[str, Tensor], kept: Tensor | None = None) -> list[Reach]:
    """List the outputs of equal shape that differ; with `kept`, those rows of the first are the other's."""
    first = first if kept is None else {name: t[kept] for name, t in first.items() if t.ndim and len(t) > int(kept[-1])}
    alike = [name for name, value in first.items() if name in other and other[name].shape == value.shape]
    sizes = {name: _relative_change(first[name], other[name], first[name]) for name in alike}
    return [Reach(name, size) for name, size in sizes.items() if size > _BOUND]


def _reach_by_lengths(subject: Subject, model: nn.Module) -> list[Reach]:
    """List the outputs of samples that move where the longest ones leave the batch, whatever is in these."""
    inputs = subject.batches[0].inputs
    padded = _find_lengths(inputs)
    if padded is None:
        return []
    path, axis, lengths = padded
    is_long = lengths == lengths.max()
    kept = (~is_long).nonzero().flatten()
    if len(kept) < 2:
        return []
    leaf, size = _get_leaf(inputs, path), int(lengths[kept].max())
    fewer = tree_map(take_rows(inputs, kept), lambda name, t: t.narrow(axis, 0, size) if name == path else t)
    changed = leaf.clone()
    changed[is_long] = leaf[is_long].roll(1, axis)
    first, alone, beside = (
        _run_model(subject, model, each) for each in (inputs, fewer, replace_leaf(inputs, path, changed))
    )
    same = {name: t[kept] for name, t in beside.items() if t.ndim and len(t) == len(lengths)}
    return [] if _list_moved(first, same, kept) else _list_moved(first, alone, kept)


def _pad_further(inputs: Any) -> tuple[str, Tensor]:
    """Pad the input whose samples are shorter than the longest, as other numbers of them say, to twice its length."""
    padded = _find_lengths(inputs)
    if padded is None:
        raise NotApplicableError("no lengths of padded inputs")
    path, axis, lengths = padded
    rows = _get_leaf(inputs, path).movedim(axis, 1)
    pad = rows[int(lengths.argmin()), -1].flatten()[0]
    return path, torch.cat((rows, pad.expand_as(rows)), 1).movedim(1, axis)


def _find_lengths(inputs: Any) -> tuple[str, int, Tensor] | None:
    """Find an input that is filled up with one number, the axis, and the lengths of its samples among the inputs."""
    leaves = dict(dense_leaves(inputs))
    for lengths in (t for t in leaves.values() if t.ndim == 1 and len(t) > 1 and not t.is_floating_point()):
        least, size = int(lengths.min()), int(lengths.max())
        found = [(n, t.shape.index(size, 1)) for n, t in leaves.items() if t.ndim > 1 and size in t.shape[1:]]
        if len(found) != 1 or not 0 < least < size:
            continue
        path, axis = found[0]
        rows = leaves[path].movedim(axis, 1)
        pads = torch.cat([row[int(length) :].flatten() for row, length in zip(rows, lengths, strict=True)]).unique()
        if len(pads) == 1:
            return path, axis, lengths
    return None


def _get_leaf(inputs: Any, path: str) -> Tensor:
    return dict(dense_leaves(inputs))[path]


def _cut(inputs: Any, size: int, length: int) -> Any:
    return tree_map(inputs, lambda _, t: t[:, :length] if t.ndim > 1 and t.shape[1] == size else t)


def _list_of_steps(subject: Subject, model: nn.Module, inputs: Any, size: int) -> set[str]:
    """List the outputs (B, T) with a number for each step of inputs: of inputs with a step less they are shorter."""
    names = {name for name, t in _run_model(subject, model, inputs).items() if t.ndim == 2 and t.shape[1] == size}
    shorter = _run_model(subject, model, _cut(inputs, size, size - 1)) if names else {}
    return {name for name in names if name in shorter and shorter[name].shape[1] == size - 1}


def _list_reached(
    first: dict[str, Tensor], other: dict[str, Tensor], of_steps: Container[str], places: range
) -> Iterator[Reach]:
    """List the outputs that differ at some places, or as a whole if they are of none; `of_steps` are those (B, T)."""
    start, length = places.start, places.stop
    for name, value in first.items():
        is_of_steps = value.ndim >= 3 or name in of_steps
        if name in other and is_of_steps and value.shape[1] >= length:
            size = _relative_change(value[:, start:length], other[name][:, start:length], value[:, :length])
        elif name in other and value.ndim == 2 and other[name].shape == value.shape:
            size = _relative_change(value, other[name], value)
        else:
            continue
        if size > _BOUND:
            yield Reach(name, size)


def _find_padding(inputs: Any) -> tuple[str, Tensor, Tensor, bool]:
    """Find steps whose rows end in padding: by a mask among the inputs, or by a word that ends most rows."""
    leaves = dict(dense_leaves(inputs))
    masks = {
        name: t for name, t in leaves.items() if t.ndim == 2 and t.shape[1] > 3 and set(t.unique().tolist()) == {0, 1}
    }
    for name, steps in leaves.items():
        if name in masks or steps.ndim not in (2, 3) or steps.shape[1] < 4:
            continue
        for mask in masks.values():
            is_true = mask == mask[:, :1]
            if mask.shape == steps.shape[:2] and len(mask[:, 0].unique()) == 1 and _is_prefix(is_true):
                return name, steps, is_true, True
        if steps.ndim == 2 and not steps.is_floating_point() and not masks and len(steps.unique()) > 3:
            is_true = steps != steps[:, -1].mode().values
            if _is_prefix(is_true) and bool(is_true.any(1).all()) and int((~is_true[:, -2]).sum()) > 1:
                return name, steps, is_true, False
    raise NotApplicableError("no padded rows")


def _is_prefix(is_true: Tensor) -> bool:
    lengths = is_true.long().sum(1, keepdim=True)
    places = torch.arange(is_true.shape[1], device=is_true.device)
    return bool(torch.equal(is_true, places < lengths)) and len(lengths.unique()) > 1


@measure()
def label_columns(subject: Subject) -> list[str]:
    """List the columns, or channels, of inputs that tell the target: one number for each class, in every batch."""
    if len(list(dense_leaves(subject.batches[0].target))) != 1 or not subject.form.is_divided:
        raise NotApplicableError("several targets")
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in subject.batches:
        for name, values, target in _list_columns(batch):
            pairs.setdefault(name, []).append((values, target))
    return sorted(
        name
        for name, found in pairs.items()
        if len(found) == len(subject.batches) and _tells(*(torch.cat(each) for each in zip(*found, strict=True)))
    )


def _list_columns(batch: Batch) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield channels of inputs, the second axis and the last, that have one number for each number of the target."""
    for (_, target), (path, values) in itertools.product(dense_leaves(batch.target), dense_leaves(batch.inputs)):
        flat = target.squeeze(1) if target.ndim > 1 and target.shape[1] == 1 else target
        if not 0 < flat.ndim < values.ndim:
            continue
        for axis in dict.fromkeys((values.ndim - 1, 1)):
            found = []
            is_channel = values.shape[axis] > 1 or values.numel() > flat.numel()  # and not the input as a whole
            for place, column in enumerate(values.unbind(axis) if is_channel else ()):
                inner = column.flatten(flat.ndim) if column.ndim > flat.ndim else column[..., None]
                if column.shape[: flat.ndim] == flat.shape and torch.equal(inner.amin(-1), inner.amax(-1)):
                    found.append((f"channel {place} of {path or 'the input'}", inner[..., 0].flatten(), flat.flatten()))
            yield from found
            if found:
                break


def _tells(values: Tensor, target: Tensor) -> bool:
    """Return True for the numbers of the target, or others that are one for each class, if classes repeat."""
    step = 1 + len(target) // _MAX_COMPARED
    values, target = values[::step], target[::step]
    if len(target) < 16 or len(target.unique()) < 2:
        return False
    if torch.equal(values.double(), target.double()):
        return True
    if not values.is_floating_point() or target.is_floating_point() or len(target) - len(target.unique()) < 6:
        return False
    num = len(values.unique())
    return num == len(target.unique()) == torch.stack([values.double(), target.double()]).unique(dim=1).shape[1]
