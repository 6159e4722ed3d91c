"""Each planted bug is named at the step at which it is true; healthy loops raise nothing; nothing changes."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.watch.gradients import OrderMonitor
from tests.runtime.healthy_loops import batches, net
from tests.runtime.planted_loops import PLANTS, Overflow, train


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_named_at_its_step(name: str) -> None:
    torch.manual_seed(0)
    plant = PLANTS[name]
    findings = plant.run().findings
    assert findings, "nothing was found"
    first = findings[0]
    assert (first.code, first.cause) == (plant.code, plant.cause), "\n".join(map(str, findings))
    assert first.phase == "runtime"
    assert (first.where.step or 0) <= plant.step or plant.step == 0


def weights_after(*, is_watched: bool, steps: int = 12) -> list[torch.Tensor]:
    """Train with dropout, batch norm, momentum and clipping; return parameters, buffers, optimiser and random state."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer, every=3) if is_watched else contextlib.nullcontext():
        for points, label in batches(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.state_dict().values(), *moments, torch.get_rng_state()]


def test_watching_changes_no_bit() -> None:
    bare, watched = weights_after(is_watched=False), weights_after(is_watched=True)
    assert all(map(torch.equal, bare, watched))


def test_nothing_hangs_on_the_model_or_on_torch_afterwards() -> None:
    backward = torch.autograd.backward
    module = sys.modules["torch.optim.optimizer"]
    hooks = module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks
    model = net()
    with pytest.raises(KeyError), sightline.watch(model):
        raise KeyError
    assert torch.autograd.backward is backward
    assert not any(hooks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_copy_and_a_saved_model_have_silent_hooks() -> None:
    model = net()
    with sightline.watch(model) as watch:
        copied, stored = copy.deepcopy(model), io.BytesIO()
        torch.save(model, stored)
        copied(torch.randn(4, 10))
        stored.seek(0)
        torch.load(stored, weights_only=False)(torch.randn(4, 10))
    assert watch.findings == []


def test_a_monitor_that_fails_does_not_end_the_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrderMonitor, "after_backward_measured", lambda *_: 1 / 0)
    report = train(clear=None, steps=4).report
    assert report.figures["updates"] == 4
    assert any("not judged" in line and "ZeroDivisionError" in line for line in report.verdict)
    assert [record.message for record in caplog.records] == [
        "watch-failed: OrderMonitor is switched off: events of the loop: ZeroDivisionError: division by zero"
    ]


def test_a_layer_is_searched_at_the_end_where_it_is_not_asked_for() -> None:
    torch.manual_seed(0)
    watch = train(Overflow(), check=False)
    (finding,) = watch.findings
    assert (finding.where.layer, finding.where.sample, finding.where.step) == ("middle", 5, 4)
    assert "float64" in finding.measured


def test_weights_that_are_not_finite_from_the_start_lead_to_their_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight[1, 3] = torch.nan
    (finding,) = (each for each in train(model).findings if each.code == "non-finite")
    assert finding.where.layer == "2"


def test_a_finding_names_the_line_of_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(3):
            F.cross_entropy(model(points), label).backward()
            optimizer.step()
    (finding,) = watch.findings
    assert Path(finding.where.file or "") == Path(__file__)
    assert Path(__file__).read_text().splitlines()[(finding.where.line or 0) - 1].strip() == "optimizer.step()"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    line = caplog.records[0].getMessage()
    assert str(watch.report).startswith(line.partition(f" ({finding.where})")[0])
    assert "\n" not in line  # the report says it in full, and says it once


def test_a_finding_of_the_whole_loop_names_the_line_that_began_it() -> None:
    model = net()
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(sightline.watch(model))
        for points, label in batches(30):
            F.cross_entropy(model(points), label).backward()
            model.zero_grad()
    (finding,) = watch.findings
    assert finding.code == "no-update"
    line = Path(finding.where.file or "").read_text().splitlines()[(finding.where.line or 0) - 1]
    assert line.strip() == "watch = stack.enter_context(sightline.watch(model))"


def test_a_report_is_text_json_and_a_page(tmp_path: Path) -> None:
    report = train(clear=None).report
    for ending in ("json", "html", "txt"):
        report.save(tmp_path / f"report.{ending}")
    document = json.loads((tmp_path / "report.json").read_text())
    assert (document["errors"], document["findings"][0]["code"]) == (1, "gradients-kept")
    assert "gradients-kept" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "report.txt").read_text() == report.to_text(verbose=True) + "\n"
    assert not report.is_sound
    with pytest.raises(UserError, match=r"found '\.pdf'"):
        report.save(tmp_path / "report.pdf")


@pytest.mark.parametrize(("rate", "stands"), [(1e-6, True), (1e-1, False)])
def test_the_verdict_says_that_a_loss_has_not_fallen(rate: float, stands: bool) -> None:
    torch.manual_seed(0)
    model = net()
    verdict = train(model, optimizer=torch.optim.SGD(model.parameters(), lr=rate), steps=60).report.verdict
    assert any("the loss has not fallen" in line for line in verdict) == stands


def test_a_watch_is_not_felt_between_the_steps_that_it_measures() -> None:
    """Eight of the first 200 steps are measured; between them one hook stands on the model, and none on its parts."""
    model, measured = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(200):
            measured.append(watch._loop.is_measured)
            optimizer.zero_grad()
            F.cross_entropy(model(points), label).backward()
            assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules() if m is not model)
            optimizer.step()
    assert sum(measured) == 8
    assert len(model._forward_hooks) == 0


def test_only_modules_are_watched() -> None:
    with pytest.raises(UserError, match="found int"):
        sightline.watch([net(), 3])  # type: ignore[list-item]
