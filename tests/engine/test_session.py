"""A checkpoint comes before its evaluation; a run that ends anywhere around an evaluation resumes to the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.contract.errors import CheckpointError
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.parts.tasks.classification import Classify
from sightline.runs import checkpoint
from sightline.runs.best_checkpoint import BestCheckpoint
from sightline.runs.run_directory import RunDirectory
from sightline.training.session import TrainingSession
from sightline.training.stop_request import StopRequest
from tests.cases import run_each
from tests.doctor.planting import make
from tests.marks import long_but
from tests.runs.broken_off import Bench, Forked, differences, run_forked

OVERRIDES = (
    "data.train_size=36",
    "model.dropout=0.4",
    "train.batch_size=8",
    "train.ema_decay=0.9",
    "optimizer={name: adam, lr: 3e-3}",
    "schedule={name: cosine}",
    "log.tensorboard=false",
)
"""Three steps an epoch, two epochs; dropout draws, so that a lost or added draw would show."""


def with_overrides(*overrides: str) -> list[str]:
    given = {override.split("=")[0] for override in overrides}
    return [*(each for each in OVERRIDES if each.split("=")[0] not in given), *overrides]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation draws from the global generator, as a model with noise in it may."""
    before = Classify.losses_and_predictions

    def drawing(self: Classify, model: Any, batch: Any, around: Any) -> Any:
        torch.rand(1)
        return before(self, model, batch, around)

    monkeypatch.setattr(Classify, "losses_and_predictions", drawing)


def session_of(folder: Path, built: TrainingSetup, **more: Any) -> TrainingSession:
    folder.mkdir(exist_ok=True)
    directory = RunDirectory(folder, is_writer=True)
    return TrainingSession(built, World(), directory, stop=StopRequest(), record={}, is_quiet=True, **more)


def start(folder: Path, *overrides: str, **more: Any) -> TrainingSession:
    torch.manual_seed(0)
    session = session_of(folder, make(folder.parent, *with_overrides(*overrides)), **more)
    session.start_files()
    session.start()
    return session


def resume(folder: Path, *overrides: str) -> TrainingSession:
    """As `--resume auto` does it, in a process that has drawn something else."""
    torch.manual_seed(99)
    session = session_of(folder, make(folder.parent, *with_overrides(*overrides)))
    newest, rejected = checkpoint.newest_valid(folder)
    assert newest is not None
    assert not rejected
    session.resume(newest)
    return session


# --- ends around an evaluation ----------------------------------------------------------------------------------------


def before_it(session: TrainingSession, ended: Callable[[], None]) -> None:
    """Between the checkpoint and the evaluation."""
    session._evaluate = ended  # type: ignore[method-assign]


def in_its_lines(session: TrainingSession, ended: Callable[[], None]) -> None:
    """The evaluation is done, nothing of it is written."""
    inner = session.metrics_log.on_evaluation
    session.metrics_log.on_evaluation = lambda record: (ended(), inner(record))  # type: ignore[method-assign, assignment]


def after_its_lines(session: TrainingSession, ended: Callable[[], None]) -> None:
    """Its line is in metrics.jsonl, its outcome in no checkpoint."""
    inner = session._evaluate

    def evaluate() -> None:
        inner()
        ended()

    session._evaluate = evaluate  # type: ignore[method-assign]


def after_its_outcome(session: TrainingSession, ended: Callable[[], None]) -> None:
    """Its outcome is in a checkpoint: nothing is to be evaluated again."""
    inner = session._save

    def save(*, is_evaluation_due: bool = False) -> None:
        inner(is_evaluation_due=is_evaluation_due)
        if not is_evaluation_due:
            ended()

    session._save = save  # type: ignore[method-assign]


MOMENTS = (before_it, in_its_lines, after_its_lines, after_its_outcome)


def end_at(session: TrainingSession, step: int, moment: Callable[..., None]) -> None:
    """Train until a moment around the evaluation of a step, and no further."""
    real = session._evaluate, session._save

    def ended() -> None:
        if session.job.step == step:
            raise Killed
        if moment is before_it:
            real[0]()

    moment(session, ended)
    with pytest.raises(Killed):
        session.run()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run that nothing ends, made once for its overrides."""
    made: dict[tuple[str, ...], Path] = {}

    def unbroken(*overrides: str) -> Path:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("unbroken") / "run"
            assert start(folder, *overrides).run() is not None
            made[overrides] = folder
        return made[overrides]

    return unbroken


EVERY_STEP = ("log.every=1",)  # the training line of the evaluated step is written before its checkpoint
OPEN = ("log.every=50",)  # it is written by the evaluation
ONE_STEP_EPOCHS = ("train.batch_size=24", "train.epochs=3", "log.every=2")  # an evaluation after every step
STALE = (
    *("train.batch_size=24", "train.epochs=9", "optimizer={name: adam, lr: 1e-30}"),
    "train.early_stopping={patience: 2}",
)  # the first evaluation is the best, the third ends the training


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("overrides", "step"),
    long_but([(OPEN, 6), (STALE, 3)], [(EVERY_STEP, 3), (OPEN, 6), (ONE_STEP_EPOCHS, 2), (STALE, 3)]),
)
def test_a_run_that_ends_around_an_evaluation_is_the_unbroken_one(
    tmp_path: Path, unbroken: Any, overrides: tuple[str, ...], step: int, moment: Callable[..., None]
) -> None:
    reference = unbroken(*overrides)
    folder = tmp_path / "run"
    end_at(start(folder, *overrides), step, moment)
    assert checkpoint.load(folder).step == step, "the weights of the step are on disk"
    resumed = resume(folder, *overrides)
    assert resumed._is_evaluation_due == (moment is not after_its_outcome)
    assert resumed.run() is not None
    assert differences(folder, reference) == []


def test_a_training_ends_early_after_evaluations_that_do_not_improve(unbroken: Any) -> None:
    folder = unbroken(*STALE)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [1, 2, 3]
    assert json.loads((folder / "final.json").read_text())["ended_early"] == {"step": 3, "of": 9}
    assert "the last 2 evaluations did not improve" in (folder / "train.log").read_text()
    assert os.readlink(folder / "checkpoints" / "best") == "step_00000001"


@run_each(
    "mode, min_change, values, stale",
    [
        ("max", 0.0, [0.1, 0.2, 0.2, 0.1, math.nan], [0, 0, 1, 2, 3]),
        ("max", 0.0, [0.1, 0.05, 0.11, 0.11], [0, 1, 0, 1]),
        ("min", 0.0, [3.0, 4.0, 2.0, 2.5], [0, 1, 0, 1]),
        ("max", 0.1, [0.5, 0.55, 0.58, 0.61, 0.7], [0, 1, 2, 0, 1]),
        ("min", 0.1, [math.nan, 1.0, 0.95, 0.85], [1, 0, 1, 0]),
    ],
)
def test_evaluations_without_progress_are_counted(
    mode: str, min_change: float, values: list[float], stale: list[int]
) -> None:
    """Small gains add up: each is compared with the last value that counted; the best is the best of all."""
    best, counts = BestCheckpoint(), []
    for step, value in enumerate(values, start=1):
        best = best.after(step, value, mode, min_change=min_change)
        counts.append(best.stale)
    assert counts == stale
    extreme = (max if mode == "max" else min)(value for value in values if value == value)
    assert (best.value, best.step) == (extreme, values.index(extreme) + 1)


def test_it_ends_twice(tmp_path: Path, unbroken: Any) -> None:
    """The resumed run ends in the same evaluation again."""
    folder = tmp_path / "run"
    end_at(start(folder, *OPEN), 3, after_its_lines)
    end_at(resume(folder, *OPEN), 3, after_its_lines)
    assert resume(folder, *OPEN).run() is not None
    assert differences(folder, unbroken(*OPEN)) == []


def test_an_evaluation_that_dies_leaves_the_weights_of_its_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    session = start(folder)

    def dies(*given: Any, **named: Any) -> Any:
        raise KeyError("logits")

    object.__setattr__(session.built, "selection_evaluator", dies)
    with pytest.raises(KeyError):
        session.run()
    snapshot = checkpoint.load(folder)
    assert snapshot.step == 3
    assert snapshot.state["evaluation_due"]
    assert all(torch.equal(tensor, snapshot.model[name]) for name, tensor in session.job.model.state_dict().items())
    assert not (folder / "checkpoints" / "best").exists(), "nothing was evaluated, so nothing is best"


def test_the_best_of_before_stays_until_the_evaluation_has_spoken(tmp_path: Path) -> None:
    """`best` is an outcome of evaluations: a checkpoint that was not evaluated cannot be it."""
    folder = tmp_path / "run"
    end_at(start(folder, *OPEN), 6, before_it)
    assert os.readlink(folder / "checkpoints" / "last") == "step_00000006"
    assert os.readlink(folder / "checkpoints" / "best") == "step_00000003"
    resume(folder, *OPEN)
    assert os.readlink(folder / "checkpoints" / "best") == "step_00000003"


def test_a_resumed_evaluation_voids_no_earlier_point_of_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, with_events = tmp_path / "run", ("log.every=1", "log.tensorboard=true")
    end_at(start(folder, *with_events), 3, after_its_lines)
    assert resume(folder, *with_events).run() is not None
    shown = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in shown.Scalars("validation/overall_accuracy")] == [3, 6]
    steps = [event.step for event in shown.Scalars("train/loss/total")]
    assert [step for step in steps if step != 3] == [1, 2, 4, 5, 6]


# --- a real kill ------------------------------------------------------------------------------------------------------

PLUGIN = '''\

import signal
from pathlib import Path

import torch

import sightline


@sightline.register.metric("fatal")
class Fatal(sightline.Metric):
    """Ends the process in its first real evaluation while a file is there. Source: ours."""

    higher_is_better = True

    def new_state(self):
        return {"seen": torch.tensor(0)}

    def update(self, state, *, label):
        state["seen"] += label.numel()
        if Path("FLAG").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    def compute(self, state):
        return {"seen": float(state["seen"])}
'''


@pytest.mark.long
@pytest.mark.processes
def test_a_run_killed_in_its_evaluation_goes_on_by_resume_auto(tmp_path: Path) -> None:
    bench, flag = Bench(tmp_path), tmp_path / "flag"
    bench.plugin.write_text(bench.plugin.read_text() + PLUGIN.replace("FLAG", str(flag)))
    metrics = "metrics=[{name: accuracy}, {name: fatal}]"
    code, text = run_forked(bench.words("whole", metrics, slow=True), tmp_path / "whole.log")
    assert code == 0, text
    flag.touch()
    killed = Forked(bench.words("killed", metrics, slow=True), tmp_path / "killed.log")
    killed.processes[0].join(60)
    assert killed.processes[0].exitcode == -signal.SIGKILL, killed.log.read_text()
    state = json.loads((tmp_path / "killed/checkpoints/last/state.json").read_text())
    assert state["state"]["evaluation_due"]
    flag.unlink()
    code, text = run_forked(bench.words("killed", metrics, slow=True, resume="auto"), tmp_path / "again.log")
    assert code == 0, text
    assert f"resumed at step {state['step']}" in text
    assert differences(tmp_path / "killed", tmp_path / "whole") == []


FORGED_STATES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"groups": None}, "groups: Input should be a valid"),
    ({"groups": []}, "shorter"),
    ({"groups": [{}]}, "KeyError: 'lr'"),
    ({"num_steps": "3"}, "num_steps: Input should be a valid integer"),
    ({"best": {"step": "x", "value": None}}, "best.step: Input should be a valid integer"),
    ({"random": [{"torch": 5}]}, "random.0.torch: Input should be a valid string"),
    ({"scaler": None}, "scaler: Input should be"),
    ({"unwritten": None}, "unwritten: Input should be a valid"),
    ({"unwritten": [{"step": 1}]}, "0.num_steps: Field required"),
    ({"evaluation_due": "no"}, "evaluation_due: Input should be a valid boolean"),
)


def test_a_state_that_lacks_something_is_one_line(tmp_path: Path) -> None:
    """Though the manifest vouches for it: a checkpoint that was made or edited by something else."""
    session = start(tmp_path / "run")
    session._save()
    sound = checkpoint.load(tmp_path / "run")
    for number, (change, reason) in enumerate([({key: None for key in sound.state}, "Input"), *FORGED_STATES]):
        forged = replace(sound, state=sound.state | change)
        path = checkpoint.save(tmp_path / str(number), forged, keep_last=1, is_best=False)
        with pytest.raises(CheckpointError, match="is not the state of this training") as caught:
            session.resume(path)
        assert str(caught.value).startswith(f"{path}/state.json: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
    empty = checkpoint.save(tmp_path / "empty", replace(sound, state={}), keep_last=1, is_best=False)
    with pytest.raises(CheckpointError, match=r"num_steps: Field required; groups: Field required"):
        session.resume(empty)
