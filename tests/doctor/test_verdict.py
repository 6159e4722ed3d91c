"""The verdict of a check says what held, and what nobody judged; nothing of the user's changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.check import check_module

ROWS, LABELS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
BATCH = ROWS, LABELS


def test_it_counts_what_held_and_names_what_could_not_be_asked() -> None:
    first, second = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH).verdict
    assert first.startswith("verdict: of ")
    assert first.endswith(" held and 0 did not")
    assert "no optimizer was given" in second
    assert "no evaluation given" in second


def test_what_is_not_afforded_is_named_with_its_cost() -> None:
    report = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH, budget_s=0.0)
    assert "nobody judged: " in report.verdict[-1]
    assert " s of processor time, 0.0 left" in report.verdict[-1]


def test_a_loss_that_fails_is_a_finding_and_no_exception() -> None:
    def fail(outputs: Tensor, target: Tensor) -> Tensor:
        raise ValueError("no such unit")

    report = check_module(nn.Linear(6, 3), fail, BATCH)
    assert [finding.code for finding in report.findings] == ["first-step"]
    assert "passed: ValueError: no such unit" in report.verdict[-1]


def test_one_cause_is_one_finding() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1))
    causes = [finding.cause for finding in sightline.check(model, nn.CrossEntropyLoss(), BATCH).findings]
    assert causes.count("loss.double_softmax") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about torch.jit, and about itself
@pytest.mark.parametrize("fuse", [torch.jit.script, partial(torch.compile, backend="aot_eager")])
def test_a_model_that_torch_fuses_is_asked_what_it_ends_in(fuse: Callable[[nn.Module], nn.Module]) -> None:
    model = fuse(nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)))
    for _ in range(3):  # from its second run on one node of the graph stands for all of a scripted one
        model(ROWS)
    causes = [finding.cause for finding in sightline.check(model, nn.CrossEntropyLoss(), BATCH).findings]
    assert "loss.double_softmax" in causes


@pytest.mark.parametrize("words", [{"loader": 5}, {"loader": BATCH, "evaluation": 5}])
def test_what_is_no_batch_is_refused_in_a_line(words: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^check: a batch is \(inputs, target\) or a mapping, .*; found 5$"):
        sightline.check(nn.Linear(6, 3), nn.CrossEntropyLoss(), **words)


def test_each_tensor_outside_of_the_model_counts() -> None:
    outside = [torch.randn(3, requires_grad=True) for _ in range(2)]

    class Shifted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * outside[0].exp() + outside[1]

    found = sightline.check(Shifted(6, 3), nn.CrossEntropyLoss(), BATCH).findings
    (finding,) = [each for each in found if each.code == "unregistered"]
    assert "2 tensor(s)" in str(finding)


class HalfRegistered(nn.Module):
    """Layers of which one is in a plain list, with a tensor outside; a view in the place of a transposition."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.hidden, self.read_scale = [nn.Linear(3, 8)], lambda: scale
        self.mixed, self.last = nn.Conv1d(8, 16, 1), nn.Linear(16, 3)

    def forward(self, points: Tensor) -> Tensor:
        rows = self.hidden[0](points) * self.read_scale()
        return self.last(self.mixed(rows.view(len(rows), 8, -1)).amax(dim=2))


def test_layers_that_nobody_registers_are_asked_in_float64_too() -> None:
    scale = torch.ones(())
    model, clouds = HalfRegistered(scale), torch.randn(32, 20, 3, generator=torch.Generator().manual_seed(0))
    before = model.hidden[0].weight.clone()
    report = sightline.check(model, nn.CrossEntropyLoss(), (clouds, LABELS))
    assert {"unregistered", "point-order"} <= {finding.code for finding in report.findings}, report
    assert "hidden[0].weight, hidden[0].bias" in str(report)
    assert not any("permuted_points" in line for line in report.verdict)
    assert scale.dtype == torch.float32
    assert torch.equal(model.hidden[0].weight, before)
