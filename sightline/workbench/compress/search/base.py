"""Searches for bits: their base class, the source of their losses, and the driver that runs one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

from annotated_types import Ge, Le

from sightline.compression.policy import Policy
from sightline.config.reader import parse_component
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.evaluations import EvaluationCache
from sightline.workbench.compress.problem import SearchProblem

RESERVED_EVALUATIONS = 20
"""Evaluations of every search reserved for the float model, the result, and filling the budget."""
MaxEvaluations = Annotated[int, Ge(2 * RESERVED_EVALUATIONS), Le(1_000_000)]
"""Largest number of different policies that a search evaluates, including cached ones of other searches."""


class SearchProgress(NamedTuple):
    """Progress of a search; `seconds_left` assumes all allowed evaluations, at their mean time so far."""

    num_evaluated: int
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
        self, problem: SearchProblem, evaluations: EvaluationCache, *, at_most: int, report: ProgressCallback = None
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
                seconds = max(0, self.at_most - self.num_evaluated) * self._evaluations.mean_seconds
                self._report(SearchProgress(self.num_evaluated, self.at_most, seconds))
        return self._losses[key]

    def has(self, policy: Policy) -> bool:
        """Return True if this search has already evaluated the policy."""
        return frozenset(policy.items()) in self._losses

    @property
    def num_evaluated(self) -> int:
        """The number of different policies that the search has evaluated."""
        return len(self._losses)

    @property
    def num_left(self) -> int:
        """Number of different policies that the search may still evaluate, without the driver's reserve."""
        return max(0, self.at_most - self.reserve - self.num_evaluated)


class Search(ABC):
    """Search method: finds a policy within a problem's budget. The same arguments give the same policy."""

    fills_budget: bool = True
    """False for baselines that must not be changed: after others, the driver tries to use the remaining budget."""
    max_evaluations: int = RESERVED_EVALUATIONS
    """The largest number of policies that it evaluates, with those that the driver reserves."""

    def max_num_evaluations(self, problem: SearchProblem) -> int:
        """Return the largest number of policies that a search evaluates, with the `RESERVED_EVALUATIONS`."""
        return self.max_evaluations

    def assert_fits(self, problem: SearchProblem) -> None:  # noqa: B027
        """Raise ConfigError for a problem that the method cannot solve, before any evaluation."""

    @abstractmethod
    def run(self, problem: SearchProblem, evaluator: PolicyEvaluator) -> Policy:
        """Return the best policy found, not the last one."""


def run_search(
    name: str,
    method: Search,
    problem: SearchProblem,
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
        report(SearchProgress(evaluator.num_evaluated, evaluator.num_evaluated, 0.0))
    return SearchResult(name, policy, loss, size, evaluator.num_evaluated, num_new, seconds, evaluating, raisable)


def _fill_budget(problem: SearchProblem, evaluator: PolicyEvaluator, policy: Policy) -> tuple[Policy, tuple[str, ...]]:
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


def search_rows(results: Iterable[SearchResult]) -> list[dict[str, Any]]:
    """Build one row per search, lowest loss first; `overhead seconds` excludes the evaluations."""
    return [
        {
            "method": result.method,
            "loss": result.loss,
            "bytes": result.bytes,
            "evaluations": result.num_evaluated,
            "new evaluations": result.num_new,
            "seconds": result.seconds,
            "overhead seconds": result.seconds - result.evaluation_seconds,
            "raisable layers": len(result.untried_raises),
        }
        for result in sorted(results, key=lambda result: (result.loss, result.bytes))
    ]


def build_searches(names: Sequence[str], arguments: Sequence[str], *, seed: int) -> dict[str, Search]:
    """Build the searches of these names; with several, each gets only the arguments that it has."""
    built = {}
    for name in names:
        argument_names = registry.searches.entry(parse_component(registry.searches, name, ())).arguments
        values = [value for value in arguments if len(names) == 1 or value.partition("=")[0].strip() in argument_names]
        if "seed" in argument_names and not any(value.startswith("seed=") for value in values):
            values.append(f"seed={seed}")
        component = parse_component(registry.searches, name, values)
        built[component.name] = registry.searches.build(component, facts={})
    return built
