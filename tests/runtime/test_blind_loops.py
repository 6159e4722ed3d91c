"""What a blind exam missed is found, and its mended forms, and correct codes that look alike, raise nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sightline
from tests.runtime.blind_loops import HEALTHY_LOOPS, LOOPS
from tests.runtime.blind_losses import LOSSES


def name_of(value: Any) -> str | None:
    return getattr(value, "__name__", None)


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
