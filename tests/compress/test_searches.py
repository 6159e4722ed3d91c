"""Every search, the exact knapsack, and the pictures of both."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage

from sightline.compression.policy import FP32, Policy, WeightFormat
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, MissingExtraError, RunError, UserError
from sightline.contract.plugins import load_plugins
from sightline.contract.types import ComponentConfig
from sightline.workbench.compress.curvature import Curvature
from sightline.workbench.compress.evaluations import EvaluationCache, PolicyEvaluation, open_record
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import Search, SearchProgress, SearchResult, run_search, search_rows
from sightline.workbench.compress.search.knapsack import solve_knapsack
from tests.compress.toys import counted, made
from tests.golden_parity import load_golden
from tests.processes import ROOT

# --- every search -----------------------------------------------------------------------------------------------------


QUICK = {
    "ddpg": {"episodes": 24, "warm_up": 20, "max_evaluations": 60},
    "annealing": {"max_evaluations": 40},
    "hybrid": {"max_evaluations": 100},
    "nsga2": {"max_evaluations": 60, "population": 10},
    "random": {"max_evaluations": 60},
}
METHODS = sorted({*registry.searches.names()} - {"hessian"})


def built(name: str, **arguments: object) -> Search:
    return registry.searches.build(ComponentConfig(name, {**QUICK.get(name, {}), **arguments}), facts={})


def searched(
    name: str,
    problem: SearchProblem,
    losses: EvaluationCache | Callable[[Policy], float],
    method: Any = None,
    **more: Any,
) -> SearchResult:
    evaluations = losses if isinstance(losses, EvaluationCache) else EvaluationCache(losses)
    num_floats = sum(layer.num_weights for layer in problem.layers)
    return run_search(name, method or built(name), problem, evaluations, base_bytes=4 * num_floats, **more)


@pytest.mark.parametrize("name", METHODS)
def test_every_budget_holds_to_the_byte_and_nothing_is_left(name: str) -> None:
    """For 50 random budgets, byte by byte; a layer that could be raised for less loss is raised or named."""
    draws, is_slow = np.random.default_rng(3), name in ("ddpg", "nsga2")
    for number in range(4 if is_slow else 50):
        problem, loss_of = made(number, num_layers=4, coupled=True)
        low, high = problem.bytes(problem.lowest), problem.bytes(problem.highest)
        problem = replace(problem, budget_bytes=int(low + (high - low) * draws.uniform(0, 1) ** 2))
        evaluations, asked = counted(loss_of)
        method = built(name)
        found = searched(name, problem, evaluations, method)
        assert problem.bytes_of(found.policy) == found.bytes <= problem.budget_bytes
        assert found.loss == loss_of(found.policy)
        assert list(found.policy) == [layer.name for layer in problem.layers]
        assert found.num_evaluated <= method.max_num_evaluations(problem)
        assert len(asked) == len({frozenset(each.items()) for each in asked}) == found.num_evaluated == found.num_new
        for layer, better in problem.single_raises(found.policy):
            assert loss_of(better) >= found.loss or layer in found.untried_raises


@pytest.mark.parametrize("bits", [(2, 4), (1, 3, 8), (5,)])
@pytest.mark.parametrize("name", METHODS)
def test_any_bits_and_protected_layers(name: str, bits: tuple[int, ...]) -> None:
    problem, loss_of = made(1, bits=bits)
    kept = {problem.layers[0].name: WeightFormat("codebook", 8), problem.layers[-1].name: FP32}
    problem = replace(problem, protected=kept)
    problem = replace(problem, budget_bytes=problem.bytes(problem.lowest) * 5 // 4)
    if name == "uniform":
        with pytest.raises(ConfigError, match="take uniform_protected"):
            searched(name, problem, loss_of)
        return
    found = searched(name, problem, loss_of)
    assert {choice.bits for choice in found.policy.values()} <= {*bits, 8, 32}
    assert {layer: found.policy[layer] for layer in kept} == kept


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_search_resumes_to_the_same_result(name: str, tmp_path: Path) -> None:
    problem, loss_of = made(5, coupled=True)
    whole = searched(name, problem, loss_of)
    path, names = tmp_path / "evaluations.jsonl", [layer.name for layer in problem.layers]
    num_before = max(1, whole.num_evaluated // 2)
    calls = 0

    def until_killed(policy: Policy) -> float:
        nonlocal calls
        calls += 1
        if calls > num_before:
            raise KeyboardInterrupt
        return loss_of(policy)

    known, record = open_record(path, subject="a", names=names)
    assert known == []
    if whole.num_evaluated > num_before:
        with pytest.raises(KeyboardInterrupt):
            searched(name, problem, EvaluationCache(until_killed, record=record))
        assert len(path.read_text().splitlines()) == num_before
    path.write_text(path.read_text() + '{"subject": "a", "poli') if path.exists() else None
    known, record = open_record(path, subject="a", names=names)
    found = searched(name, problem, EvaluationCache(loss_of, known=known, record=record))
    assert (found.policy, found.loss, found.num_evaluated) == (whole.policy, whole.loss, whole.num_evaluated)
    assert found.num_new == whole.num_evaluated - len(known)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == whole.num_evaluated
    with pytest.raises(DataError, match=r"evaluations\.jsonl:1: contains losses of 'a', this search evaluates 'b'"):
        open_record(path, subject="b", names=names)


def test_a_search_of_a_plugin_takes_the_same_exam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`examples/my_search.py`: it also finds less loss than the uniform bits that it begins with."""
    registry.searches.names()
    monkeypatch.setattr(registry.searches, "_entries", dict(registry.searches._entries))
    load_plugins([ROOT / "examples" / "my_search.py"])
    test_every_budget_holds_to_the_byte_and_nothing_is_left("annealing")
    for bits in ((2, 4), (1, 3, 8), (5,)):
        test_any_bits_and_protected_layers("annealing", bits)
    test_an_interrupted_search_resumes_to_the_same_result("annealing", tmp_path)
    problem, loss_of = made(5, coupled=True)
    found = [searched(name, problem, loss_of).loss for name in ("annealing", "uniform_protected")]
    assert found[0] < found[1]


@pytest.mark.parametrize("change", [{"loss": math.nan}, {"loss": math.inf}, {"loss": True}, {"seconds": -1.0}])
def test_a_recorded_number_that_no_evaluation_gives_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """JSON of Python takes NaN, and a policy of that loss would be compared with others for ever."""
    problem, loss_of = made(0, num_layers=2)
    names, path = [layer.name for layer in problem.layers], tmp_path / "evaluations.jsonl"
    _, record = open_record(path, subject="a", names=names)
    policy = problem.policy(problem.lowest)
    record(PolicyEvaluation(policy, loss_of(policy), 0.1))
    line = json.loads(path.read_text())
    assert len(open_record(path, subject="a", names=names)[0]) == 1
    for wrong in (change, {"loss": 10**400}):
        path.write_text(json.dumps(line) + "\n" + json.dumps(line | wrong) + "\n")
        with pytest.raises(DataError, match=r"evaluations\.jsonl:2: has the loss .* remove the line"):
            open_record(path, subject="a", names=names)


def test_the_hybrid_is_never_worse_than_its_start_and_searches_share_their_table() -> None:
    is_better = 0
    for number in range(20):
        problem, loss_of = made(number, coupled=True)
        evaluations, asked = counted(loss_of)
        knapsack, hybrid = (searched(name, problem, evaluations) for name in ("knapsack", "hybrid"))
        assert hybrid.loss <= knapsack.loss
        is_better += hybrid.loss < knapsack.loss
        assert len(asked) == len({frozenset(each.items()) for each in asked})
        assert hybrid.num_new < hybrid.num_evaluated - len(problem.searched_layers) * len(problem.choices)
    assert is_better >= 3


def test_on_a_separable_loss_the_knapsack_is_the_optimum_and_the_others_are_not_better() -> None:
    for number in range(5):
        problem, loss_of = made(number, num_layers=4, bits=(1, 2, 4, 8))
        best = min(
            loss_of(policy)
            for flat in range(4**4)
            if problem.fits_budget(levels := np.unravel_index(flat, (4,) * 4))
            for policy in [problem.policy([int(level) for level in levels])]
        )
        losses = {name: searched(name, problem, loss_of).loss for name in METHODS}
        assert losses["knapsack"] == pytest.approx(best, abs=1e-12)
        assert min(losses.values()) == pytest.approx(best, abs=1e-12)
        assert losses["knapsack"] <= losses["greedy"] + 1e-12


def test_a_table_with_few_evaluations_is_interpolated() -> None:
    """Rises here are exactly exponential in the bits: the interpolated table finds the policy of the full one."""
    problem, loss_of = made(2)
    full = searched("knapsack", problem, loss_of)
    method = built("knapsack", table_evaluations=3 * len(problem.searched_layers))
    found = searched("knapsack", problem, loss_of, method)
    assert found.num_evaluated < full.num_evaluated - 20
    assert found.loss < searched("uniform", problem, loss_of).loss
    with pytest.raises(ConfigError, match="table_evaluations: 5 are fewer than the 6 layers"):
        searched("knapsack", problem, loss_of, built("knapsack", table_evaluations=5))


def test_the_hessian_search_minimises_curvature_times_error() -> None:
    """Of a quadratic loss whose Hessian is known, with errors of rounding that fall by 4 for each bit."""
    problem, _ = made(4)
    weights = {layer.name: torch.ones(layer.num_weights, requires_grad=True) for layer in problem.layers}
    scales = {name: 10.0**place for place, name in enumerate(weights)}

    def loss() -> torch.Tensor:
        return torch.stack([scales[name] * (weight**2).sum() for name, weight in weights.items()]).sum()

    def error_of(name: str, choice: WeightFormat) -> float:
        return weights[name].numel() * 4.0**-choice.bits

    def loss_of(policy: Policy) -> float:
        return sum(2 * scales[name] * error_of(name, choice) for name, choice in policy.items())

    with_curvature = replace(problem, curvature=lambda: Curvature(loss, weights, error_of))
    found = searched("hessian", with_curvature, loss_of)
    assert found.num_evaluated <= 20
    assert found.loss <= searched("knapsack", problem, loss_of).loss * (1 + 1e-6)
    with pytest.raises(ConfigError, match="'hessian': needs a differentiable loss"):
        searched("hessian", problem, loss_of)


def test_progress_estimates_the_time_before_the_search_begins() -> None:
    problem, loss_of = made(0)
    reports: list[SearchProgress] = []
    searched("knapsack", problem, loss_of, report=reports.append)
    assert reports[0].num_evaluated == 1
    assert reports[0].at_most == 6 * 8 + 20
    *during, last = reports
    assert [each.num_evaluated for each in during] == [*range(1, len(reports))]
    assert last == SearchProgress(len(during), len(during), 0.0)
    assert all(each.seconds_left >= 0 for each in reports)


def test_what_cannot_be_is_refused() -> None:
    problem, loss_of = made(0)
    smallest = problem.bytes(problem.lowest)
    with pytest.raises(ConfigError, match=rf"and 0 protected layers, takes {smallest:,} bytes, a ratio of"):
        searched("uniform", replace(problem, budget_bytes=smallest - 1), loss_of)
    with pytest.raises(ConfigError, match="bits: found 4, 2; give each once, fewest first"):
        replace(problem, choices=(WeightFormat("codebook", 4), WeightFormat("codebook", 2)))
    with pytest.raises(ConfigError, match="protects every layer"):
        replace(problem, protected=problem.float_policy)
    with pytest.raises(RunError, match="the loss of a policy is nan"):
        searched("uniform", problem, lambda policy: float("nan"))


def test_a_search_that_breaks_the_budget_is_refused() -> None:
    class Broken(type(built("uniform"))):  # type: ignore[misc]
        def run(self, problem: SearchProblem, evaluator: object) -> Policy:
            return problem.float_policy

    problem, loss_of = made(0)
    with pytest.raises((ConfigError, ValueError)):
        searched("broken", problem, loss_of, Broken())


def test_nsga2_shares_its_storage_and_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, loss_of = made(0)
    monkeypatch.setitem(QUICK, "nsga2", {"max_evaluations": 40, "population": 6})
    journal, url = str(tmp_path / "journal.log"), f"sqlite:///{tmp_path}/trials.db"
    for storage, opened in ((journal, lambda: JournalStorage(JournalFileBackend(journal))), (url, lambda: url)):

        def search(which: SearchProblem, storage: str = storage) -> SearchResult:
            return searched("nsga2", which, loss_of, built("nsga2", storage=storage))

        def count_trials(opened: Callable[[], Any] = opened) -> dict[str, int]:
            return {study.study_name: study.n_trials for study in optuna.get_all_study_summaries(opened())}

        first = search(problem)
        ((name, num_trials),) = count_trials().items()
        assert 0 < num_trials <= 40
        assert search(problem).loss == first.loss
        assert count_trials() == {name: num_trials}
        search(replace(problem, subject="other weights"))
        search(replace(problem, choices=problem.choices[:2]))
        counts = count_trials()
        assert counts.pop(name) == num_trials
        assert list(counts.values()) == [num_trials] * 2, "trials of another run or other bits are none of this search"
    with pytest.raises(UserError, match="search 'nsga2': storage: nosuch://x: "):
        searched("nsga2", problem, loss_of, built("nsga2", storage="nosuch://x"))
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightline\[search\]'"):
        built("nsga2")


def test_rows_are_sorted_by_loss() -> None:
    problem, loss_of = made(0, coupled=True)
    found = [searched(name, problem, loss_of) for name in ("uniform", "knapsack", "random")]
    rows = search_rows(found)
    assert [row["loss"] for row in rows] == sorted(each.loss for each in found)
    assert {row["method"] for row in rows} == {"uniform", "knapsack", "random"}


# --- the exact knapsack -----------------------------------------------------------------------------------------------


TIED = ((4, 6), (9, 11), (14, 16))


def total(table: np.ndarray, levels: tuple[int, ...]) -> float:
    return table[np.arange(len(levels)), list(levels)].sum()


def test_it_is_brute_force_on_random_problems() -> None:
    draws = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        num_layers, num_choices = draws.integers(1, 6), draws.integers(1, 5)
        costs = draws.normal(size=(num_layers, num_choices)).round(number % 4)  # equal costs too
        sizes = draws.integers(0, 40, (num_layers, num_choices))
        budget = int(draws.integers(0, 40 * num_layers))
        fitting = [
            total(costs, levels)
            for levels in itertools.product(range(num_choices), repeat=num_layers)
            if total(sizes, levels) <= budget
        ]
        found = solve_knapsack(costs, sizes, budget)
        refused += found is None
        assert (found is None) == (not fitting)
        if found is not None:
            assert total(sizes, found) <= budget
            assert total(costs, found) == pytest.approx(min(fitting), abs=1e-12)
    assert 5 < refused < 100


def test_a_case_by_hand_in_which_the_best_ratio_first_is_wrong() -> None:
    """A byte of the first layer saves most, and its choice leaves no room for the two that save more together."""
    costs = np.asarray([[7.0, 0.0], [6.0, 0.0], [5.0, 0.0]])
    sizes = np.asarray([[1, 4], [1, 5], [1, 5]])
    assert solve_knapsack(costs, sizes, 2) is None
    assert solve_knapsack(costs, sizes, 3) == (0, 0, 0)
    assert solve_knapsack(costs, sizes, 6) == (1, 0, 0)
    assert solve_knapsack(costs, sizes, 10) == (1, 1, 0)  # 5 is left; (0, 1, 1) would take 11
    larger = np.asarray([[1, 7], [1, 5], [1, 5]])
    assert solve_knapsack(costs, larger, 11) == (0, 1, 1)  # 7 is left, and 11 with the first
    assert solve_knapsack(costs, sizes, 14) == (1, 1, 1)
    tied = solve_knapsack(np.asarray([[0.0, 7.0], [3.0, 3.0]]), np.asarray([[2, 1], [9, 1]]), 20)
    assert tied == (0, 1)  # of equal costs the smaller


def test_it_finds_the_golden_optima(shared: Path) -> None:
    golden = load_golden(shared, "hawq_ilp", area="compress").arrays
    cases = sorted({key.split("/")[0] for key in golden if key.startswith("knapsack")})
    assert cases
    for case in cases:
        arrays = {key.partition("/")[2]: v for key, v in golden.items() if key.startswith(f"{case}/")}
        bits = arrays["bits"]
        levels = solve_knapsack(arrays["cost"], arrays["weights"][:, None] * bits, int(arrays["budget_bits"]))
        assert levels is not None, case
        assert total(arrays["cost"], levels) == pytest.approx(float(arrays["best_cost"]), abs=1e-12)
        assert np.array_equal(bits[list(levels)], arrays["best_bits"])


def test_it_solves_the_published_tables_of_resnet18(shared: Path) -> None:
    """At every recorded share of the way from 4 bits to 8. Layers tied by residual sums are one row: they add up."""
    golden = load_golden(shared, "hawq_ilp", area="compress").arrays
    table = {key.partition("/")[2]: value for key, value in golden.items() if key.startswith("table/")}
    cost = table["Hutchinson_trace"] * (table["delta_weights_8bit_square"] - table["delta_weights_4bit_square"])
    # MB at 8 bits; operations are those of 32 x 32 bits, activations have as many as weights
    ends = {
        "size": (table["parameters"] * 0.5, table["parameters"]),
        "bops": (table["bops"] / 64, table["bops"] / 16),
        "latency": (table["latency_int4"], table["latency_int8"]),
    }
    joined = {second: first for first, second in TIED}
    rows = sorted({joined.get(place, place) for place in range(len(cost))})
    member = np.asarray([rows.index(joined.get(place, place)) for place in range(len(cost))])
    cases = sorted(key.removesuffix("/limit") for key in golden if key.endswith("/limit"))
    assert {case.partition("_")[0] for case in cases} == set(ends)
    for case in cases:
        measure, _, share = case.partition("_")
        low, high = ends[measure]
        limit, expected = float(golden[f"{case}/limit"]), golden[f"{case}/is_8bit"]
        assert limit == pytest.approx(low.sum() + float(share) * (high - low).sum(), rel=1e-12)
        costs = np.stack([np.zeros(len(rows)), np.bincount(member, cost)], axis=1)
        sizes = np.stack([np.bincount(member, low), np.bincount(member, high)], axis=1)
        levels = solve_knapsack(costs, sizes, limit * (1 + 1e-12))
        assert levels is not None, case
        assert total(costs, levels) == pytest.approx(float(golden[f"{case}/objective"]), abs=1e-12)
        assert np.array_equal(np.asarray(levels)[member], expected)


def test_a_hundred_layers_with_eight_choices_take_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 8^100 sums few are looked at: the others are dominated, or cannot be best."""
    draws = np.random.default_rng(1)
    weights = (10 ** draws.uniform(2, 5.5, 100)).astype(int)
    sizes = weights[:, None] * np.arange(1, 9) // 8 + 2 ** np.arange(2, 10)
    costs = 10 ** draws.uniform(-3, 0, (100, 1)) * 4.0 ** -np.arange(1, 9) * draws.uniform(0.5, 1.5, (100, 8))
    nonzero, looked_at = np.flatnonzero, []
    monkeypatch.setattr(np, "flatnonzero", lambda fits: looked_at.append(len(fits)) or nonzero(fits))
    assert solve_knapsack(costs, sizes, int(2.5 * weights.sum() / 8)) is not None
    assert sum(looked_at) < 3_000_000  # 1.5 million
