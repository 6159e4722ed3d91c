"""A loss alone: its sum over parts of a batch, what each class pulls up, what it edits, its best outputs, its pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.autograd_graph import iter_nodes
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.losses import Labelled, value_of
from sightline.doctor.evidence.matched import Matched
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.objects import iter_reachable
from sightline.doctor.subject import LossTerm, Pass, Subject, replace_leaf
from sightline.instrument.random_state import seed_all

Outputs = Mapping[str, Any]
NUM, _WIDTH, LONG = 6, 16, 1e4
"""Rows of chosen pairs, their width, and the length of long ones."""
_LIKE_NUMBERS = (*range(1, NUM + 1), 2 * NUM - 1, 2 * NUM)
"""Widths in which rows cannot be at right angles, or a softmax over columns looks like one over rows."""


def sum_at(term: LossTerm, outputs: Outputs, target: Any) -> float:
    """Compute the sum of a loss; random draws are repeated."""
    seed_all(0)
    with torch.no_grad():
        return float(term.compute(outputs, target)[0])


def gradients_at(term: LossTerm, outputs: Outputs, target: Any) -> dict[str, Tensor]:
    """Compute the gradient of the sum at each output; zeros for none."""
    leaves = {key: t.detach().clone().requires_grad_() for key, t in dense_leaves(outputs) if t.is_floating_point()}
    seed_all(0)
    total = term.compute({**outputs, **{key: leaf + 0 for key, leaf in leaves.items()}}, target)[0]
    found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True) if total.requires_grad else [None] * 99
    return {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(leaves.items(), found, strict=False)}


def draw(like: Tensor, seed: int = 0) -> Tensor:
    """Draw normal numbers of the shape of a tensor."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)


@measure()
def recorded(passed: Pass, term: LossTerm) -> dict[str, Any]:
    """Take the outputs that the loss is given, without their graph."""
    found: dict[str, Any] = tree_map(passed.outputs, lambda _, tensor: tensor.detach())
    return found


class Divided(NamedTuple):
    """Sum and count of a batch, and of each of its samples alone.

    `is_coupled`: outputs of other samples turn the gradient of the first; `is_of_others`: it is another one alone;
    `is_of_hardest`: what has a gradient alone, and none in the batch, is what is learnt best.
    """

    whole: tuple[float, float]
    alone: list[tuple[float, float]]
    is_coupled: bool
    is_of_others: bool
    is_of_hardest: bool
    rounding: float

    @property
    def mean(self) -> float:
        """Mean loss of the batch."""
        return self.whole[0] / self.whole[1]

    @property
    def expected(self) -> float:
        """Mean loss of the samples alone, weighted by their counts."""
        totals, counts = zip(*self.alone, strict=True)
        return math.fsum(totals) / math.fsum(counts)

    @property
    def is_law(self) -> bool:
        """Return True if the mean is that of the samples."""
        return math.isclose(self.mean, self.expected, rel_tol=self.rounding, abs_tol=1e-12)


@measure(passes=12)
def divided(passed: Pass, term: LossTerm, recorded: dict[str, Any]) -> Divided:
    """Compute the loss of each sample alone, and give the others outputs of another network."""
    target = passed.batch.target
    if term.num < 2 or term.is_of_pairs or term.is_of_batch:
        raise NotApplicableError("a loss that compares samples")

    def compute(rows: list[int]) -> tuple[float, float]:
        seed_all(0)
        with torch.no_grad():
            total, count = term.compute(*term.take(recorded, target, rows))
        return float(total), count

    alone = [compute([row]) for row in range(term.num)]
    if math.fsum(count for _, count in alone) <= 0:
        raise NotApplicableError("nothing counts")
    own = gradients_at(term, recorded, target)
    singles = [gradients_at(term, *term.take(recorded, target, [row])) for row in range(term.num)]
    is_double = all(t.dtype == torch.float64 for t in own.values())
    first = term.take({key: torch.arange(len(t)) for key, t in own.items()}, target, [0])[0]
    others = {key: draw(recorded[key]) for key in own}
    for key, rows in first.items():
        others[key][rows] = recorded[key][rows]
    changed = gradients_at(term, {**recorded, **others}, target)
    is_coupled = not all(_is_multiple(changed[key][rows], own[key][rows]) for key, rows in first.items())
    is_of_others = not all(_is_multiple(own[key][rows], singles[0][key]) for key, rows in first.items())
    is_of_hardest = any(_chooses(own[key], torch.cat([single[key] for single in singles])) for key in own)
    return Divided(
        compute([*range(term.num)]), alone, is_coupled, is_of_others, is_of_hardest, 1e-7 if is_double else 1e-3
    )


def _is_multiple(first: Tensor, second: Tensor) -> bool:
    size = float(first.norm() * second.norm())
    return size == 0 or float((first * second).sum()) > (1 - 1e-6) * size


def _chooses(whole: Tensor, alone: Tensor) -> bool:
    """Return True if the places without a gradient in the batch are those with a smaller one alone."""
    if alone.shape != whole.shape or whole.ndim < 2:
        return False
    sizes, singles = (each.flatten(0, -2).norm(dim=-1) for each in (whole, alone))
    is_left, is_chosen = (sizes == 0) & (singles > 0), (sizes > 0) & (singles > 0)
    factor = sizes[is_chosen] / singles[is_chosen]
    is_scaled = bool(is_chosen.any()) and bool((factor / factor[0] - 1).abs().max() < 1e-6)
    return is_scaled and bool(is_left.any()) and bool(singles[is_left].mean() < singles[is_chosen].mean())


class Pull(NamedTuple):
    """Mean gradient (C, C) at equal scores by class of the target, with every class among the targets.

    `is_of_levels`: targets raise levels up to their own, as in ordinal regression.
    """

    item: Labelled
    by_class: Tensor
    is_of_levels: bool
    present: Tensor


@measure(passes=4)
def pulls(passed: Pass, term: LossTerm, recorded: dict[str, Any], labelled: list[Labelled]) -> list[Pull]:
    """Put the classes in turn in place of the labels, on as many samples as that takes."""
    if term.module is not None and any(True for _ in term.module.parameters()):
        raise NotApplicableError("a loss that learns, as the centres of classes")
    found = []
    for item in labelled:
        num = item.gradient.shape[-1]
        label = dict(dense_leaves(passed.batch.target))[item.target_path]
        is_class = (label >= 0) & (label < num) & (label != term.ignored)
        is_shifted = bool(item.shift) and max(item.agreement) >= 0.95
        teachers = [t for _, t in dense_leaves(passed.batch.target) if t.shape == item.slope.output.shape]
        if item.axis is None or num < 3 or is_shifted or teachers or not bool(is_class.any()):
            continue
        present = label[is_class].long().bincount(minlength=num).cpu()
        rows = [*range(term.num)] * -(-num // int(is_class.sum()))
        outputs, target = term.take(recorded, passed.batch.target, rows)
        label = dict(dense_leaves(target))[item.target_path].clone()
        mask = ((label >= 0) & (label < num) & (label != term.ignored)).reshape(-1)
        flat = label.view(-1)
        flat[mask] = (torch.arange(int(mask.sum())) % num).to(flat)
        plain, target = target, replace_leaf(target, item.target_path, label)
        drawn = {**outputs, item.slope.path: draw(outputs[item.slope.path])}
        for path in _list_other_labels(term, drawn, plain, item, num):
            target = replace_leaf(target, path, label)
        if sum_at(term, drawn, target) == sum_at(term, drawn, plain):
            continue  # labels that say what counts, beside a teacher
        shape = [1] * outputs[item.slope.path].ndim
        shape[item.axis] = num
        by_end = {}
        for end in (0.0, -2.0, 2.0):
            scores = torch.linspace(-end, end, num).view(shape).expand_as(outputs[item.slope.path])
            replaced = {**outputs, item.slope.path: scores.to(outputs[item.slope.path])}
            rows_NC = gradients_at(term, replaced, target)[item.slope.path].movedim(item.axis, -1).reshape(-1, num)
            wanted = flat[mask].long()
            total = rows_NC.new_zeros(num, num).index_add_(0, wanted, rows_NC[mask])
            by_end[end] = (total / wanted.bincount(minlength=num)[:, None]).double().cpu()
        is_of_levels = any(is_ordinal(by_end[end] < 0, by_end[end] > 0) for end in (-2.0, 2.0))
        found.append(Pull(item, by_end[0.0], is_of_levels, present))
    if not found:
        raise NotApplicableError("no scores of three classes")
    return found


def _list_other_labels(term: LossTerm, drawn: Outputs, target: Any, item: Labelled, num: int) -> list[str]:
    """List the leaves of a target that are labels of the same places, as the second ones of mixed samples are.

    They get the classes that the first ones get: what a class pulls up is asked of samples of this class alone.
    """
    leaves = dict(dense_leaves(target))
    label, value = leaves[item.target_path], sum_at(term, drawn, target)
    return [
        path
        for path, other in leaves.items()
        if path != item.target_path and other.shape == label.shape and other.dtype == label.dtype
        if not bool(((other < 0) | (other >= num)).any())
        and sum_at(term, drawn, replace_leaf(target, path, (other + 1) % num)) != value
    ]


def is_ordinal(raised: Tensor, lowered: Tensor) -> bool:
    """Return True if a class raises levels up to its own, and lowers those beyond, as in ordinal regression.

    Both are masks (classes, levels). Source: Cao et al. 2020, CORAL. Scores of classes never do: one is raised, and
    those on both sides of it are lowered.
    """
    size = raised.shape[1]
    for up, down in ((raised, lowered), (lowered, raised)):
        least = [int(row.nonzero()[-1]) + 1 if row.any() else 0 for row in up]
        most = [int(row.nonzero()[0]) if row.any() else size for row in down]
        reached = torch.tensor(least).cummax(dim=0).values
        moves = any(most[first] < max(least[first + 1 :]) for first in range(len(least) - 1))
        if moves and bool((reached <= torch.tensor(most)).all()):
            return True
    return False


@measure(passes=1)
def ignored_places(passed: Pass, term: LossTerm, recorded: dict[str, Any], labelled: list[Labelled]) -> tuple[int, int]:
    """Give every third label the ignored value: how many places that are, and at how many there is a gradient."""
    num, counted = 0, 0
    ignored: Any = term.ignored
    for item in labelled if ignored is not None else ():
        label = dict(dense_leaves(passed.batch.target))[item.target_path]
        hidden = torch.arange(label.numel()).view(label.shape) % 3 == 0
        target = replace_leaf(passed.batch.target, item.target_path, label.masked_fill(hidden, ignored))
        if item.axis is None or sum_at(term, recorded, target) == sum_at(term, recorded, passed.batch.target):
            continue
        slope = gradients_at(term, recorded, target)[item.slope.path].movedim(item.axis, -1).abs().sum(-1)
        num, counted = num + int(hidden.sum()), counted + int((slope.reshape(label.shape)[hidden] > 0).sum())
    if not num:
        raise NotApplicableError("no label is ignored")
    return num, counted


class Edits(NamedTuple):
    """Arguments that a loss has written into, shapes of tensors that it edits behind autograd, own tensors it learns.

    `own` are the tensors by their paths, and whether each is a parameter that nothing registers.
    """

    written: list[str]
    edited: list[tuple[int, ...]]
    own: dict[str, bool]


@measure(passes=1)
def edits(passed: Pass, term: LossTerm, recorded: dict[str, Any]) -> Edits:
    """Keep what the loss is given, and what autograd keeps for its backward pass; compare both afterwards."""
    target = tree_map(passed.batch.target, lambda _, tensor: tensor.clone())
    for path, tensor in dense_leaves(target):  # labels of the step itself have been written into already
        if not tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor >= 0).all()):
            turned = (torch.arange(tensor.numel()) % (int(tensor.max()) + 1)).to(tensor).view(tensor.shape)
            target = replace_leaf(target, path, turned) if not path.endswith("offsets") else target
    before = [(path, tensor, tensor.clone()) for path, tensor in dense_leaves(target)]
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append((tensor, tensor.detach().clone()))
        return tensor

    leaves = tree_map(recorded, lambda _, t: t.clone().requires_grad_() if t.is_floating_point() else t)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = term.compute(tree_map(leaves, lambda _, t: t + 0 if t.is_floating_point() else t), target)[0]
    known = {id(tensor) for _, tensor in dense_leaves(leaves)}
    known |= set() if term.module is None else {id(parameter) for parameter in term.module.parameters()}
    variables = {id(v): v for node in iter_nodes([total.grad_fn]) if (v := getattr(node, "variable", None)) is not None}
    paths = {id(tensor): path for path, tensor in iter_reachable(term.module, Tensor)}
    own = {paths.get(i, "?"): isinstance(v, nn.Parameter) for i, v in variables.items() if i not in known}
    written = [path for path, tensor, old in before if _differ(tensor, old)]
    return Edits(written, [tuple(old.shape) for new, old in kept if _differ(new.detach(), old)], own)


def _differ(after: Tensor, before: Tensor) -> bool:
    return not bool(torch.isclose(after, before, rtol=0.0, atol=0.0, equal_nan=True).all())


_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda target: target,
    "log": lambda target: target.clamp(min=1e-30).log(),
    "logit": lambda target: target.double().clamp(1e-12, 1 - 1e-12).logit().to(target),
}
_SURE_SCORE = 30.0


class Aim(NamedTuple):
    """Output and the numbers that it should reach, and what the loss makes of them.

    `is_least`: no step from them, or from a function of them, lowers the loss. `towards` is the correlation of a step
    with the way there, `is_one_slope` tells that all elements have one gradient, whose errors differ. `growth` is how
    many times the gradient of errors of 40 is that of errors of 4.
    """

    path: str
    target_path: str
    is_of_codes: bool
    is_least: bool
    towards: float
    is_one_slope: bool
    is_finite: bool
    growth: float
    is_beside_scores: bool


@measure(passes=30)
def aims(passed: Pass, term: LossTerm, recorded: dict[str, Any], matched: list[Matched]) -> list[Aim]:
    """Put targets in place of outputs, or logarithms and logits of them, and take steps away from them."""
    target = passed.batch.target
    goals = {path: (wanted, mask, "") for path, (wanted, mask) in term.wanted.items() if path in recorded}
    for slope, path, wanted in matched:
        if slope.path not in goals and _is_read_alone(term, recorded, target, slope, path, wanted):
            goals[slope.path] = wanted, torch.ones_like(wanted, dtype=torch.bool), path
    found = []
    for path, (wanted, mask, target_path) in goals.items():
        plain, is_of_codes = recorded[path], path in term.wanted

        def place(output: Tensor, path: str = path, mask: Tensor = mask, plain: Tensor = plain) -> dict[str, Any]:
            return {**recorded, path: torch.where(mask, output.to(plain), plain)}

        links = [*_LINKS.values()][: 1 if is_of_codes else None]
        is_least = any(_is_least(term, place, link(wanted), path, target) for link in links)
        towards = math.nan
        for start in (torch.zeros_like(wanted), draw(wanted)):
            step = -gradients_at(term, place(start), target)[path]
            if math.isnan(towards):
                towards = correlate(step[mask], (wanted - start).to(step)[mask])
        slopes = [gradients_at(term, place(wanted + size * draw(wanted)), target)[path] for size in (1.0, 4.0, 40.0)]
        rows = slopes[0].flatten(1)
        spread, size = float((rows.amax(1) - rows.amin(1)).max()), float(rows.abs().max())
        near, far = (float(each.nan_to_num().abs().sum()) for each in slopes[1:])
        exact = gradients_at(term, place(wanted), target)[path]
        scored = any(
            t.ndim == plain.ndim and t.shape[:-1] == plain.shape[:-1] for k, t in recorded.items() if k != path
        )
        is_peaks = _is_of_peaks(term, place, wanted, target)
        found.append(
            Aim(
                path,
                target_path,
                is_of_codes,
                is_least or is_peaks,
                towards,
                rows.shape[1] >= 8 and size > 0 and spread <= 1e-9 * size,
                bool(exact.isfinite().all()),
                far / near if near > 0 else 0.0,
                scored,
            )
        )
    if not found:
        raise NotApplicableError("no targets of numbers")
    return found


def _is_read_alone(term: LossTerm, recorded: Outputs, target: Any, slope: Slope, path: str, wanted: Tensor) -> bool:
    """Return True if the loss reads the numbers of a target, and no labels beside them."""
    drawn = {**recorded, slope.path: wanted.roll(1, -1).to(slope.output)}
    value = sum_at(term, drawn, target)
    others = [(p, t) for p, t in dense_leaves(target) if p != path and not t.is_floating_point() and t.ndim]
    changed = [sum_at(term, drawn, replace_leaf(target, p, t.roll(1, 0))) for p, t in others if "offsets" not in p]
    return sum_at(term, drawn, replace_leaf(target, path, 2 * wanted)) != value and all(v == value for v in changed)


def _is_least(term: LossTerm, place: Callable[[Tensor], Any], best: Tensor, path: str, target: Any) -> bool:
    """Return True if neither random steps from an output nor steps against its gradient lower the loss."""
    least, gradient = sum_at(term, place(best), target), gradients_at(term, place(best), target)[path].nan_to_num()
    slope, noise = gradient / max(float(gradient.abs().max()), 1e-30), draw(best)
    steps = [-best, best, 0.5 * noise, -0.5 * noise, *(-size * slope for size in (0.001, 0.01, 0.5))]
    away = [value for step in steps if math.isfinite(value := sum_at(term, place(best + step), target))]
    scale = max(abs(value) for value in (least, *away))
    return math.isfinite(least) and all(least <= value + 1e-6 * scale for value in away)


def _is_of_peaks(term: LossTerm, place: Callable[[Tensor], Any], wanted: Tensor, target: Any) -> bool:
    """Return True if all but the value 1 of a target is background: scores of its peaks alone have next to no loss."""
    is_peak = wanted == 1
    scores = torch.where(is_peak, _SURE_SCORE, -_SURE_SCORE).to(wanted)
    at_peaks, at_zero = (sum_at(term, place(value), target) for value in (scores, 0 * scores))
    return bool(is_peak.any()) and 0 <= at_peaks <= 1e-3 * at_zero


def correlate(first: Tensor, second: Tensor) -> float:
    """Compute the correlation of two tensors of one shape; NaN if one is constant."""
    rows = torch.stack([first.flatten(), second.flatten()]).double()
    return float(torch.corrcoef(rows)[0, 1]) if rows.shape[1] > 1 else math.nan


class Pairs(NamedTuple):
    """Losses of pairs whose rows are chosen: `apart` are rows at right angles, with the partner of each further object.

    `alike`, `twice` and `long` are equal rows, of as many pairs, twice as many, and 10,000 times the length. `halved`
    and `doubled` are rows at right angles of other lengths, `drawn` and `exchanged` drawn rows and their sides turned.
    """

    apart: list[float]
    alike: float
    twice: float
    long: float
    halved: float
    doubled: float
    drawn: float
    exchanged: float
    has_free_lengths: bool
    is_of_views: bool

    @property
    def softmax(self) -> float | None:
        """Temperature of a softmax of similarities; None for a loss of another kind.

        Equal rows, of which none is nearer, have the logarithm of their number. Orthogonal partners have
        ln(1 + K exp(-1 / t)) for K negatives and a temperature of t.
        """
        if not any(math.isclose(self.alike, math.log(number), rel_tol=1e-6) for number in (NUM, 2 * NUM - 1, 2 * NUM)):
            return None
        ratio = math.expm1(self.apart[0]) / math.expm1(self.alike)
        return math.inf if ratio >= 1 else 0.0 if ratio <= 0 else -1 / math.log(ratio)


@measure(passes=20)
def pairs(term: LossTerm, recorded: dict[str, Any]) -> Pairs:
    """Put chosen rows in place of the embeddings of both sides."""
    rows = [tensor for _, tensor in dense_leaves(recorded)]
    if not term.is_of_pairs or len(recorded) < 2 or any(row.ndim != 2 for row in rows):
        raise NotApplicableError("no loss of pairs")
    names = list(recorded)

    def value(same: Tensor, last: Tensor) -> float:
        return sum_at(term, {**dict.fromkeys(names, same), names[-1]: last}, {}) / len(same)

    is_of_views = len(names) == 2 and all(row.shape == rows[0].shape for row in rows) and term.are_all_learnt
    return _choose_rows(value, _WIDTH, has_free_lengths=not all(map(_have_one_length, rows)), is_of_views=is_of_views)


@measure(passes=5)  # type: ignore[no-redef]
def pairs(subject: Subject, passed: Pass, slopes: list[Slope]) -> Pairs:  # noqa: F811 - of a program
    """Put chosen rows in place of two outputs of one shape, of a loss that reads nothing else."""
    names = [slope.path for slope in slopes]
    rows = [slope.output for slope in slopes]
    others = [t for path, t in dense_leaves(passed.outputs) if path not in names and t.numel() > 1]
    if len(rows) != 2 or others or any(True for _ in dense_leaves(passed.batch.target)):
        raise NotApplicableError("no loss of pairs")
    if any(row.ndim != 2 or row.shape != rows[0].shape for row in rows) or rows[0].shape[1] in _LIKE_NUMBERS:
        raise NotApplicableError("no loss of pairs")

    def value(same: Tensor, last: Tensor) -> float:
        chosen = {names[0]: same.to(rows[0].device), names[1]: last.to(rows[0].device)}
        with torch.no_grad():
            return float(value_of(subject, passed, chosen))

    return _choose_rows(
        value, rows[0].shape[1], has_free_lengths=not all(map(_have_one_length, rows)), is_of_views=True
    )


def _choose_rows(
    value: Callable[[Tensor, Tensor], float], width: int, *, has_free_lengths: bool, is_of_views: bool
) -> Pairs:
    """Compute a loss of rows of a width, and of their partners, that are at right angles, equal or drawn."""
    eye, ones = torch.eye(NUM, width, dtype=torch.float64), torch.ones(NUM, width, dtype=torch.float64)
    apart = [value(eye, eye.roll(shift, 0)) for shift in range(NUM)]
    alike, twice, long = (value(each, each) for each in (ones, torch.cat((ones, ones)), LONG * ones))
    first, second = draw(torch.empty(2, NUM, width, dtype=torch.float64))
    sides = value(first, second), value(second, first)
    halved, doubled = (value(factor * eye, factor * eye) for factor in (0.5, 2.0))
    return Pairs(apart, alike, twice, long, halved, doubled, *sides, has_free_lengths, is_of_views)


def _have_one_length(rows: Tensor) -> bool:
    lengths = rows.double().norm(dim=1)
    return bool(torch.isclose(lengths, lengths.mean(), rtol=1e-3).all())
