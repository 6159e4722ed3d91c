"""Parts of users in the checks: wrong returns are named; locks, and outputs of own classes, are taken."""

from __future__ import annotations

import dataclasses
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.contract.loss import Loss
from sightline.contract.types import ComponentConfig
from sightline.doctor import rules
from sightline.doctor.finding import Fault, FindingLocation
from sightline.engine.distributed import World
from sightline.instrument import copy_module
from sightline.workbench.check.dry_run import dry_run
from sightline.workbench.check.suite import all_rules, run_quick
from tests.doctor.planting import make, with_losses, with_model
from tests.doctor.segmenting import Logits


@pytest.fixture
def own_rule() -> Iterator[Callable[[Callable[[Any], Any]], None]]:
    """Declare a rule as a plugin does, and ask no other; it is taken out again when the test ends."""
    all_rules()
    kept = [*rules.RULES]
    rules.RULES.clear()

    def declare(function: Callable[[Any], Any]) -> None:
        @rules.rule("own-x", "error", "data.split", holds="all", do="nothing")
        def own(run: Any) -> Any:
            return function(run)

    yield declare
    rules.RULES[:] = kept


@pytest.mark.parametrize("returned", ["the angles are bad", ["the angles are bad"], True, {"bad": 1}])
def test_a_rule_of_a_plugin_that_fails_is_told(tmp_path: Path, own_rule: Any, returned: Any) -> None:
    own_rule(lambda run: returned)
    (finding,) = [each for each in run_quick(make(tmp_path), World()) if each.code == "own-x"]
    assert finding.severity == "warning"
    assert finding.summary.startswith("a rule of this code failed itself: ")


def test_numbers_of_numpy_and_torch_in_a_finding_are_written_as_json(tmp_path: Path, own_rule: Any) -> None:
    part = make(tmp_path).data.train
    evidence = {
        "a": torch.ones(2, requires_grad=True) * 2,
        "b": np.arange(2),
        np.int64(3): {"c": (np.float32(1), part)},
    }
    where = FindingLocation(sample=part.indices[1])  # type: ignore[arg-type]
    own_rule(lambda run: Fault("bad", measured="3", where=where, evidence=evidence))
    (finding,) = [each for each in run_quick(make(tmp_path), World()) if each.code == "own-x"]
    document = json.loads(json.dumps(finding.to_dict()))
    assert document["where"]["sample"] == int(part.indices[1])
    assert document["evidence"] == {"a": [2, 2], "b": [0, 1], "3": {"c": [1.0, str(part)]}}


def test_a_model_and_a_metric_that_hold_locks_are_checked(tmp_path: Path) -> None:
    """A metric is evaluated without a copy: that it cannot be copied says nothing about a training."""
    built = make(tmp_path)
    for meter in built.selection_evaluator.metrics:
        meter.metric.lock = threading.Lock()  # type: ignore[attr-defined]
    built.job.model.lock = threading.Lock()  # type: ignore[assignment]
    built.job.model.files = [open(tmp_path / "small.yaml"), ["own"]]  # type: ignore[assignment]  # noqa: SIM115
    copied: Any = copy_module(built.job.model)
    assert copied.lock is built.job.model.lock
    assert copied.files[0] is built.job.model.files[0]  # type: ignore[index]
    assert copied.files[1] is not built.job.model.files[1]  # type: ignore[index]
    findings = run_quick(built, World())
    copied.files[0].close()
    assert [finding for finding in findings if finding.severity != "note"] == []


@pytest.mark.parametrize(
    ("edit", "returned"), [(lambda loss: {"loss": loss}, "dict"), (lambda loss: loss.expand(4), "a tensor (4,)")]
)
def test_a_loss_that_returns_other_than_a_number_is_named(
    tmp_path: Path, edit: Callable[[Tensor], Any], returned: str
) -> None:
    built = make(tmp_path)

    class Own(Loss):
        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(label.numel())

        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            total: Tensor = edit(nn.functional.cross_entropy(logits, label, reduction="sum"))
            return total

    config = dataclasses.replace(built.config, losses=(ComponentConfig("own"),))
    built = with_losses(dataclasses.replace(built, config=config), {"own": Own()})
    (finding,) = [finding for finding in run_quick(built, World()) if finding.code == "first-step"]
    assert finding.measured == f"UserError: losses.own: forward returned {returned}; return one number, a tensor ()"
    assert finding.where.config_path == "losses.0"


class Attributed(dict[str, Tensor]):
    """Outputs as of other libraries: a mapping with attributes."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Returning(nn.Module):
    """Makes `give` of its logits."""

    def __init__(self, num_classes: int, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.last, self.give = nn.Linear(3, num_classes), give

    def forward(self, points: Tensor) -> Logits:
        returned: Logits = self.give(self.last(points.amax(dim=1)))
        return returned


@pytest.mark.parametrize(
    ("give", "expected"),
    [
        (lambda logits: (logits,), "losses.cross_entropy reads 'logits', but {} returns a tuple"),
        (lambda logits: logits, "losses.cross_entropy reads 'logits', but {} returns a Tensor"),
        (lambda logits: {"logit": logits}, "losses.cross_entropy reads 'logits', but {} returns a dict with 'logit'"),
        (lambda logits: {"logits": [logits]}, "losses.cross_entropy reads 'logits', but {} returns a list as 'logits'"),
        (
            lambda logits: {"logits": logits[:, None]},
            "logits: found the shape (4, 1, 12) for labels (4,), expected (4, 12)",
        ),
    ],
)
def test_a_model_that_returns_other_than_it_declares_is_told(
    tmp_path: Path, give: Callable[[Tensor], Any], expected: str
) -> None:
    built = make(tmp_path)
    built = with_model(built, Returning(len(built.data.facts["class_names"]), give))
    (finding,) = [finding for finding in run_quick(built, World()) if finding.code == "first-step"]
    line = inspect.getsourcelines(Returning.forward)[1]
    forward = f"Returning.forward ({__file__}:{line})"
    assert finding.summary == f"step 0 cannot be taken: {expected.format(forward)}"
    assert (finding.where.file, finding.where.line, finding.where.config_path) == (__file__, line, "model")
    action = (
        f"correct the 'logits' that {forward} returns" if "shape" in expected else "make it return a dict with the "
    )
    assert finding.action.startswith(action)


def test_outputs_of_a_class_of_their_own_stay_what_they_are(tmp_path: Path) -> None:
    built = make(tmp_path)
    model = Returning(len(built.data.facts["class_names"]), lambda logits: Attributed(logits=logits))
    seen: list[type] = []
    built = with_model(built, model)
    losses = built.job.task.losses

    def note(model: nn.Module, batch: Any, context: Any) -> Any:
        seen.append(type(model(batch["points"])))
        return losses(model, batch, context)

    built.job.task.losses = note  # type: ignore[method-assign]
    found = dry_run(built.job, torch.device("cpu"))
    assert found.is_sound
    assert seen[0] is Attributed
    assert set(found.seen_outputs) == {"logits"}
