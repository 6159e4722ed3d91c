"""A search method, and the one driver that runs any of them: evaluations, progress, and the result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, NamedTuple, TypeAlias

from annotated_types import Ge, Le

from sightline.aliases import old_names, renamed
from sightline.compress.policy import Policy
from sightline.compress.search.evaluations import EvaluationCache
from sightline.compress.search.problem import Problem
from sightline.errors import ConfigError

__all__ = ["MaxEvaluations", "PolicyEvaluator", "Search", "SearchProgress", "SearchResult", "run_search"]

RESERVED_EVALUATIONS = 20
"""Evaluations of every search that are left for the float model, for the result, and for filling up the budget."""
MaxEvaluations = Annotated[int, Ge(2 * RESERVED_EVALUATIONS), Le(1_000_000)]
"""Different policies that a search evaluates at most, those from other searches' memory among them."""


class SearchProgress(NamedTuple):
    """How far a search is. `seconds_left` is for all evaluations that it may make, at their mean time so far."""

    num_asked: int
    at_most: int
    seconds_left: float


ProgressCallback: TypeAlias = Callable[[SearchProgress], None] | None


class SearchResult(NamedTuple):
    """What a search found. `num_asked` counts different policies, `num_new` those that were not known before.

    `raisable` names layers that the budget lets be raised by one choice, which the search did not try.
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
    """What a search asks for losses: counts the different policies, and reports progress."""

    def __init__(
        self, problem: Problem, evaluations: EvaluationCache, *, at_most: int, report: ProgressCallback = None
    ) -> None:
        self._evaluations = evaluations
        self._report = report
        self._asked: dict[frozenset, float] = {}
        self.at_most = at_most
        self.reserve = RESERVED_EVALUATIONS
        self.float_loss = self.loss(problem.float_policy)

    def loss(self, policy: Policy) -> float:
        """The loss of a policy, which need not hold the budget."""
        key = frozenset(policy.items())
        if key not in self._asked:
            self._asked[key] = self._evaluations.get(policy).loss
            if self._report is not None:
                seconds = max(0, self.at_most - self.num_asked) * self._evaluations.mean_seconds
                self._report(SearchProgress(self.num_asked, self.at_most, seconds))
        return self._asked[key]

    def has(self, policy: Policy) -> bool:
        """Whether this search asked for the policy before."""
        return frozenset(policy.items()) in self._asked

    @property
    def num_asked(self) -> int:
        return len(self._asked)

    @property
    def num_left(self) -> int:
        """Different policies that the search may still ask for; the driver's own are set aside."""
        return max(0, self.at_most - self.reserve - self.num_asked)


@renamed(at_most="max_num_evaluations", fills="fills_budget")
class Search(ABC):
    """A method: from a problem to a policy that holds its budget. The same arguments give the same policy.

    `fills` is false of a baseline that shall stay as it is: others try what the budget leaves after them.
    """

    fills_budget: bool = True
    max_evaluations: int = RESERVED_EVALUATIONS

    def max_num_evaluations(self, problem: Problem) -> int:
        """Different policies that a search of this problem evaluates at most, with `RESERVE` of the driver's."""
        return self.max_evaluations

    def assert_fits(self, problem: Problem) -> None:  # noqa: B027
        """Raises ConfigError for a problem that the method cannot solve, before anything is evaluated."""

    @abstractmethod
    def run(self, problem: Problem, evaluator: PolicyEvaluator) -> Policy:
        """The best policy found, not the last one."""


def run_search(
    name: str,
    method: Search,
    problem: Problem,
    evaluations: EvaluationCache,
    *,
    base_bytes: int,
    report: ProgressCallback = None,
) -> SearchResult:
    """Run a method. The first report, after one evaluation of the float model, estimates the time of all others.

    The last one has the evaluations that were made. An interrupted search comes to the same result with those of its
    record, repeating none.
    Raises ConfigError where the budget cannot hold, and for a method that the problem does not fit.
    """
    problem.assert_feasible(base_bytes=base_bytes)
    method.assert_fits(problem)
    began, new_before, seconds_before = time.perf_counter(), evaluations.num_new, evaluations.new_seconds
    evaluator = PolicyEvaluator(problem, evaluations, at_most=method.max_num_evaluations(problem), report=report)
    policy = method.run(problem, evaluator)
    evaluator.reserve = 0
    if method.fills_budget:
        policy, raisable = _filled(problem, evaluator, policy)
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


def _filled(problem: Problem, evaluator: PolicyEvaluator, policy: Policy) -> tuple[Policy, tuple[str, ...]]:
    """Raise layers by one choice while that fits and lowers the loss; and the layers that were not tried."""
    while True:
        loss, untried = evaluator.loss(policy), []
        for layer, one in problem.single_raises(policy):
            if not evaluator.num_left and not evaluator.has(one):
                untried.append(layer)
            elif evaluator.loss(one) < loss:
                policy = one
                break
        else:
            return policy, tuple(untried)


__getattr__ = old_names(__name__)
