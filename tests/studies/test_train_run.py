"""Training from Python: the command's run, bit for bit, whatever ends it meanwhile, and nothing printed."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sightline
from sightline.config import read_config
from sightline.doctor.finding import Finding, FindingLocation
from sightline.engine.build import build
from sightline.engine.observers import MetricsLog
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.training.stop_request import StopRequest, restore_signal_handlers
from sightline.training.train_result import Reporter, TrainResult
from sightline.training.train_run import sample_counts, train_run
from sightline.workbench.check import suite
from tests.command import succeed
from tests.doctor.planting import make
from tests.marks import long_but
from tests.runs.broken_off import CONFIG, differences, last_step

SHORT = "transforms.train=[{name: jitter}]"


def saved_step(run: Path) -> int:
    """The step of the last checkpoint."""
    return int(json.loads((run / "checkpoints/last/state.json").read_text())["step"])


class Recorded(Reporter):
    """Keeps the notes and findings of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.found: list[Finding] = []

    def findings(self, findings: Sequence[Finding]) -> None:
        self.found.extend(findings)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def unbroken(config: Path) -> Path:
    """The run that the command trains, without the checks, which change no bit."""
    out = config.parent / "unbroken"
    succeed("train", config, SHORT, "--no-check", "--device", "cpu", "--out", out)
    return out


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """A signal comes at the end of a step."""
    before = MetricsLog.on_step

    def then(self: MetricsLog, record: StepRecord) -> None:
        before(self, record)
        if record.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricsLog, "on_step", then)


def test_a_run_of_python_is_the_run_of_the_command(
    config: Path, unbroken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reporter = Recorded()
    result = sightline.train_run(config, [SHORT], out=tmp_path / "run", device="cpu", reporter=reporter)
    assert (result.path, result.is_finished, result.exit_code) == (tmp_path / "run", True, 0)
    assert differences(unbroken, tmp_path / "run") == []
    assert capfd.readouterr() == ("", "")
    assert reporter.notes[-1] == f"run directory: {tmp_path / 'run'}"
    assert result.document is not None
    assert set(result.document["metrics"]) == {"overall_accuracy", "mean_class_accuracy"}

    lock = tmp_path / "run/.lock"  # killed between its last file and its end
    for host, is_kept in ((socket.gethostname(), False), ("another", True)):
        lock.write_text(json.dumps({"pid": os.getpid(), "host": host, "started": "before this boot"}))
        again = sightline.train_run(
            config, [SHORT], out=tmp_path / "run", device="cpu", resume="auto", reporter=reporter
        )
        assert again.is_finished
        assert again.document is not None
        assert again.document["metrics"] == result.document["metrics"]
        assert "this run is finished; nothing to do" in reporter.notes[-1]
        assert lock.exists() == is_kept


@pytest.mark.parametrize("number", long_but([signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]))
def test_a_run_that_a_signal_stopped_is_resumed(
    number: int, config: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        stop_at(patched, 4, number)
        stopped = sightline.train_run(config, [SHORT], out=tmp_path / "run", device="cpu", checks=False)
    assert (stopped.stopped_by, stopped.is_finished, stopped.exit_code) == (number, False, 128 + number)
    assert stopped.document is None
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    resumed = sightline.train_run(config, [SHORT], out=tmp_path / "run", device="cpu", resume="auto", checks=False)
    assert resumed.is_finished
    assert differences(unbroken, tmp_path / "run") == []


def test_a_stop_of_the_caller_ends_the_run(config: Path, unbroken: Path, tmp_path: Path) -> None:
    """As a sweep ends a trial that it gives up: by the stop that it has passed, which is false until then."""
    stop = StopRequest()

    class Pruner:
        def on_step(self, record: StepRecord) -> None:
            if record.step == 3:
                stop.request()

        def on_evaluation(self, record: EvaluationRecord) -> None: ...

        def on_end(self, reason: str) -> None: ...

    out, words = tmp_path / "run", read_config(config, [SHORT])
    with restore_signal_handlers():
        stopped = train_run(words, out=out, device="cpu", stop=stop, observers=[Pruner()], checks=False)
    assert (stopped.stopped_by, last_step(out)) == (signal.SIGTERM, 4)
    assert train_run(words, out=out, device="cpu", resume="auto", checks=False).is_finished
    assert differences(unbroken, out) == []


def test_a_run_that_is_stopped_before_its_first_step_keeps_its_state(
    config: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it is built, or within a check, which ends; the resumed run is that of no stop, bit by bit."""
    out = tmp_path / "run"

    def build_stopped(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr("sightline.training.train_run.build", build_stopped)
        options = {"out": out, "device": "cpu", "checks": False, "shows_progress": True}
        with restore_signal_handlers():
            stopped = train_run(read_config(config, [SHORT]), **options)
    assert (stopped.stopped_by, stopped.exit_code, saved_step(out)) == (signal.SIGTERM, 143, 0)
    assert "SIGTERM: saving before the first step; the same again ends at once\n" in capsys.readouterr().err
    assert sightline.train_run(config, [SHORT], out=out, device="cpu", resume="auto", checks=False).is_finished
    assert differences(unbroken, out) == []


def test_a_check_ends_where_a_signal_comes(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rule after it judges, the state of step 0 is saved, and the run records that its check is not complete."""
    out = tmp_path / "run"

    def judge(built: Any, world: Any, examination: Any) -> list[Finding]:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the check went on")

    monkeypatch.setattr(suite, "run_quick", judge)
    with restore_signal_handlers():
        stopped = train_run(read_config(config, [SHORT]), out=out, device="cpu", shows_progress=True)
    assert (stopped.stopped_by, saved_step(out)) == (signal.SIGINT, 0)
    assert "SIGINT: ending the check, saving before the first step; the same" in capsys.readouterr().err
    assert json.loads((out / "environment.json").read_text())["checked"] is False


def test_an_error_of_the_checks_keeps_a_run_from_starting(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"cause": "loss.sign", "where": FindingLocation(), "measured": "1", "expected": "0", "action": "mend it"}
    error = Finding("planted", "error", "a planted error", **about)
    monkeypatch.setattr(suite, "run_quick", lambda built, world, examination: [error])
    reporter = Recorded()
    result = sightline.train_run(config, [SHORT], out=tmp_path / "run", device="cpu", reporter=reporter)
    assert result == TrainResult(None, (error,))
    assert (result.is_finished, result.exit_code, reporter.found) == (False, 1, [error])
    assert not (tmp_path / "run").exists()


def test_a_run_trains_beside_the_main_thread(config: Path, tmp_path: Path) -> None:
    """Where signals cannot be handled."""
    results: list[TrainResult] = []

    def train() -> None:
        results.append(sightline.train_run(config, [SHORT, "train.steps=2"], out=tmp_path / "run", checks=False))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert [result.is_finished for result in results] == [True]


def test_signals_do_afterwards_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with restore_signal_handlers():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ([], "samples: 216 of training, 24 of validation, held out of the training part, 24 of test"),
        (["evaluate.select=test"], "samples: 240 of training, 24 of test"),
    ],
)
def test_the_samples_of_every_part_are_counted(overrides: list[str], counts: str, tmp_path: Path) -> None:
    """A tenth of 240 is held out where the test part does not choose."""
    assert sample_counts(make(tmp_path, *overrides).data) == counts
