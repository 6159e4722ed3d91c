"""Backward passes that are not those of the forward pass: functions that users write, and draws that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from sightline.contract.pytree import tree_map
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.autograd_graph import get_node_name, iter_nodes
from sightline.doctor.evidence import measure
from sightline.doctor.forms.form import Batch
from sightline.doctor.subject import Pass, Subject
from sightline.instrument import replace_function
from sightline.instrument.random_state import seed_all

_NORMAL = "Normal"
"""Name of the node of `torch.normal`, whose gradient is 0."""
_MAX_CLASSES, _NUM_DRAWS = 4, 2
_STEPS = (1e-5, 1e-6)
_SMOOTH, _MAX_ERROR, _MIN_CHANGE, _MAX_SHARE = 1e-3, 1e-2, 1e-9, 1e-4
Function = Callable[..., Any]


class WrongSlope(NamedTuple):
    """Autograd function whose backward pass gives another slope than finite differences do, in float64."""

    name: str
    given: float
    measured: float


@measure(passes=6)
def wrong_slopes(subject: Subject, passed: Pass) -> list[WrongSlope]:
    """Compare the functions of the loss's graph; left out are declared surrogates, and what is meant to differ.

    That are functions that return their input (gradient reversal), that are constant in steps, or whose backward pass
    hands the gradient on as it is (straight-through). Where a function of each element is constant, as beyond a bound,
    a gradient may lead back into its range. A function may be given numbers that the program makes of its other
    arguments: what differs alone counts only where the slope of the whole loss is wrong, too.
    """
    kinds = dict.fromkeys(getattr(node, "_forward_cls", None) for node in iter_nodes([passed.value.grad_fn]))
    own = [kind for kind in kinds if kind is not None and getattr(kind, "surrogate_gradient", False) is not True]
    if not own:
        raise NotApplicableError("no backward pass of the user's own")
    found = []
    for kind in own[:_MAX_CLASSES]:
        with _first_call(kind) as calls:
            subject.run(subject.copy("train"), passed.batch)
        error = attempt(kind.__name__, _find_error, {"function": kind.apply, "args": calls[0]}) if calls else None
        if error is not None and not isinstance(error, MissingError):  # float64 does not suit every function
            found.append(WrongSlope(kind.__name__, *error))
    if found and attempt("slope", _is_loss_wrong, {"subject": subject, "batch": passed.batch}) is not True:
        return []
    return found


def _is_loss_wrong(subject: Subject, batch: Batch) -> bool:
    """Return True where backward gives another slope of the loss along its parameters than differences, in float64."""
    model = subject.copy("train").double()
    batch = tree_map(batch, lambda _, t: t.double() if t.is_floating_point() else t)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    lines = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) * p.abs().mean() for p in parameters]

    def compute() -> Tensor:
        seed_all(0)
        return subject.run(model, batch).value

    def measure_slope(step: float) -> float:
        ends = []
        for sign in (1.0, -2.0):
            with torch.no_grad():
                torch._foreach_add_(parameters, lines, alpha=sign * step)
            ends.append(float(compute()))
        with torch.no_grad():
            torch._foreach_add_(parameters, lines, alpha=step)
        return (ends[0] - ends[1]) / (2 * step)

    gradients = torch.autograd.grad(compute(), parameters, allow_unused=True)
    given = sum(float((g * line).sum()) for g, line in zip(gradients, lines, strict=True) if g is not None)
    slopes = [measure_slope(step) for step in _STEPS]
    return abs(given - slopes[1]) > max(_MAX_SHARE * abs(given), 10 * abs(slopes[0] - slopes[1]))


@contextmanager
def _first_call(kind: Any) -> Iterator[list[tuple[Any, ...]]]:
    """Context that collects copies of the arguments of the calls of an autograd function."""
    calls: list[tuple[Any, ...]] = []
    original, is_own = kind.apply, "apply" in vars(kind)

    def apply(*args: Any) -> Any:
        calls.append(tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args))
        return original(*args)

    kind.apply = staticmethod(apply)
    try:
        yield calls
    finally:
        if is_own:
            kind.apply = original
        else:
            del kind.apply


def _find_error(function: Function, args: tuple[Any, ...]) -> tuple[float, float] | None:
    """Return the slope that backward gives, and that of finite differences, if they differ in all draws."""
    generator = torch.Generator().manual_seed(0)
    doubled = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    places = [place for place, a in enumerate(doubled) if isinstance(a, Tensor) and a.is_floating_point()]
    output = function(*doubled)
    if not isinstance(output, Tensor) or any(
        output.shape == doubled[place].shape and torch.equal(output, doubled[place]) for place in places
    ):
        return None

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    errors: dict[int, list[tuple[float, float]]] = {place: [] for place in places}
    for _ in range(_NUM_DRAWS):
        ways = draw(output)
        leaves = [a.clone().requires_grad_() if place in places else a for place, a in enumerate(doubled)]
        gradients = torch.autograd.grad(
            (function(*leaves) * ways).sum(), [leaves[place] for place in places], allow_unused=True
        )
        for place, gradient in zip(places, gradients, strict=True):
            line = _follow_moving(function, doubled, place, draw(doubled[place]))
            slopes = [_measure_slope(function, doubled, place, line * step, ways) / step for step in _STEPS]
            if abs(slopes[0]) < _MIN_CHANGE or (gradient is not None and torch.equal(gradient, ways)):
                return None  # constant in steps, or straight-through
            if gradient is None or abs(slopes[0] - slopes[1]) > _SMOOTH * abs(slopes[0]):
                continue
            slope = float((gradient * line).sum())
            if abs(slope - slopes[0]) > _MAX_ERROR * max(abs(slope), abs(slopes[0])):
                errors[place].append((slope, slopes[0]))
    return next((found[0] for found in errors.values() if len(found) == _NUM_DRAWS), None)


def _follow_moving(function: Function, args: list[Any], place: int, line: Tensor) -> Tensor:
    """Return a line without the elements at which an output of the same shape stays the same."""
    ends = [function(*[a + step * line if at == place else a for at, a in enumerate(args)]) for step in (0.0, *_STEPS)]
    if ends[0].shape != line.shape:
        return line
    return line * ((ends[1] != ends[0]) | (ends[2] != ends[0]))


def _measure_slope(function: Function, args: list[Any], place: int, step: Tensor, ways: Tensor) -> float:
    high, low = (
        function(*[a + sign * step if at == place else a for at, a in enumerate(args)]) for sign in (1.0, -1.0)
    )
    return float(((high - low) * ways).sum()) / 2


class CutDraw(NamedTuple):
    """Call that draws numbers which move the loss, from parameters that want a gradient and get none through them."""

    call: str
    instead: str


@measure(passes=1)
def cut_draws(subject: Subject, passed: Pass) -> list[CutDraw]:
    """List the draws through which no gradient comes although one could.

    Left out are distributions whose `log_prob` is asked in the same step: the score function is another way to train
    them.
    """
    with _recorded() as record:
        value = subject.run(subject.copy("train"), passed.batch).value
    nodes = {get_node_name(node) for node in iter_nodes([passed.value.grad_fn])}
    cut = [CutDraw("torch.normal(mean, std)", "mean + std * torch.randn_like(std)")] if _NORMAL in nodes else []
    if not record.draws and not cut:
        raise NotApplicableError("no draw from a distribution of trained parameters")
    leaves = [leaf for distribution, leaf in record.draws if id(distribution) not in record.scored]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True) if leaves and value.requires_grad else ()
    moving = {id(leaf) for leaf, slope in zip(leaves, gradients, strict=False) if slope is not None and slope.any()}
    names = dict.fromkeys(type(distribution).__name__ for distribution, leaf in record.draws if id(leaf) in moving)
    return [*(CutDraw(f"{name}(...).sample()", f"{name}(...).rsample()") for name in names), *cut]


class _Record(NamedTuple):
    """Distributions with what they drew, and by their ids those whose `log_prob` was asked."""

    draws: list[tuple[Distribution, Tensor]]
    scored: dict[int, Distribution]


@contextmanager
def _recorded() -> Iterator[_Record]:
    """Context in which draws by `sample` are leaves that want a gradient."""
    record = _Record([], {})
    with ExitStack() as stack:
        for kind in _list_kinds(Distribution):
            for name, run in (("sample", _sample), ("log_prob", _score)):
                if name in vars(kind):
                    stack.enter_context(replace_function(kind, name, partial(run, record)))
        yield record


def _list_kinds(kind: type[Distribution]) -> Iterator[type[Distribution]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _list_kinds(derived)


def _sample(record: _Record, original: Callable[..., Any], self: Distribution, *arguments: Any, **named: Any) -> Any:
    drawn = original(self, *arguments, **named)
    wants = any(isinstance(value, Tensor) and value.requires_grad for value in vars(self).values())
    if not (self.has_rsample and wants and torch.is_grad_enabled() and isinstance(drawn, Tensor)):
        return drawn
    leaf = drawn.detach().requires_grad_()
    record.draws.append((self, leaf))
    return leaf.clone()  # of which the program may change elements


def _score(record: _Record, original: Callable[..., Any], self: Distribution, *arguments: Any, **named: Any) -> Any:
    record.scored[id(self)] = self
    return original(self, *arguments, **named)
