"""Base class of search methods, and the driver that runs them: evaluations, progress and result.

Search problem: layers, choices, protected layers, and a budget of bytes.

Losses of policies: each policy is evaluated once, recorded, and counted for the search that requests it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import TypeIs

from sightline.contract.errors import ConfigError, DataError, RunError
from sightline.runs.run_directory import RunDirectory, read_lines
from sightline.workbench.compress.policy import (
    FP32,
    LayerCost,
    Policy,
    WeightFormat,
    lower_to_budget,
    policy_from_dict,
    policy_to_dict,
)

Levels: TypeAlias = tuple[int, ...]
"""Index into `choices` for each searched layer, in order."""


class Curvature(NamedTuple):
    """Curvature for searches by the Hessian: differentiable loss, parameters, and squared error of a choice."""

    loss_of: Callable[[], Tensor]
    parameters: Mapping[str, Tensor]
    error_of: Callable[[str, WeightFormat], float]


@dataclass(frozen=True)
class Problem:
    """Search problem: formats of layers (`choices`, fewest bits first) within `budget_bytes` by `bytes_of(policy)`.

    Policies contain every layer: `protected` layers with their given format, other `unused` layers with the first
    choice. Fewer bits must never need more bytes. `curvature` is called by searches that need it. `subject` identifies
    the weights and samples of the losses.
    """

    layers: tuple[LayerCost, ...]
    choices: tuple[WeightFormat, ...]
    bytes_of: Callable[[Policy], int]
    budget_bytes: int
    protected: Mapping[str, WeightFormat] = field(default_factory=dict)
    curvature: Callable[[], Curvature] | None = None
    unused: frozenset[str] = frozenset()
    subject: str = ""

    def __post_init__(self) -> None:
        bits = self.bits
        if not bits or list(bits) != sorted(set(bits)):
            raise ConfigError(f"bits: found {', '.join(map(str, bits)) or 'none'}; give each once, fewest first")
        if not self.searched_layers:
            raise ConfigError("protect: protects every layer; leave at least one to the search")

    def assert_feasible(self, *, base_bytes: int) -> None:
        """Raise ConfigError, with the smallest size and ratio, if the budget is below them."""
        smallest = self.bytes(self.lowest)
        if smallest > self.budget_bytes:
            ratio = np.ceil(1e5 * smallest / base_bytes) / 1e5
            raise ConfigError(
                f"budget: {self.budget_bytes:,} bytes are too few; the smallest policy, {self.choices[0]} and "
                f"{len(self.protected)} protected layers, takes {smallest:,} bytes, a ratio of {ratio:.5f}; raise the "
                "budget, or allow fewer bits"
            )

    @property
    def bits(self) -> tuple[int, ...]:
        return tuple(choice.bits for choice in self.choices)

    @cached_property
    def searched_layers(self) -> tuple[LayerCost, ...]:
        """The layers whose format a search chooses."""
        return tuple(layer for layer in self.layers if layer.name not in {*self.protected, *self.unused})

    @property
    def lowest(self) -> Levels:
        return (0,) * len(self.searched_layers)

    @property
    def highest(self) -> Levels:
        return (len(self.choices) - 1,) * len(self.searched_layers)

    @cached_property
    def float_policy(self) -> Policy:
        """The policy of the float model: every layer in float32."""
        return {layer.name: FP32 for layer in self.layers}

    def policy(self, levels: Sequence[int]) -> Policy:
        chosen = dict.fromkeys(self.unused, self.choices[0])
        chosen |= {layer.name: self.choices[level] for layer, level in zip(self.searched_layers, levels, strict=True)}
        return {layer.name: self.protected.get(layer.name) or chosen[layer.name] for layer in self.layers}

    def levels(self, policy: Policy) -> Levels:
        return tuple(self.choices.index(policy[layer.name]) for layer in self.searched_layers)

    def bytes(self, levels: Sequence[int]) -> int:
        return self.bytes_of(self.policy(levels))

    def fits_budget(self, levels: Sequence[int]) -> bool:
        return self.bytes(levels) <= self.budget_bytes

    def lower_to_budget(self, levels: Sequence[int]) -> Levels:
        """Lower the levels, from the last layer to the first, until they fit the budget."""
        return lower_to_budget(levels, self.fits_budget)

    def single_raises(self, policy: Policy) -> Iterator[tuple[str, Policy]]:
        """Iterate over (layer, policy) with that layer raised by one choice, for each raise within the budget."""
        for layer, level in zip(self.searched_layers, self.levels(policy), strict=True):
            if level + 1 < len(self.choices):
                raised = {**policy, layer.name: self.choices[level + 1]}
                if self.bytes_of(raised) <= self.budget_bytes:
                    yield layer.name, raised

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes (L, C) int64 that each choice of each searched layer adds to the lowest policy.

        A file's size is their sum, except for a few bytes of its header.
        """
        low, num = self.lowest, len(self.choices)
        rows = [[self.bytes((*low[:p], level, *low[p + 1 :])) for level in range(num)] for p in range(len(low))]
        return np.asarray(rows, dtype=np.int64) - self.bytes(low)

    @cached_property
    def uniform_level(self) -> int:
        """The highest level at which all searched layers together fit the budget; 0 if none does."""
        fitting = (
            level for level in range(len(self.choices)) if self.fits_budget((level,) * len(self.searched_layers))
        )
        return max(fitting, default=0)


class PolicyEvaluation(NamedTuple):
    """Loss of a policy, and the duration of its evaluation."""

    policy: Policy
    loss: float
    seconds: float


Record: TypeAlias = Callable[[PolicyEvaluation], None]


class EvaluationCache:
    """Cache of `loss_of` that all searches of a problem share; `known` are the evaluations of a record.

    `record` is called with each new evaluation before its loss is used, so that an interrupted search repeats none.
    """

    def __init__(
        self,
        loss_of: Callable[[Policy], float],
        *,
        known: Iterable[PolicyEvaluation] = (),
        record: Record | None = None,
    ) -> None:
        self._loss_of = loss_of
        self._record = record
        self._known = {_key(evaluation.policy): evaluation for evaluation in known}
        self.num_new = 0
        self.new_seconds = 0.0

    def get(self, policy: Policy) -> PolicyEvaluation:
        """Return the evaluation of a policy. Raises RunError, with the policy, for a loss that is not finite."""
        key = _key(policy)
        if key not in self._known:
            began = time.perf_counter()
            loss = float(self._loss_of(policy))
            if not math.isfinite(loss):
                choices = ", ".join(f"{name}: {choice}" for name, choice in list(policy.items())[:4])
                raise RunError(
                    f"the loss of a policy is {loss} ({choices}, ...); look for non-finite weights or outputs"
                )
            evaluated = PolicyEvaluation(dict(policy), loss, time.perf_counter() - began)
            if self._record is not None:
                self._record(evaluated)
            self._known[key] = evaluated
            self.num_new += 1
            self.new_seconds += evaluated.seconds
        return self._known[key]

    @property
    def all(self) -> tuple[PolicyEvaluation, ...]:
        """All evaluations, those of the record first."""
        return tuple(self._known.values())

    @property
    def mean_seconds(self) -> float:
        """Mean seconds of an evaluation so far; 0 before the first."""
        return sum(evaluation.seconds for evaluation in self._known.values()) / max(1, len(self._known))


def _key(policy: Policy) -> frozenset[Any]:
    return frozenset(policy.items())


def open_record(path: Path, *, subject: str, names: Sequence[str]) -> tuple[list[PolicyEvaluation], Record]:
    """Read a JSON-lines file of evaluations; return them, and a function that appends to the file.

    A truncated last line is dropped. `subject` identifies weights and data. Raises DataError, with the line, for
    another subject.
    """
    folder = RunDirectory(path.parent, is_writer=True)
    lines = read_lines(path) if path.exists() else []
    evaluations = []
    for number, line in enumerate(lines, start=1):
        if line.get("subject") != subject:
            raise DataError(
                f"{path}:{number}: contains losses of '{line.get('subject')}', this search evaluates '{subject}'; "
                "give another --out"
            )
        evaluations.append(_parse_evaluation(line, names, f"{path}:{number}"))
    if path.exists():
        folder.write_text(path.name, "".join(json.dumps(line) + "\n" for line in lines))

    def append(evaluation: PolicyEvaluation) -> None:
        line = {"subject": subject, **evaluation._asdict(), "policy": policy_to_dict(evaluation.policy)}
        folder.append_line(path.name, line)

    return evaluations, append


def _is_finite(value: object) -> TypeIs[float]:
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]


def _parse_evaluation(line: Mapping[str, Any], names: Sequence[str], location: str) -> PolicyEvaluation:
    loss, seconds, policy = line.get("loss"), line.get("seconds"), line.get("policy")
    if not (_is_finite(loss) and _is_finite(seconds) and seconds >= 0 and isinstance(policy, dict)):
        raise DataError(
            f"{location}: has the loss {str(loss)[:40]} and the seconds {str(seconds)[:40]}, where an evaluation "
            "records finite numbers and its policy; remove the line"
        )
    return PolicyEvaluation(policy_from_dict(policy, names, origin=location), float(loss), float(seconds))


RESERVED_EVALUATIONS = 20
"""Evaluations of every search reserved for the float model, the result, and filling the budget."""
MaxEvaluations = Annotated[int, Ge(2 * RESERVED_EVALUATIONS), Le(1_000_000)]
"""Largest number of different policies that a search evaluates, including cached ones of other searches."""


class SearchProgress(NamedTuple):
    """Progress of a search; `seconds_left` assumes all allowed evaluations, at their mean time so far."""

    num_asked: int
    at_most: int
    seconds_left: float


ProgressCallback: TypeAlias = Callable[[SearchProgress], None] | None


class SearchResult(NamedTuple):
    """Result of a search: `num_evaluated` counts different policies, `num_new` those that were not in the cache.

    `untried_raises` names layers that could be raised by one choice within the budget, but were not tried.
    """

    method: str
    policy: Policy
    loss: float
    bytes: int
    num_evaluated: int
    num_new: int
    seconds: float
    evaluation_seconds: float
    untried_raises: tuple[str, ...]


class PolicyEvaluator:
    """Source of losses for a search; counts the different policies and reports progress."""

    def __init__(
        self, problem: Problem, evaluations: EvaluationCache, *, at_most: int, report: ProgressCallback = None
    ) -> None:
        self._evaluations = evaluations
        self._report = report
        self._losses: dict[frozenset, float] = {}
        self.at_most = at_most
        self.reserve = RESERVED_EVALUATIONS
        self.float_loss = self.loss(problem.float_policy)

    def loss(self, policy: Policy) -> float:
        """Return the loss of a policy, which may exceed the budget."""
        key = frozenset(policy.items())
        if key not in self._losses:
            self._losses[key] = self._evaluations.get(policy).loss
            if self._report is not None:
                seconds = max(0, self.at_most - self.num_asked) * self._evaluations.mean_seconds
                self._report(SearchProgress(self.num_asked, self.at_most, seconds))
        return self._losses[key]

    def has(self, policy: Policy) -> bool:
        """Return True if this search has already evaluated the policy."""
        return frozenset(policy.items()) in self._losses

    @property
    def num_asked(self) -> int:
        return len(self._losses)

    @property
    def num_left(self) -> int:
        """Number of different policies that the search may still evaluate, without the driver's reserve."""
        return max(0, self.at_most - self.reserve - self.num_asked)


class Search(ABC):
    """Search method: finds a policy within a problem's budget. The same arguments give the same policy.

    `fills_budget` is False for baselines that must not be changed: after other methods the driver tries to use the
    remaining budget.
    """

    fills_budget: bool = True
    max_evaluations: int = RESERVED_EVALUATIONS

    def max_num_evaluations(self, problem: Problem) -> int:
        """Return the largest number of policies that a search evaluates, with the `RESERVED_EVALUATIONS`."""
        return self.max_evaluations

    def assert_fits(self, problem: Problem) -> None:  # noqa: B027
        """Raise ConfigError for a problem that the method cannot solve, before any evaluation."""

    @abstractmethod
    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        """Return the best policy found, not the last one."""


def run_search(
    name: str,
    method: Search,
    problem: Problem,
    evaluations: EvaluationCache,
    *,
    base_bytes: int,
    report: ProgressCallback = None,
) -> SearchResult:
    """Run a search method on a problem, and return its result.

    The first report, after one evaluation of the float model, estimates the time of all others; the last one has the
    actual number of evaluations. An interrupted search repeats no evaluation of its record and returns the same result.
    Raises ConfigError for an infeasible budget, and for a method that does not fit the problem.
    """
    problem.assert_feasible(base_bytes=base_bytes)
    method.assert_fits(problem)
    began, new_before, seconds_before = time.perf_counter(), evaluations.num_new, evaluations.new_seconds
    evaluator = PolicyEvaluator(problem, evaluations, at_most=method.max_num_evaluations(problem), report=report)
    policy = method.run(problem, evaluator)
    evaluator.reserve = 0
    if method.fills_budget:
        policy, raisable = _fill_budget(problem, evaluator, policy)
    else:
        raisable = tuple(layer for layer, _ in problem.single_raises(policy))
    size, loss = problem.bytes_of(policy), evaluator.loss(policy)
    if size > problem.budget_bytes:
        raise ConfigError(f"search '{name}': returned a policy of {size:,} bytes for {problem.budget_bytes:,}")
    num_new, evaluating = evaluations.num_new - new_before, evaluations.new_seconds - seconds_before
    seconds = time.perf_counter() - began
    if report is not None and evaluator.num_left:
        report(SearchProgress(evaluator.num_asked, evaluator.num_asked, 0.0))
    return SearchResult(name, policy, loss, size, evaluator.num_asked, num_new, seconds, evaluating, raisable)


def _fill_budget(problem: Problem, evaluator: PolicyEvaluator, policy: Policy) -> tuple[Policy, tuple[str, ...]]:
    """Raise layers by one choice while that fits and lowers the loss; return the policy and the untried layers."""
    while True:
        loss, untried = evaluator.loss(policy), []
        for layer, raised in problem.single_raises(policy):
            if not evaluator.num_left and not evaluator.has(raised):
                untried.append(layer)
            elif evaluator.loss(raised) < loss:
                policy = raised
                break
        else:
            return policy, tuple(untried)
