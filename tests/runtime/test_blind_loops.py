"""What a blind exam missed is found, and its mended forms, and correct codes that look alike, raise nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import sightline
from sightline.doctor.batches import BatchForm
from sightline.workbench.watch.plain.loader import judge_loader
from sightline.workbench.watch.plain.loss import judge_loss, run_batch
from tests.runtime.blind_loaders import HEALTHY_LOADERS, LOADERS
from tests.runtime.blind_loops import HEALTHY_LOOPS, LOOPS
from tests.runtime.blind_losses import HEALTHY_LOSSES, LOSSES, LossCase


def name_of(value: Any) -> str | None:
    return getattr(value, "__name__", None)


def judge_case(case: LossCase) -> list[tuple[str, str]]:
    model, loss, pair = case
    passed = run_batch(model, loss, pair, torch.device("cpu"))
    return [(rule.code, (*fault.causes, *rule.causes)[0]) for rule, fault in judge_loss(passed, model, loss, [pair])]


def judge_data(loader: DataLoader[Any]) -> list[tuple[str, str]]:
    return [(rule.code, (*fault.causes, *rule.causes)[0]) for rule, fault in judge_loader(loader, BatchForm(), [])]


@pytest.mark.parametrize("make", LOSSES, ids=name_of)
def test_a_loss_is_named(make: Callable[[bool], LossCase]) -> None:
    torch.manual_seed(0)
    assert judge_case(make(True)) == [LOSSES[make]]
    assert judge_case(make(False)) == []


@pytest.mark.parametrize("make", HEALTHY_LOSSES, ids=name_of)
def test_a_correct_loss_that_looks_alike_raises_nothing(make: Callable[[], LossCase]) -> None:
    torch.manual_seed(0)
    assert judge_case(make()) == []


@pytest.mark.parametrize("make", LOADERS, ids=name_of)
def test_a_loader_is_named(make: Callable[[bool], DataLoader[Any]]) -> None:
    torch.manual_seed(0)
    assert judge_data(make(True)) == [LOADERS[make]]
    assert judge_data(make(False)) == []


@pytest.mark.parametrize("make", HEALTHY_LOADERS, ids=name_of)
def test_a_correct_loader_that_looks_alike_raises_nothing(make: Callable[[], DataLoader[Any]]) -> None:
    torch.manual_seed(0)
    assert judge_data(make()) == []


def test_a_set_that_is_too_slow_to_read_is_named_as_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.workbench.watch.plain.loader._MAX_READING_S", 0.0)
    gaps: list[str] = []
    assert list(judge_loader(next(iter(HEALTHY_LOADERS))(), BatchForm(), gaps)) == []
    assert [gap.partition(":")[0] for gap in gaps] == ["the samples of the data set"]


@pytest.mark.parametrize("run", LOOPS, ids=name_of)
def test_a_loop_is_named(run: Callable[[bool], Any]) -> None:
    torch.manual_seed(0)
    findings = run(True).findings
    assert [(finding.code, finding.cause) for finding in findings[:1]] == [LOOPS[run]], findings
    assert run(False).findings == []


@pytest.mark.parametrize("run", HEALTHY_LOOPS, ids=name_of)
def test_a_correct_loop_that_looks_alike_raises_nothing(run: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    assert run().findings == []


@pytest.mark.long
@pytest.mark.parametrize(("make", "bug"), list(itertools.product(LOSSES, (True, False))), ids=name_of)
def test_check_names_a_loss_first(make: Callable[[bool], LossCase], bug: bool) -> None:
    torch.manual_seed(0)
    model, loss, pair = make(bug)
    found = [(f.code, f.cause) for f in sightline.check(model, loss, pair).findings if f.severity != "note"]
    assert found[:1] == ([LOSSES[make]] if bug else [])


def test_a_loop_sees_the_slips_of_a_loss() -> None:
    """Relations of a graph are asked by `watch`, too; those that need targets are not."""
    torch.manual_seed(0)
    seen = []
    for make, (code, cause) in LOSSES.items():
        if code not in ("loss-form", "attention", "exchanged-axes"):
            continue
        model, loss, (inputs, target) = make(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with sightline.watch(model, optimizer=optimizer) as watch:
            loss(model(inputs), target).backward()
            optimizer.step()
        seen += [make.__name__] if (code, cause) in [(f.code, f.cause) for f in watch.findings] else []
    missed = {
        make.__name__ for make, (code, _) in LOSSES.items() if code in ("loss-form", "attention", "exchanged-axes")
    }
    assert missed - set(seen) == {"angles_without_wrapping", "boxes_of_two_formats"}


def test_a_check_takes_several_optimizers_and_a_batch_in_one_argument() -> None:
    torch.manual_seed(0)
    pair = torch.nn.ModuleDict({"first": torch.nn.Linear(10, 4), "critic": torch.nn.Linear(4, 1)})

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = pair

        def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            points, mask = batch
            logits: torch.Tensor = self.parts["first"](points * mask)
            return logits

    optimizers = [torch.optim.Adam(part.parameters()) for part in pair.values()]
    inputs, label = torch.randn(16, 10), torch.arange(16) % 4
    report = sightline.check(
        Both(), torch.nn.CrossEntropyLoss(), ((inputs, torch.ones(16, 10)), label), optimizer=optimizers
    )
    assert [finding for finding in report.findings if finding.severity != "note"] == []
