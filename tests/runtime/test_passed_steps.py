"""Steps that a loop takes unseen, as a GPU replays them: counted, and what is measured between them is judged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sightline.doctor.watch.watch import Watch
from sightline.engine.distributed import World
from sightline.engine.loop import train
from tests.runs.small import small_run
from tests.waits import device_form


def run_loop(rate: float, num_steps: int = 80, *, goes_wrong_at: int = -1) -> tuple[Watch, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    samples, labels = torch.randn(320, 8), torch.randint(3, (320,))

    def step(number: int) -> Tensor:
        part = torch.arange(number * 4, number * 4 + 32) % 320
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(samples[part]), labels[part])
        (loss * float("nan") if number == goes_wrong_at else loss).backward()
        optimizer.step()
        return loss

    with Watch({"": model}, optimizers=[optimizer], every=20) as watch:
        for number in range(num_steps):
            if watch.is_asked:
                step(number)
            else:
                with watch.pass_over():
                    step(number)
    return watch, model


def test_a_healthy_loop_has_no_finding_and_the_verdict_says_what_was_not_seen() -> None:
    watch, model = run_loop(1e-3)
    assert watch.findings == []
    assert watch.report.figures["updates"] == 80
    assert any("steps, which a GPU replayed, were not looked at" in line for line in watch.report.verdict)
    _, other = run_loop(1e-3)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_what_is_measured_is_judged() -> None:
    watch, _ = run_loop(10.0)
    assert [finding.code for finding in watch.findings][:1] == ["large-update"]


def test_a_fault_in_an_unseen_step_shows_at_the_next_measured_one() -> None:
    watch, _ = run_loop(1e-3, goes_wrong_at=30)
    (finding,) = [finding for finding in watch.findings if finding.code == "non-finite"]
    assert finding.where.step == 41


def test_the_engine_passes_over_what_it_may_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the graphs, which computes each step."""

    class Graphs:
        reason, num_replayed = "", 0

        def run(self, key, batches, work, state):  # type: ignore[no-untyped-def]
            self.num_replayed += 1
            return work(batches)

    graphs = Graphs()
    monkeypatch.setattr("sightline.engine.loop._make_graphs", lambda job, world: graphs)
    built = small_run("train.steps=24", "train.epochs=20")
    named = {"optimizers": [built.job.optimizer], "every": 10}
    with device_form(monkeypatch), Watch({"": built.job.model}, **named) as watch:
        built.job.watch = watch
        train(built.job, World(), lambda record, stop: False)
    assert watch.findings == []
    assert watch.report.figures["updates"] == 24
    assert 10 < graphs.num_replayed < 24
