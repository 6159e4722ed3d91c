"""Outputs in place of the network's: which class each place is pulled to, confident scores, the best free outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.autograd_graph import last_operation
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.subject import Pass, Subject, replace_leaf
from sightline.instrument.random_state import seed_all
from sightline.instrument.work import WorkCounter

_MIN_PLACES = 8
_SCORES = (0.01, 4.0, 30.0, 1000.0)
_MAX_STEPS, _MAX_S = 150, 0.6
"""Steps of an optimisation of outputs, and what they may take a usual processor, as their work is counted."""
_SHIFTS = (0, 1, -1)
_MAX_TURNED = 0.1
"""Share of the distance to a target, as it is, up to which outputs are a target with samples along another axis."""


def value_of(subject: Subject, passed: Pass, outputs: dict[str, Tensor], target: object = None) -> Tensor:
    """Compute the loss with some outputs, by path, in place of the network's."""
    seed_all(0)
    replaced = tree_map(passed.outputs, lambda path, t: outputs.get(path, t.detach()))
    return subject.evaluate(passed.model, replaced, passed.batch.target if target is None else target)


def set_gradients(value: Tensor, leaves: Iterable[Tensor]) -> None:
    """Set the gradients of a loss at leaves alone: what else it comes from, such as a kept pass, stays as it is."""
    leaves = [*leaves]
    if value.requires_grad:
        found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
        for leaf, gradient in zip(leaves, found, strict=True):
            leaf.grad = gradient


@measure(passes=0.5)
def slopes(subject: Subject, passed: Pass) -> list[Slope]:
    """Gradient of the loss at each output by itself: without that which comes through outputs computed from it."""
    outputs = {path: t.detach().clone().requires_grad_() for path, t in dense_leaves(passed.outputs) if t.requires_grad}
    value = value_of(subject, passed, dict(outputs))
    is_function = bool(outputs) and value.requires_grad
    gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True) if is_function else ()
    pairs = zip(outputs.items(), gradients, strict=is_function)
    found = [Slope(path, output.detach(), gradient) for (path, output), gradient in pairs if gradient is not None]
    if not found:
        raise LeftOutError("the loss is not a function of outputs")
    return found


class Labelled(NamedTuple):
    """Output with a class wanted at each place, and the gradient there, its classes last.

    `is_counted` are places with a gradient; `pulled` and `pushed` the classes that it raises and lowers most. `axis` is
    that of the classes in the output, None for one score a place. `shift` is how many places later along the last axis
    the loss finds the label of a place: 1 in a language model whose loss shifts inside.
    """

    slope: Slope
    target_path: str
    axis: int | None
    gradient: Tensor
    wanted: Tensor
    shift: int

    @property
    def is_counted(self) -> Tensor:
        """Places with a gradient whose label is a class."""
        is_class = (self.wanted >= 0) & (self.wanted < self.gradient.shape[-1])
        return (self.gradient.abs().sum(-1) > 0) & is_class

    @property
    def pulled(self) -> Tensor:
        """Class that is raised most, at each counted place."""
        return self.gradient.argmin(-1)[self.is_counted]

    @property
    def pushed(self) -> Tensor:
        """Class that is lowered most, at each counted place."""
        return self.gradient.argmax(-1)[self.is_counted]

    @property
    def labels(self) -> Tensor:
        """Label of each counted place."""
        return self.wanted[self.is_counted]

    @property
    def agreement(self) -> tuple[float, float]:
        """Share of the counted places whose label is the class pulled up, and the class pushed down."""
        labels = self.labels
        return tuple(float((each == labels).double().mean()) for each in (self.pulled, self.pushed))  # type: ignore[return-value]

    @property
    def pushed_in_each(self) -> float:
        """Mean over the labels of the share of their places at which the labelled class is pushed down.

        Where 0 is the background, which has no score of its own, most places agree with it by chance.
        """
        labels = self.labels
        is_pushed = (self.pushed == labels).double()
        return float(torch.stack([is_pushed[labels == label].mean() for label in labels.unique()]).mean())

    def place(self, right: float, others: float, *, is_wrong: bool = False) -> Tensor:
        """Make scores that are `right` for the wanted class, or the next one, at each place, and `others` elsewhere."""
        num = self.gradient.shape[-1]
        wanted = (self.wanted.clamp(0, num - 1) + is_wrong) % num
        if self.axis is None:
            scores = torch.where(wanted == 1, right, others)
        else:
            hot = torch.nn.functional.one_hot(wanted, num) == 1
            scores = torch.where(hot, right, others)
            scores = scores if scores.ndim != self.slope.output.ndim else scores.movedim(-1, self.axis)
        return scores.reshape(self.slope.output.shape).to(self.slope.output)


@measure()
def labelled(passed: Pass, slopes: list[Slope]) -> list[Labelled]:
    """Find which labels of the target belong to which output, and how the loss shifts them."""
    found, num_few = [], 0
    for slope in slopes:
        of_output = [
            each for path, target in dense_leaves(passed.batch.target) for each in _list_candidates(slope, path, target)
        ]
        candidates = [e for e in of_output if e.is_counted.sum() >= _MIN_PLACES and len(e.labels.unique()) > 1]
        num_few += len(of_output) - len(candidates)
        if candidates:
            found.append(max(candidates, key=lambda each: max(each.agreement)))
    if not found and num_few:
        raise LeftOutError(f"fewer than {_MIN_PLACES} labels in the first batch, or one class alone")
    if not found:
        raise NotApplicableError("no labels of classes")
    return found


def _list_candidates(slope: Slope, path: str, target: Tensor) -> Iterator[Labelled]:
    if not target.numel():
        return
    output, gradient = slope.output, slope.gradient
    values = target.unique()
    is_binary = len(values) == 2 and bool(((values == 0) | (values == 1)).all())
    if is_binary and output.numel() == target.numel() and output.squeeze().shape == target.squeeze().shape:
        flat = gradient.reshape(target.shape)
        yield Labelled(slope, path, None, torch.stack((-flat, flat), -1), target.long(), 0)
    if target.is_floating_point() or target.dtype == torch.bool or output.ndim < 2:
        return
    if output.numel() == target.numel() and int(target.max()) == 0 > int(target.min()):  # an object, or background
        flat = gradient.reshape(target.shape)
        yield Labelled(slope, path, None, torch.stack((-flat, flat), -1), (target == 0).long(), 0)
    for axis in range(1, output.ndim):
        num, moved = output.shape[axis], gradient.movedim(axis, -1)
        is_flat = output.ndim == 2 and target.ndim > 1 and target.numel() == len(output)
        if num < 2 or int(target.max()) >= num or not (is_flat or moved.shape[:-1].numel() == target.numel()):
            continue
        if is_flat or moved.shape[:-1] == target.shape or target.squeeze().shape == moved.shape[:-1]:
            shape = target.shape if is_flat else moved.shape[:-1]
            wanted = target.reshape(shape).long()
            rows = moved.reshape(*shape, num)
            for shift in _SHIFTS if wanted.ndim == 2 else (0,):
                yield Labelled(slope, path, axis, rows, _shift(wanted, shift), shift)
            if wanted.ndim > 1 and shape[0] == shape[1]:  # outputs may have their steps first, of as many samples
                yield Labelled(slope, path, axis, rows, wanted.transpose(0, 1), 0)


def _shift(labels: Tensor, by: int) -> Tensor:
    """Give each place the label `by` places later; the ends have none."""
    if by == 0:
        return labels
    shifted = labels.roll(-by, -1)
    shifted[..., -by:] = -1
    if by < 0:
        shifted = labels.roll(-by, -1)
        shifted[..., :-by] = -1
    return shifted


class ConfidentLosses(NamedTuple):
    """Loss of right and of wrong scores that are ever more confident, by score, and of equal ones."""

    item: Labelled
    range: str
    right: dict[float, float]
    wrong: dict[float, float]
    equal: float

    def is_bounded(self) -> bool:
        """Return True if the loss has a limit for right and for wrong scores, and is none of directions alone."""
        size = abs(self.equal)
        ends = [abs(side[_SCORES[-1]] - side[_SCORES[-2]]) <= 1e-4 * size for side in (self.right, self.wrong)]
        return all(ends) and abs(self.right[_SCORES[0]] - self.right[_SCORES[-2]]) > 1e-3 * size


_RANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Sigmoid": lambda scores, axis: scores.sigmoid(),
    "Softmax": lambda scores, axis: scores.softmax(axis),
    "LogSoftmax": lambda scores, axis: scores.log_softmax(axis),
}
"""Functions that end in a model, and make its outputs of scores."""


SHARES = frozenset(_RANGES)
"""Last operations of models whose outputs are shares of classes."""
SIGNED = frozenset(("Convolution",))
"""Last operations of models whose outputs may have either sign, whatever those of one batch have.

Products of matrices are none: distances from prototypes are computed by them.
"""
_FUSED = ("DifferentiableGraph", "CompiledFunction")
"""Ends of names of nodes that stand for a whole function: of torch.jit, from its second run on, and torch.compile."""


@measure(passes=3)
def loss_of_confident_scores(subject: Subject, passed: Pass, labelled: list[Labelled]) -> list[ConfidentLosses]:
    """Compute the loss for right and wrong scores in place of an output, through the function that ends the model."""
    outputs = dict(dense_leaves(passed.outputs))
    found = []
    for item in labelled:
        if max(item.agreement) < 0.95:
            continue
        name, link = _name_range(outputs[item.slope.path], item.axis), _link(outputs[item.slope.path], item)

        def compute(size: float, item: Labelled = item, link: Callable[..., Tensor] = link, **options: bool) -> float:
            others = -size if item.axis is None else 0.0
            outputs = link(item.place(size, others, **options), item.axis or 0)
            with torch.no_grad():
                return float(value_of(subject, passed, {item.slope.path: outputs}))

        right = {score: compute(score) for score in _SCORES}
        wrong = {score: compute(score, is_wrong=True) for score in _SCORES}
        found.append(ConfidentLosses(item, name, right, wrong, compute(0.0)))
    if not found:
        raise NotApplicableError("classes do not follow labels")
    return found


class Squashed(NamedTuple):
    """Operation of a loss, the one `before` it that squashes scores, and what confident scores cost, if it was asked.

    A live loss shows its operations alone; of a loss that is asked, the first may be any.
    """

    operation: str
    before: str
    asked: ConfidentLosses | None = None


@measure()
def squashed(loss_of_confident_scores: list[ConfidentLosses], slopes: list[Slope]) -> list[Squashed]:
    """List what squashes the scores of a loss of one output."""
    if len(slopes) > 1:
        raise NotApplicableError("a loss of several outputs")
    return [Squashed("", each.range, each) for each in loss_of_confident_scores]


def _name_range(output: Tensor, axis: int | None) -> str:
    """Name the operation that an output ends in: by its node, or by its values if that stands for a whole function.

    Values do not tell a sigmoid from scores that happen to be between 0 and 1.
    """
    name, values = last_operation(output), output.detach().double()
    if axis is not None and name.endswith(_FUSED):
        for of_classes, shares in (("Softmax", values), ("LogSoftmax", values.exp())):
            if bool((shares >= 0).all()) and bool(((shares.sum(axis) - 1).abs() < 1e-4).all()):
                return of_classes
    return name


class Free(NamedTuple):
    """Best free outputs, by path, their loss, and whether this was shown to have converged."""

    start: float
    best: float
    outputs: dict[str, Tensor]
    is_converged: bool
    growth: float
    """How many times larger the gain is at ten times the way, for a loss that has no least value."""


@measure(passes=30)
def free(subject: Subject, passed: Pass, slopes: list[Slope]) -> Free:
    """Optimise the outputs of the batch without a network: each number by itself, in any unit.

    A number without axes beside them stays: the model has reduced it from its samples, as a term of the loss.
    """
    slopes = [slope for slope in slopes if slope.output.ndim]
    if sum(slope.output.numel() for slope in slopes) < 2:
        raise NotApplicableError("the output is one number")
    outputs = {slope.path: slope.output.clone().requires_grad_() for slope in slopes}
    optimizer = torch.optim.Rprop(outputs.values(), lr=0.01, step_sizes=(1e-7, 1e6))
    values: list[float] = []
    work = WorkCounter()
    while len(values) < min(_MAX_STEPS, max(1, _MAX_S / max(3 * work.nominal_s, 1e-9))):
        optimizer.zero_grad()
        try:
            with contextlib.nullcontext() if values else work:
                value = value_of(subject, passed, dict(outputs))
        except (RuntimeError, ValueError) as error:
            if not values:
                raise
            raise LeftOutError("the loss refuses outputs beyond their range, as of shares") from error
        values.append(float(value))
        if not value.requires_grad or not math.isfinite(values[-1]):
            break
        set_gradients(value, outputs.values())
        optimizer.step()
    found = {path: tensor.detach() for path, tensor in outputs.items()}
    span = max(values[0] - values[-1], 1e-12)
    recent = values[-1 - len(values) // 5]
    is_converged = len(values) == _MAX_STEPS and abs(recent - values[-1]) <= 2e-3 * span
    growth = 0.0 if is_converged else _measure_growth(subject, passed, slopes, found)
    return Free(values[0], values[-1], found, is_converged, growth)


def _measure_growth(subject: Subject, passed: Pass, slopes: list[Slope], found: dict[str, Tensor]) -> float:
    """Compare the gain at 10 and at 100 times the spread of the outputs, along the way to the best ones."""
    ways = {slope.path: (found[slope.path] - slope.output).nan_to_num() for slope in slopes}
    length = max(float(way.abs().max()) for way in ways.values()) or 1.0
    start, *gains = (
        float(value_of(subject, passed, {s.path: s.output + ways[s.path] * (far / length) for s in slopes}))
        for far in (0.0, 10.0, 30.0)
    )
    near, far = (start - value for value in gains)
    return far / near if near > 0 and math.isfinite(near) and far > abs(start) else 0.0


class Addend(NamedTuple):
    """Addend of the loss, by the number of its place, and its gradient at each labelled output.

    `even` are the same where all classes have equal scores: an addend that draws scores to one another, as that of
    label smoothing, lowers no class there.
    """

    place: int
    items: list[Labelled]
    even: list[Labelled]


@measure(passes=2)
def addends(subject: Subject, passed: Pass, labelled: list[Labelled]) -> list[Addend]:
    """Split the loss at its outermost sums, and find which class each addend raises and lowers."""
    outputs = dict(dense_leaves(passed.outputs))
    even = {
        item.slope.path: _link(outputs[item.slope.path], item)(item.place(0.0, 0.0), item.axis or 0).requires_grad_()
        for item in labelled
    }
    at_outputs = _split_addends(passed.value, outputs, labelled)
    at_even = _split_addends(value_of(subject, passed, dict(even)), even, labelled)
    if len(at_outputs) < 2 or len(at_even) != len(at_outputs):
        raise NotApplicableError("the loss is no sum of several")
    pairs = zip(at_outputs, at_even, strict=True)
    return [Addend(place, _list_counted(own), other) for place, (own, other) in enumerate(pairs)]


def _list_counted(items: list[Labelled]) -> list[Labelled]:
    return [item for item in items if item.is_counted.sum() >= _MIN_PLACES]


def _link(output: Tensor, item: Labelled) -> Callable[[Tensor, int], Tensor]:
    """Return the function of scores that an output ends in."""
    return _RANGES.get(_name_range(output, item.axis), lambda scores, axis: scores)


def _split_addends(value: Tensor, outputs: Mapping[str, Tensor], labelled: list[Labelled]) -> list[list[Labelled]]:
    """Differentiate each addend of a loss at the labelled outputs."""
    found = []
    for edge, sign in _list_edges(value.grad_fn, 1.0):
        one = torch.full((), sign, dtype=value.dtype, device=value.device)
        tensors = [outputs[item.slope.path] for item in labelled]
        gradients = torch.autograd.grad([edge], tensors, [one], retain_graph=True, allow_unused=True)
        items = []
        for item, gradient in zip(labelled, gradients, strict=True):
            if gradient is None:
                continue
            moved = (
                torch.stack((-gradient, gradient), -1) if item.axis is None else gradient.movedim(item.axis, -1)
            ).reshape(item.gradient.shape)
            items.append(item._replace(gradient=moved))
        found.append(items)
    return found


def _list_edges(node: object, sign: float) -> Iterator[tuple[torch.autograd.graph.GradientEdge, float]]:
    """List the nodes of numbers whose sum is the loss, each with its sign."""
    name = type(node).__name__
    if name in ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0"):
        yield from _list_edges(node.next_functions[0][0], sign)  # type: ignore[attr-defined]
    elif name in ("AddBackward0", "SubBackward0") and not node._input_metadata[0].shape:  # type: ignore[attr-defined]
        for place, (parent, _) in enumerate(node.next_functions):  # type: ignore[attr-defined]
            if parent is not None and not parent._input_metadata[0].shape:
                yield from _list_edges(parent, -sign if place and name == "SubBackward0" else sign)
    elif node is not None:
        yield torch.autograd.graph.GradientEdge(node, 0), sign  # type: ignore[arg-type]


@measure(passes=1)
def class_weights(subject: Subject, passed: Pass, labelled: list[Labelled]) -> list[tuple[Labelled, Tensor, Tensor]]:
    """Gradient of the wanted class at equal scores, by class, and how many labels each class has."""
    found = []
    for item in labelled:
        if item.axis is None or item.agreement[0] < 0.95:
            continue
        scores = torch.zeros_like(item.slope.output).requires_grad_()
        (gradient,) = torch.autograd.grad(value_of(subject, passed, {item.slope.path: scores}), [scores])
        moved = gradient.movedim(item.axis, -1).reshape(item.gradient.shape)
        labels = item.labels
        own = moved[item.is_counted].gather(-1, labels[:, None])[:, 0].abs().double()
        counts = labels.bincount(minlength=moved.shape[-1]).double()
        means = own.new_zeros(len(counts)).index_add_(0, labels, own) / counts
        spread = (own - means[labels]).abs() / means[labels]
        if float(spread.max()) < 0.02:  # one weight for each class
            seen = counts > 0
            found.append((item, means[seen], counts[seen]))
    if not found:
        raise NotApplicableError("no weight by class")
    return found


class Seen(NamedTuple):
    """Whether outputs of a place depend on the token of the place itself, and on later ones."""

    own: bool
    later: bool


@measure(passes=2)
def seen_tokens(subject: Subject, labelled: list[Labelled]) -> dict[str, Seen]:
    """Change the first token of each integer input of rows of tokens, and their later half: which outputs change?"""
    inputs = subject.batches[0].inputs
    shapes = {item.wanted.shape for item in labelled if item.wanted.ndim == 2}
    tokens = [(p, t) for p, t in dense_leaves(inputs) if t.dtype == torch.long and t.shape in shapes]
    if not tokens:
        raise NotApplicableError("no tokens with a label each")
    model = subject.copy("eval")

    def run(changed: object) -> dict[str, Tensor]:
        seed_all(0)
        return dict(dense_leaves(subject.call(model, changed)))

    found = {}
    with torch.no_grad():
        before = run(inputs)
        for path, values in tokens:
            rows, num = values.shape
            each = [p for p, t in before.items() if t.numel() % (rows * num) == 0 and t.is_floating_point()]
            moves = []
            for changes, end in ((slice(0, 1), 1), (slice(num // 2, num), num // 2)):
                changed = values.clone()
                changed[:, changes] = values[:, changes].roll(1, 0)
                after = run(replace_leaf(inputs, path, changed))
                cuts = [[outputs[p].reshape(rows, num, -1)[:, :end] for outputs in (before, after)] for p in each]
                moves.append(not all(torch.allclose(old, new, atol=1e-6) for old, new in cuts))
            found[path] = Seen(*moves)
    return found


@measure(passes=1)
def certain_places(subject: Subject, passed: Pass, labelled: list[Labelled]) -> dict[str, tuple[float, float]]:
    """Compute the loss for scores of 8 at the labels, and for scores of 8 at the classes that are pulled up."""
    found = {}
    with torch.no_grad():
        for item in labelled:
            own, pulled = item.place(8.0, 0.0), item._replace(wanted=item.gradient.argmin(-1)).place(8.0, 0.0)
            values = [float(value_of(subject, passed, {item.slope.path: each})) for each in (own, pulled)]
            found[item.slope.path] = (values[0], values[1])
    return found


@measure(passes=1)
def best_numbers(
    subject: Subject, passed: Pass, slopes: list[Slope], free: Free
) -> list[tuple[str, Tensor, Tensor, float, float]]:
    """Best free outputs beside the target of their shape, flat, where both count; the loss at the target, and there."""
    if not free.is_converged:
        raise LeftOutError("best free outputs not reached")
    found = []
    for slope in slopes:
        for _, target in dense_leaves(passed.batch.target):
            is_match = target.is_floating_point() and target.squeeze().shape == slope.output.squeeze().shape
            if not is_match or target.numel() < _MIN_PLACES or len(target.unique()) < 4:
                continue
            counted = slope.gradient.flatten() != 0
            wanted = _bring_samples_first(target.reshape(slope.output.shape), free.outputs[slope.path])
            outputs = {**free.outputs, slope.path: wanted.to(slope.output)}
            at_target = float(value_of(subject, passed, outputs))
            best, wanted = free.outputs[slope.path].flatten(), wanted.flatten()
            if bool(counted.sum() >= _MIN_PLACES):
                pair = best[counted].double(), wanted[counted].double()
                found.append((slope.path, *pair, at_target, free.best))
    if not found:
        raise NotApplicableError("no target of numbers")
    return found


def _bring_samples_first(target: Tensor, best: Tensor) -> Tensor:
    """Turn a target of as many steps as samples where the outputs that it is compared with have the steps first."""
    if target.ndim < 2 or target.shape[0] != target.shape[1]:
        return target
    turned = target.transpose(0, 1)
    own, other = (float((best - each).abs().mean()) for each in (target, turned))
    return turned if other < _MAX_TURNED * own else target


_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda shares: shares.clamp(min=1e-12).log(),
    "logit": lambda shares: shares.double().clamp(1e-12, 1 - 1e-12).logit().to(shares),
    "": lambda shares: shares,
}
_FACTORS = tuple(2.0**power for power in range(-5, 4))
_NARROWED = 6
"""Temperatures that are tried at first, and how often the way to their neighbours is halved."""


class Shares(NamedTuple):
    """Addend that reads shares: its gradient at outputs made of them, over that at outputs made of other samples'."""

    path: str
    place: int
    least: float


@measure(passes=20)
def soft_targets(subject: Subject, passed: Pass, slopes: list[Slope]) -> list[Shares]:
    """Put the logarithms of target shares, by any temperature, in place of an output; ask each addend's gradient."""
    found = []
    for slope in slopes:
        for path, target in dense_leaves(passed.batch.target):
            is_like = target.ndim > 1 < slope.output.ndim and target.shape in (
                slope.output.shape,
                slope.output.flatten(1).shape,
            )
            if not is_like or not target.is_floating_point() or not _is_of_classes(slope, target, passed):
                continue
            other = replace_leaf(passed.batch.target, path, target.roll(1, 0))
            links = _LINKS.values() if bool((target >= 0).all()) else (_LINKS[""],)
            ask = partial(_ask_addends, subject, passed, slope)
            larger = replace_leaf(passed.batch.target, path, 2 * target)
            equal, *changed = (ask(target * 0, t) for t in (None, other, larger))
            for place, gradient in enumerate(equal):
                if gradient is None or any(torch.allclose(gradient, c[place], 1e-4, 1e-9) for c in changed):  # type: ignore[arg-type]
                    continue
                if int((gradient != 0).flatten(1).sum(1).max()) < 2:  # the value of one action, say
                    continue
                least = min(_find_least(ask, place, link(target)) for link in links)
                found.append(Shares(slope.path, place, least))
    if not found:
        raise NotApplicableError("no shares as targets")
    return found


def _is_of_classes(slope: Slope, target: Tensor, passed: Pass) -> bool:
    """Return True for shares of classes, and for scores of a teacher beside labels; hard labels have no finite best."""
    if bool((target >= 0).all()):
        is_hard = bool((target.amax(1) > 0.999).all())
        return float((target.sum(1) - 1).abs().max()) < 1e-3 and not is_hard
    others = [t for _, t in dense_leaves(passed.batch.target) if not t.is_floating_point()]
    return target.ndim == 2 and any(t.shape == target.shape[:1] and int(t.max()) < target.shape[1] for t in others)


def _find_least(ask: Callable[[Tensor, object], list[Tensor | None]], place: int, scores: Tensor) -> float:
    """Find the least gradient of an addend at scores times any factor, over that at the scores of other samples."""

    def compare(factor: float) -> float:
        own, null = (ask(outputs, None)[place] for outputs in (factor * scores, factor * scores.roll(1, 0)))
        return float(own.norm()) / max(float(null.norm()), 1e-12)  # type: ignore[union-attr]

    least, best = min((compare(factor), factor) for factor in _FACTORS)
    for halvings in range(1, _NARROWED):
        step = 2.0 ** (0.5**halvings)
        least, best = min((least, best), *((compare(factor), factor) for factor in (best / step, best * step)))
    return least


def _ask_addends(subject: Subject, passed: Pass, slope: Slope, outputs: Tensor, target: object) -> list[Tensor | None]:
    """Compute the gradient of each addend of the loss at outputs of our own."""
    leaf = outputs.to(slope.output).detach().reshape(slope.output.shape).clone().requires_grad_()
    value = value_of(subject, passed, {slope.path: leaf}, target)
    one = torch.ones((), dtype=value.dtype, device=value.device)
    edges = [edge for edge, _ in _list_edges(value.grad_fn, 1.0)]
    return [torch.autograd.grad([edge], [leaf], [one], retain_graph=True, allow_unused=True)[0] for edge in edges]
