"""`sightline sweep`: spaces are read strictly, and workers that share a storage train every trial once."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from sightline.commands.look import SweepOptions
from sightline.config import read_config
from sightline.contract.errors import ConfigError, RunError, UserError
from sightline.store.files.atomic_write import disk_failure
from sightline.training.stop_request import StopRequest
from sightline.training.train_result import Reporter, TrainResult
from sightline.verbs.sweep import _locate
from sightline.verbs.train import SeriesReporter
from sightline.workbench.study import sweep as sweep_module
from sightline.workbench.study.grid import parse_factors
from sightline.workbench.study.journal import Journal
from sightline.workbench.study.optuna_storage import open_study
from sightline.workbench.study.search_space import read_space
from sightline.workbench.study.sweep import Sweep, TrialObserver
from tests.cases import run_each
from tests.command import refuse, run_here, succeed
from tests.runs.small import PLAIN, ROOT, SMALL

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
LR = "optimizer.lr={low: 1e-4, high: 1e-1, log: true}"
SIZES = "train.batch_size=8,16"
OVERRIDES = tuple(word for word in SMALL if not word.startswith("train.batch_size"))


@dataclass
class Record:
    """What an observer reads of a step or an evaluation."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    epoch: int = 0
    step: int = 1
    num_steps: int = 2


class Trainer:
    """Training that writes the figures of a rule: the larger the learning rate, the better; `outcomes` come first."""

    def __init__(self, outcomes: Sequence[object] = ()) -> None:
        self.outcomes = list(outcomes)
        self.rates: list[float] = []

    def __call__(self, config: Any, *, out: Path, stop: StopRequest, observers: Sequence[Any], **_: Any) -> TrainResult:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, TrainResult):
            return outcome
        if callable(outcome):  # meanwhile, in another worker
            outcome = outcome()
        self.rates.append(config.optimizer.arguments["lr"])
        out.mkdir(parents=True, exist_ok=True)
        figures = [outcome or self.rates[-1], 0.0]
        lines = [{"epoch": epoch, "split": "validation", "overall_accuracy": f} for epoch, f in enumerate(figures)]
        (out / "metrics.jsonl").write_text("".join(f"{json.dumps({'step': 1, **line})}\n" for line in lines))
        for epoch, figure in enumerate(figures):
            observers[0].on_step(Record(step=epoch + 1))
            observers[0].on_evaluation(Record({"overall_accuracy": figure}, epoch))
            if stop:
                return TrainResult(out, stopped_by=signal.SIGTERM)
        return TrainResult(out, document={})


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(sweep_module, "train", trainer)
    return trainer


def run_sweep(out: Path, *space: str, **settings: Any) -> tuple[dict[str, Any], int]:
    given = {"overrides": OVERRIDES, "sampler": "random", "trials": 4, "device": "cpu"} | settings
    return Sweep(SweepOptions(config=CONFIG, out=out, space=space or (LR,), **given), Reporter())()


# --- spaces ----------------------------------------------------------------------------------------------------------


def test_a_space_is_read_from_a_file_and_words(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("optimizer.lr: {low: 1e-4, high: 1e-1, log: true}\ntrain.epochs: {low: 2, high: 8, step: 2}\n")
    words = ["train.batch_size=8,16", "transforms.train=[[], [{name: scale}]]", "model.dropout={low: 0.0, high: 0.5}"]
    rate, epochs, sizes, transforms, dropout = read_space([str(path), *words])
    assert (rate.key, rate.low, rate.high, rate.is_log, str(rate.where)) == (
        "optimizer.lr",
        1e-4,
        1e-1,
        True,
        f"{path}:1: optimizer.lr",
    )
    assert (epochs.is_whole, epochs.step, epochs.list_bounds()) == (True, 2, ["2", "8"])
    assert sizes.choices == ("8", "16")
    assert transforms.choices == ("[]", '[{name: "scale"}]')
    assert (dropout.is_whole, dropout.list_bounds()) == (False, ["0.0", "0.5"])


FAULTS = {
    "optimizer: {lr: {low: 1, high: 2}}": "1: optimizer.lr: is not a key of a range; a key of the config is written",
    "a: {low: 2, high: 1}": "1: a: is no range: `low <= high` must hold",
    "a: {high: 1}": "1: a: low is missing, a number is needed",
    "a: {low: true, high: 2}": "low: found true, a number is needed",
    "a: {low: 1, high: x}": "high: found the text 'x', a number is needed",
    "a: {low: 0, high: 2, log: true}": "1: a: is no range: `low >= 1` must hold for `log=True`",
    "a: {low: 1, high: 2, log: 1}": "log: found 1, true or false is needed",
    "a: {low: 1, high: 9, step: 0}": "is no range: `step > 0` must hold",
    "a: {low: 1, high: 9, step: 0.5}": "step: found 0.5, must be a whole number",
    "a: {low: 1, high: 9, step: 2, log: true}": "is no range: ",
    "a: {low: 0.1, high: 0.2, step: 0.5}": "the range is not divisible by `step`.",
    "a: [1, 1]": "1: a: lists a value twice",
    "a: []": "1: a: found [], allowed is a list of values",
    "a: 3": "1: a: found 3, allowed is a list of values",
    "seed: [1, 2]": "1: seed: cannot be searched: a seed is not chosen by its figure",
    "evaluate.metric: [a, b]": "trials with other metrics cannot be compared",
    "a: [1]\na: [2]": "2: a: 'a' is given twice",
    "a: !!python/object:os.system [x]": "the tag",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_of_a_space_have_file_and_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(ConfigError) as raised:
        read_space([str(path)])
    assert str(raised.value).startswith(str(path))
    assert FAULTS[text] in str(raised.value)


def test_keys_are_tried_on_the_config_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "optimizer.lr: [0.1]\noptimizer.lrr: [1, 2]\ntrain.batch_size: {low: 0, high: 4}\nmodel.dropout: [x]\n"
    )
    text = refuse("sweep", CONFIG, "--space", path, "--out", tmp_path / "out", "optimizer.lr=0.5")
    lines = text.removeprefix("error: ").splitlines()
    assert len(lines) == 4
    for line, expected in zip(
        lines,
        ("1: optimizer.lr: is also given", "2: optimizer.lrr: ", "3: train.batch_size: ", "4: model.dropout: "),
        strict=True,
    ):
        assert line.startswith(f"{path}:{expected}"), line
    assert not (tmp_path / "out").exists()


# --- sweeps ----------------------------------------------------------------------------------------------------------


def test_the_best_trial_is_that_of_the_best_evaluation(trainer: Trainer, tmp_path: Path) -> None:
    document, code = run_sweep(tmp_path)
    assert code == 0
    assert (document["metric"], document["mode"], document["part"]) == ("overall_accuracy", "max", "validation")
    assert document["best"]["value"] == max(trainer.rates)
    assert document["best"]["epoch"] == 1
    assert document["best"]["overrides"] == [f"optimizer.lr={max(trainer.rates)!r}"]
    assert json.loads((tmp_path / "sweep.json").read_text()) == document
    assert all(1e-4 <= rate <= 1e-1 for rate in trainer.rates)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_resumed_sweep_draws_what_one_in_a_single_go_does(sampler: str, trainer: Trainer, tmp_path: Path) -> None:
    for name, numbers in (("whole", (14,)), ("parts", (3, 13, 14, 14))):
        for number in numbers:
            document, _ = run_sweep(tmp_path / name, LR, SIZES, sampler=sampler, trials=number)
        assert len(document["trials"]) == 14
    overrides = [json.loads((tmp_path / name / "sweep.json").read_text())["trials"] for name in ("whole", "parts")]
    assert [row["overrides"] for row in overrides[0]] == [row["overrides"] for row in overrides[1]]
    assert len({tuple(row["overrides"]) for row in overrides[0]}) == 14
    other, _ = run_sweep(tmp_path / "seed", LR, SIZES, sampler=sampler, trials=1, seed=1)
    assert other["trials"][0]["overrides"] != overrides[0][0]["overrides"]


def test_a_direction_of_min_looks_for_the_least(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "resolve_metric_mode", lambda *_: "min")
    trainer.outcomes = [0.5, 0.25, 0.75]
    document, _ = run_sweep(tmp_path, trials=3)
    assert document["best"]["value"] == 0.0, "the second epoch of each"


def test_failed_trials_are_left_out_and_a_faulty_config_ends_the_sweep(trainer: Trainer, tmp_path: Path) -> None:
    trainer.outcomes = [RunError("step 3: the loss is nan"), TrainResult(None)]
    document, code = run_sweep(tmp_path / "a", trials=4)
    assert (code, [row["state"] for row in document["trials"]]) == (0, ["failed", "failed", "finished", "finished"])
    assert document["trials"][0]["reason"] == "RunError: step 3: the loss is nan"
    trainer.outcomes = [KeyError("of a plugin")] * 9
    document, code = run_sweep(tmp_path / "b", trials=9)
    assert (code, len(document["trials"]), document["best"]) == (1, 3, None)
    assert document["trials"][2]["reason"].startswith(f"KeyError: 'of a plugin' ({__file__}:")


def test_a_sweep_of_failures_says_why_and_goes_on_once_the_cause_is_mended(trainer: Trainer, tmp_path: Path) -> None:
    words = ("sweep", CONFIG, *OVERRIDES, "--space", LR, "--out", tmp_path, "--device", "cpu", "--trials")
    trainer.outcomes = [RunError("no memory")] * 7
    for number, advice in ((7, "the same command goes on"), (7, "the same command goes on"), (6, "a larger --trials")):
        code, _, err = run_here(*words, number)
        assert code == 1
        assert "no trial is finished; " in err
        assert "failed: RunError: no memory\n" in err
        assert advice in err
    trainer.outcomes = []
    document, code = run_sweep(tmp_path, trials=8, overrides=(*OVERRIDES, "model.dropout=0.7"), sampler="tpe")
    assert (code, [row["state"] for row in document["trials"]]) == (0, [*["failed"] * 6, "finished", "finished"])


def test_a_trial_is_named_by_the_folder_that_its_worker_trained_it_in(trainer: Trainer, tmp_path: Path) -> None:
    for name, trials in (("a", 1), ("b", 2)):
        document, _ = run_sweep(tmp_path / name, trials=trials, storage=f"sqlite:///{tmp_path}/shared.db")
    expected = [str(tmp_path / "a" / "trials" / "0000"), str(tmp_path / "b" / "trials" / "0001")]
    assert [row["run"] for row in document["trials"]] == expected
    assert [row["host"] for row in document["trials"]] == [socket.gethostname()] * 2
    assert _locate({"host": "elsewhere", "run": "/none"}) == "elsewhere:/none"


def test_a_stopped_worker_hands_its_trial_on(trainer: Trainer, tmp_path: Path) -> None:
    for _ in range(5):  # a signal is no fault: as often as it comes
        trainer.outcomes = [TrainResult(tmp_path / "trials" / "0000", stopped_by=signal.SIGTERM)]
        document, code = run_sweep(tmp_path, trials=2)
        assert code == 128 + signal.SIGTERM
        assert (document["num_running"], len(trainer.rates)) == (1, 0)
    document, code = run_sweep(tmp_path, trials=2)
    assert (code, [row["state"] for row in document["trials"]]) == (0, ["finished"] * 2)
    assert document["trials"][0]["overrides"] == [f"optimizer.lr={trainer.rates[0]!r}"]


def test_a_full_disk_ends_a_sweep_that_the_same_command_goes_on_with(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that refuses a line of the journal, whose earlier lines stay whole; no trial has failed by it."""

    def refuse_lines() -> float:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 40, limits[1]))
        return 0.5

    journal, limits = tmp_path / "sweep.journal", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ("sweep", CONFIG, *OVERRIDES, "--space", LR, "--out", tmp_path, "--device", "cpu", "--trials", 3)
    full = disk_failure(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "trials/0001/checkpoints")
    for outcome, said in ((full, "no space left on device; free some"), (refuse_lines, "file too large; raise the")):
        trainer.outcomes = [None, outcome] if outcome is full else [outcome]
        try:
            code, _, err = run_here(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (code, err.count("error: "), journal.read_bytes()[-1:]) == (1, 1, b"\n"), err
        assert re.search(f"\nerror: {tmp_path}/.*: cannot write: {said}", err), err
    with journal.open("a") as file:
        file.write('{"op_code": 5, "trial_i')  # of a worker that was killed as it wrote
    monkeypatch.setattr(sweep_module, "_is_abandoned", lambda trial: True)  # as in another process
    document, code = run_sweep(tmp_path, trials=3, sampler="tpe")
    assert (code, [row["state"] for row in document["trials"]]) == (0, ["finished"] * 3)


def test_a_lock_of_a_journal_whose_writer_has_ended_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a path below the current folder too, where the link that Optuna locks by leads nowhere: it waits for ever."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    journal = Journal(Path("out/sweep.journal"))
    journal.lock.grace_period = 0.1
    Path("out/sweep.journal.lock").touch()
    journal.append_logs([{"op_code": 0}])
    assert Path("out/sweep.journal").read_text() == '{"op_code":0}\n'
    assert [path.name for path in Path("out").iterdir()] == ["sweep.journal"]


def open_storage(out: Path) -> Any:
    name = read_config(CONFIG, SMALL).name
    return open_study(str(out / "sweep.journal"), name=name, directions=["maximize"], needed_by="test")


@pytest.mark.parametrize(
    ("worker", "silent_s", "is_taken_up"),
    [
        ({"host": "here", "table": "own", "pid": 2**22 + 1, "start": "then"}, 0, True),
        ({"host": "elsewhere", "table": None, "pid": 1, "start": None}, 60, False),
        ({"host": "elsewhere", "table": None, "pid": 1, "start": None}, 700, True),
        (None, 700, False),  # just started
    ],
)
def test_trials_of_silent_workers_are_taken_up(
    worker: Mapping[str, object] | None, silent_s: float, is_taken_up: bool, trainer: Trainer, tmp_path: Path
) -> None:
    from sightline.runs.process_identity import ProcessIdentity

    run_sweep(tmp_path, trials=1)
    study = open_storage(tmp_path)
    study.sampler = optuna.samplers.RandomSampler(seed=5)
    trial = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})
    if worker is not None:
        own = {**worker, "table": ProcessIdentity.current("here").table if worker["table"] else None}
        trial.set_user_attr("worker", own)
        trial.set_user_attr("alive", time.time() - silent_s)
    document, code = run_sweep(tmp_path, trials=2)
    assert code == 0
    assert document["trials"][1]["state"] == ("finished" if is_taken_up else "running")
    assert document["num_running"] == (not is_taken_up)
    if is_taken_up:
        assert trainer.rates[-1] == pytest.approx(trial.params["optimizer.lr"], rel=1e-5), "its own values"


def test_two_workers_share_the_trials(trainer: Trainer, tmp_path: Path) -> None:
    """While the first worker trains its first trial, the second one trains all others."""
    trainer.outcomes = [lambda: run_sweep(tmp_path, trials=8, no_prune=True)[0]["num_running"] and None]
    document, code = run_sweep(tmp_path, trials=8, no_prune=True)
    assert (code, document["num_running"]) == (0, 0)
    assert [row["state"] for row in document["trials"]] == ["finished"] * 8
    assert len(set(trainer.rates)) == len({row["overrides"][0] for row in document["trials"]}) == 8


def test_pruned_trials_are_not_the_best(trainer: Trainer, tmp_path: Path) -> None:
    trainer.outcomes = [0.9, 0.8, 0.9, 0.8, 0.9, 0.1, 0.95]
    document, code = run_sweep(tmp_path, trials=7)
    assert (code, document["best"]["trial"]) == (0, 6)
    assert [row["state"] for row in document["trials"]] == [*["finished"] * 5, "pruned", "finished"]
    assert (document["trials"][5]["value"], document["trials"][5]["epoch"]) == (0.1, 1)
    trainer.outcomes = [0.9, 0.8, 0.9, 0.8, 0.9, 0.1, 0.95]
    document, _ = run_sweep(tmp_path / "all", trials=7, no_prune=True)
    assert [row["state"] for row in document["trials"]] == ["finished"] * 7


def test_a_trial_that_ends_every_worker_is_left_out(trainer: Trainer, tmp_path: Path) -> None:
    """Nothing catches the end of these workers, as of killed ones; their processes are then said to be gone."""
    for _ in range(1 + sweep_module.MAX_RETRIES):
        trainer.outcomes = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            run_sweep(tmp_path, trials=2)
        study = open_storage(tmp_path)
        (trial,) = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        dead = {**trial.user_attrs["worker"], "pid": 2**22 + 1}
        study._storage.set_trial_user_attr(trial._trial_id, "worker", dead)
    document, _ = run_sweep(tmp_path, trials=2)
    assert [(row["state"], row["trial"]) for row in document["trials"]] == [("failed", 0), ("finished", 1)]


def test_a_trial_that_falls_behind_is_given_up() -> None:
    study = optuna.create_study(direction="maximize")
    distributions: dict[str, Any] = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for _ in range(5):
        study.add_trial(
            optuna.create_trial(
                value=0.9, params={"x": 0.5}, distributions=distributions, intermediate_values={1: 0.8, 2: 0.9}
            )
        )
    study.pruner = optuna.pruners.MedianPruner()

    def observe(figure: float, *, is_last: bool = False) -> tuple[bool, bool]:
        stop = StopRequest()
        observer = TrialObserver(study.ask(distributions), "figure", stop)
        observer._is_last = is_last
        record = Record({"figure": figure}, 0)
        observer.on_evaluation(record)  # type: ignore[arg-type]
        return observer.is_pruned, bool(stop)

    assert observe(0.1) == (True, True)
    assert observe(0.85) == (False, False)
    assert observe(float("nan")) == (False, False)
    assert observe(0.1, is_last=True) == (False, False), "nothing is saved by ending a run at its end"


@pytest.mark.parametrize("name", ["data", "init.from", "teacher.from", "--plugin mine.py"])
def test_trials_of_other_data_weights_or_code_are_refused(
    name: str, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, digest = tmp_path / "mine.py", sweep_module.digest_inputs
    plugin.write_text("")
    run_sweep(tmp_path / "out", trials=1, plugins=(plugin,))
    run_sweep(tmp_path / "out", trials=2, plugins=(plugin,))
    if name.startswith("--plugin"):
        plugin.write_text("# another")
    else:
        monkeypatch.setattr(sweep_module, "digest_inputs", lambda config: digest(config) | {name: "other"})
    with pytest.raises(UserError, match=rf"differs in (contents of )?{name}; give the same"):
        run_sweep(tmp_path / "out", plugins=(plugin,))


def test_values_of_a_space_that_read_other_data_are_compared_too(trainer: Trainer, tmp_path: Path) -> None:
    overrides = [word for word in OVERRIDES if not word.startswith("data.num_points")]
    run_sweep(tmp_path, LR, "data.num_points=16,32", trials=1, overrides=overrides)
    study = open_storage(tmp_path)
    stored = {key: value for key, value in study.user_attrs["sweep"].items() if key.startswith("contents of data")}
    assert list(stored) == ["contents of data", *(f"contents of data with data.num_points={n}" for n in (16, 32))]


def test_other_sweeps_in_the_storage_are_refused(trainer: Trainer, tmp_path: Path) -> None:
    run_sweep(tmp_path, trials=1)
    for changes, key in (
        ({"sampler": "tpe"}, "--sampler"),
        ({"seed": 3}, "--seed"),
        ({"overrides": (*OVERRIDES, "model.dropout=0.7")}, "model.dropout"),
    ):
        with pytest.raises(UserError, match=f"differs in {key}"):
            run_sweep(tmp_path, **changes)
    with pytest.raises(UserError, match=r"differs in --space train\.batch_size"):
        run_sweep(tmp_path, LR, SIZES)
    (tmp_path / "sweep.journal").write_text("no\n")
    with pytest.raises(UserError, match="sweep: storage: "):
        run_sweep(tmp_path)


@run_each("line", ['{"op_code": 99}', '{"op_code": "x"}', '{"op_code": 4}', '{"op_code": [1]}'])
def test_a_line_of_a_journal_that_is_not_of_optuna_is_one_line_and_the_file_is_left(tmp_path: Path, line: str) -> None:
    journal = tmp_path / "sweep.journal"
    journal.unlink(missing_ok=True)
    open_study(str(journal), name="a", directions=["minimize"], needed_by="sweep").ask()
    text = journal.read_text() + line + "\n"
    journal.write_text(text)
    with pytest.raises(UserError, match=r"sweep\.journal: ValueError: a line is not one of Optuna") as caught:
        open_study(str(journal), name="a", directions=["minimize"], needed_by="sweep")
    assert "\n" not in str(caught.value)
    assert journal.read_text() == text


def test_several_processes_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("sweep", CONFIG, "--space", LR, "--out", tmp_path / "out")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a worker is one process"):
        run_sweep(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'sightline[search]'" in refuse(*words)
    assert not (tmp_path / "out").exists()


def test_a_sweep_trains_prints_its_table_and_the_words_to_paste(tmp_path: Path) -> None:
    words = (CONFIG, *OVERRIDES, *PLAIN, "--space", LR, "--space", SIZES, "--out", tmp_path, "--device", "cpu")
    done = succeed("sweep", *words, "--trials", "2", "--sampler", "random", "--json", tmp_path / "copy.json")
    document = json.loads((tmp_path / "copy.json").read_text())
    best = document["best"]
    assert done.out.splitlines()[-1] == " ".join(best["overrides"])
    assert "overall_accuracy on the validation part" in done.out
    assert "last checkpoint on test" not in done.out, "nobody is to choose by the test part"
    lines = [json.loads(line) for line in (Path(best["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert best["value"] == max(line["overall_accuracy"] for line in lines if line["split"] == "validation")
    config = read_config(Path(best["run"]) / "config.yaml")
    assert f"optimizer.lr={config.optimizer.arguments['lr']!r}" in best["overrides"]
    assert f"train.batch_size={config.train.batch_size}" in best["overrides"]


def test_the_printed_commands_name_the_plugin_and_read_texts_as_the_sweep_does(
    trainer: Trainer, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("")
    words = ("--space", "train.tail=keep,drop", "--space", SIZES, "--trials", "1", "--plugin", plugin)
    done = succeed("sweep", CONFIG, *OVERRIDES, *words, "--out", tmp_path / "out", "--device", "cpu")
    best = json.loads((tmp_path / "out" / "sweep.json").read_text())["best"]["overrides"]
    train, study = (
        shlex.split(line.partition(": " if "train it" in line else "? ")[2])
        for line in done.err.splitlines()
        if "train it again" in line or "is it better" in line
    )
    assert train == ["sightline", "train", str(CONFIG), *OVERRIDES, *best, "--plugin", str(plugin)]
    assert study[-4:] == ["--plugin", str(plugin), "--out", "DIR"]
    arms = [study[index + 1] for index, word in enumerate(study) if word == "--arm"]
    assert list(parse_factors([CONFIG], [], arms)["arm"]["best"].overrides) == best


@pytest.mark.long
@pytest.mark.processes
def test_two_workers_share_a_storage_and_outlive_one_another(tmp_path: Path) -> None:
    """One of two workers is killed in its training; what is left, its trial too, is done by the other or a third."""
    overrides = [word for word in SMALL if not word.startswith("train.epochs")]
    words = ["sweep", CONFIG, *overrides, "train.epochs=6", "--space", LR, "--trials", 4, "--no-prune"]
    command = [sys.executable, "-m", "sightline", *words, "--out", tmp_path, "--device", "cpu"]

    def start() -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stderr=subprocess.PIPE)

    first, second = start(), start()
    try:
        while not any(tmp_path.glob("trials/*/checkpoints/last")):
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.05)
        victims = [worker_of(lock) for lock in tmp_path.glob("trials/*/.lock")]
        victim = first if first.pid in victims else second
        victim.kill()
        other = second if victim is first else first
        _, told = other.communicate(timeout=300)
        assert other.returncode == 0, told
    finally:
        for worker in (first, second):
            worker.kill()
            worker.communicate()
    resumed = succeed(*words, "--out", tmp_path, "--device", "cpu")
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["state"] for row in document["trials"]] == ["finished"] * 4, resumed.err
    assert [row["trial"] for row in document["trials"]][:2] == [0, 1]
    for row in document["trials"]:
        steps = [json.loads(line)["step"] for line in (Path(row["run"]) / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)


def worker_of(lock: Path) -> int:
    try:
        return int(json.loads(lock.read_text())["pid"])
    except (OSError, ValueError):
        return 0


def test_lines_of_runs_that_repeat_are_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = SeriesReporter()
    for text in ("run 1\nsamples: 48", "run 2\nsamples: 48", "samples: 40"):
        reporter.note(text)
    assert capsys.readouterr().err == "run 1\nsamples: 48\nrun 2\nsamples: 40\n"
