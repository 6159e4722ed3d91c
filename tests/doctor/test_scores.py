"""A score is asked with copies, parts and other batches; what it holds, and what it is given, is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.evidence.programs.averaged import is_self_contained
from sightline.doctor.examine import list_rules
from sightline.doctor.score import read_figures
from sightline.doctor.snapshots import Snapshot
from tests.doctor.rows import scores

SEEN: list[int] = []
TOTAL = torch.zeros(())
COUNT = 0


def remember(model: nn.Module, loader: Any, kept: list[int] = []) -> float:  # noqa: B006
    """Score that writes to all that a function can keep things in."""
    global COUNT
    COUNT += 1
    SEEN.append(COUNT)
    TOTAL.add_(1)
    kept.append(COUNT)
    return COUNT + scores.accuracy(*scores.join(scores.predict(model, loader)))


OF_SCORES = {rule.code for rule in list_rules() if any("scor" in name for name in rule.reads)}
OTHERS = tuple({rule.code for rule in list_rules()} - OF_SCORES)
"""Codes without a rule that reads a score."""


def judge(score: Any) -> Any:
    torch.manual_seed(0)
    model, loss, training, evaluation, _ = scores.program(None)
    return sightline.check(model, loss, training, evaluation=evaluation, score=score, budget_s=20.0, declared=OTHERS)


def test_what_a_score_keeps_is_found_and_put_back() -> None:
    codes = [finding.code for finding in judge(remember).findings]
    assert "score-state" in codes
    assert (COUNT, SEEN, float(TOTAL), remember.__defaults__) == (0, [], 0.0, ([],))


def test_nothing_of_model_loader_and_random_numbers_changes() -> None:
    torch.manual_seed(0)
    model, loss, training, evaluation, validate = scores.closed_over(True)
    kept, attributes = copy.deepcopy(model.state_dict()), dict(vars(evaluation))
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    report = sightline.check(
        model, loss, training, evaluation=evaluation, score=validate, budget_s=20.0, declared=OTHERS
    )
    (finding,) = [each for each in report.findings if each.code == "per-batch-metric"]
    assert (finding.where.file, finding.where.line) == (scores.__file__, validate.__code__.co_firstlineno)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert vars(evaluation).keys() == attributes.keys()
    assert all(vars(evaluation)[name] is value for name, value in attributes.items())


def test_a_list_of_batches_is_as_it_was() -> None:
    model, loss, training, batches, score = scores.listed(False)
    kept = [*batches]
    sightline.check(model, loss, training, evaluation=batches, score=score, budget_s=20.0, declared=OTHERS)
    assert len(batches) == len(kept)
    assert all(one is other for one, other in zip(batches, kept, strict=True))


def test_a_score_that_is_not_given_is_asked_for_and_one_that_fails_is_said() -> None:
    assert "the score of your evaluation" in judge(None).verdict[1]
    assert "score=score" in judge(None).verdict[2]

    def fail(model: nn.Module, loader: Any) -> float:
        raise KeyError("labels")

    verdict = judge(fail).verdict
    line = fail.__code__.co_firstlineno + 1
    assert f"ended in KeyError: 'labels' (your line test_scores.py:{line})" in verdict[1]
    assert "the score of your evaluation" not in verdict[1]
    nothing = judge(lambda model, loader: None).verdict
    assert "ended in UserError: score: returns a number" in nothing[1]
    assert "faults of sightline" not in verdict[2] + nothing[2]


def test_precision_with_nothing_found_is_a_line_of_the_program() -> None:
    """An untrained network may find nothing: no fault of sightline's."""

    def precision(model: nn.Module, loader: Any) -> float:
        with torch.no_grad():
            found = torch.cat([model(rows).argmax(dim=1) for rows, _ in loader]) > 7
        return 1.0 / int(found.sum())

    verdict = judge(precision).verdict
    assert f"(your line test_scores.py:{precision.__code__.co_firstlineno + 3})" in verdict[1]
    assert "faults of sightline" not in verdict[2]


def test_an_error_of_a_relation_itself_is_to_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.doctor.evidence.scores._cut", lambda *_: {}["no such part"])
    monkeypatch.setattr("sightline.doctor.program_code.is_of_program", lambda file: False)
    assert "faults of sightline: please report them" in judge(remember).verdict[2]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (0.5, r"score: found float; allowed is a function score\(model, loader\)"),
        (nn.Linear(1, 1), "score: found Linear"),
        (lambda model, loader, device: 0.0, r"the function needs \(model, loader, device\)"),
    ],
)
def test_what_is_no_score_is_refused_in_a_line(score: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge(score)


def test_a_config_has_no_score() -> None:
    with pytest.raises(UserError, match="score and declared belong to a module"):
        sightline.check({"name": "a"}, score=remember)


@pytest.mark.parametrize(
    ("value", "figures"),
    [
        (0.5, {"": 0.5}),
        (torch.tensor([0.25]), {"": 0.25}),
        ({"loss": 1, "ok": True, "name": "a"}, {"loss": 1.0}),
        ((0.5, {"f1": torch.tensor([1.0, 2.0])}), {"0": 0.5, "1.f1[0]": 1.0, "1.f1[1]": 2.0}),
        (None, {}),
    ],
)
def test_figures_are_read_by_name(value: Any, figures: dict[str, float]) -> None:
    assert read_figures(value) == figures


class Holder:
    """Object with a set, a dict and attributes of its own."""

    def __init__(self) -> None:
        self.names, self.counts, self.best = {"a"}, {"a": [1]}, 0.0

    def change(self) -> None:
        self.names.add("b")
        self.counts["a"].append(2)
        self.counts["b"] = []
        self.best = 1.0


@pytest.mark.parametrize("wrap", [lambda holder: holder.change, lambda holder: lambda: holder.change()])
def test_a_snapshot_puts_back_what_a_function_changes_in_place(wrap: Callable[[Holder], Callable[[], None]]) -> None:
    holder = Holder()
    change, inner = wrap(holder), holder.counts["a"]
    snapshot = Snapshot.of_function(change)
    change()
    assert holder.best == 1.0
    snapshot.restore()
    assert (holder.names, holder.counts, holder.best) == ({"a"}, {"a": [1]}, 0.0)
    assert holder.counts["a"] is inner


NOTED: list[float] = []
SCALE = 2.0


def noted(scores: Tensor, labels: Tensor) -> float:
    NOTED.append(float(scores.mean()))
    return NOTED[-1]


def through_another(scores: Tensor, labels: Tensor) -> float:
    return noted(scores, labels)


def with_a_memory(scores: Tensor, labels: Tensor, memory: list[float] = []) -> float:  # noqa: B006
    return float(scores.mean())


def counted() -> Callable[..., float]:
    calls = 0

    def count(scores: Tensor, labels: Tensor) -> float:
        nonlocal calls
        calls += 1
        return float(calls)

    return count


def pure(scores: Tensor, labels: Tensor) -> float:
    found = []
    for scale in (1.0, SCALE):
        found.append(scale * float(torch.abs(scores - labels).mean()))
    return float(np.mean([each / max(1, len(found)) for each in found]))


def test_a_score_that_may_write_elsewhere_is_not_called_again() -> None:
    assert is_self_contained(pure)
    for function in (noted, through_another, with_a_memory, counted()):
        assert not is_self_contained(function), function
