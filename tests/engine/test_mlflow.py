"""MLflow: what its own client reads back, of whole runs, of killed ones that go on, and of a folder, not a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.engine.loggers.mlflow import Mlflow
from sightline.engine.observers import MetricsLog
from tests.command import refuse, succeed
from tests.engine.told import Lines, evaluation, random_states, step
from tests.processes import ROOT
from tests.runs.broken_off import differences
from tests.runs.small import PLAIN, SMALL
from tests.trained import break_off

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
ABOUT: dict[str, Any] = {"config": {"seed": 0}, "text": "seed: 0"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that MLflow's client reads; sightline writes to it without this variable."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path / "mlruns"


def read_runs(store: Path) -> list[tuple[Any, dict[str, list[tuple[int, float]]]]]:
    """Read the runs of the experiment, each with the (step, value) of every metric that is not a clock's."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=str(store))
    runs = client.search_runs([client.get_experiment_by_name("sightline").experiment_id])
    named = [
        {key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
        for run in runs
    ]
    clocks = ("time_s/", "samples_per_s")
    return [
        (run, {key: values for key, values in metrics.items() if not any(clock in key for clock in clocks)})
        for run, metrics in zip(runs, named, strict=True)
    ]


def test_a_run_is_read_back_and_a_resumed_one_goes_on_in_it(store: Path, tmp_path: Path) -> None:
    words = (*SMALL, *PLAIN, "log.every=4", "checkpoint.keep_last=2", "--no-check")
    run = tmp_path / "run"
    command = ("train", CONFIG, *words, f"log.mlflow={store}", "--device", "cpu", "--out", run)
    succeed(*command)
    ((made, metrics),) = read_runs(store)
    assert (made.info.status, made.info.run_name) == ("FINISHED", "synthetic_shapes_pointnet")
    assert (made.data.params["train.batch_size"], made.data.params["model.name"]) == ("8", "pointnet_plain")
    artifacts = Path(made.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "config.yaml").read_text() == (run / "config.yaml").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss/total", "lr", "grad_norm"):
        expected = [(line["step"], line[name]) for line in lines if line["split"] == "train"]
        assert metrics[f"train/{name}"] == expected
    chosen = [(line["step"], line["overall_accuracy"]) for line in lines if line["split"] == "validation"]
    assert metrics["validation/overall_accuracy"] == chosen
    assert dict(metrics["train/epoch"])[lines[0]["step"]] == 1

    break_off(run)
    succeed(*command, "--resume", "auto")
    ((again, after),) = read_runs(store)
    assert (again.info.run_id, again.info.status) == (made.info.run_id, "FINISHED")
    assert after == metrics, "neither a step twice nor one less"
    plain = tmp_path / "plain"
    succeed("train", CONFIG, *words, "--device", "cpu", "--out", plain)
    assert differences(run, plain) == [], "an observer changes no bit"


@pytest.mark.parametrize("end", ["", "stopped by signal 15 after step 7; state saved"])
def test_a_killed_run_goes_on_in_the_middle_of_an_interval(store: Path, tmp_path: Path, end: str) -> None:
    """Saved after step 7 of intervals of 5, killed at step 9 without a word, or stopped at step 7 by a signal."""

    def observe(folder: Path, steps: range, unwritten: Any = ()) -> tuple[Mlflow, MetricsLog]:
        folder.mkdir(exist_ok=True)
        watcher = Mlflow(folder, uri=str(store), name=folder.name, **ABOUT, every=5, unwritten=unwritten)
        log = MetricsLog(Lines(), every=5)
        log.restore(unwritten)
        before = random_states()
        for number in steps:
            watcher.on_step(step(number))
            log.on_step(step(number))
        assert random_states() == before
        return watcher, log

    whole, _ = observe(tmp_path / "whole", range(1, 21))
    whole.on_evaluation(evaluation(20))
    whole.on_end("done")
    first, log = observe(tmp_path / "cut", range(1, 8))
    saved = log.state()
    if end:
        first.on_end(end)
        assert read_runs(store)[0][0].info.status == "KILLED"
    else:
        for number in (8, 9):
            first.on_step(step(number))
    second, _ = observe(tmp_path / "cut", range(8, 21), saved)
    second.on_evaluation(evaluation(20))
    second.on_end("done")
    found = {run.info.run_name: (run, metrics) for run, metrics in read_runs(store)}
    assert len(found) == len(read_runs(store)) == 2
    assert found["cut"][1] == found["whole"][1]
    assert [number for number, _ in found["cut"][1]["train/loss/total"]] == [5, 10, 15, 20]
    assert "validation/recall_of_none" not in found["cut"][1], "it is NaN"
    pictures = Path(found["cut"][0].info.artifact_uri.removeprefix("file://")) / "pictures"
    assert [path.name for path in pictures.rglob("*.png")] == ["clouds_20.png"]


def test_names_that_mlflow_refuses_are_written_otherwise(store: Path, tmp_path: Path) -> None:
    watcher = Mlflow(tmp_path, uri=str(store), name="n", config={"policy": {"a*b": 8, "long": "x" * 7000}}, text="")
    watcher.on_evaluation(evaluation(3, metrics={"AP@50": 0.5}))
    watcher.on_end("failed")
    ((run, metrics),) = read_runs(store)
    assert metrics["validation/AP_50"] == [(3, 0.5)]
    assert (run.data.params["policy.a_b"], len(run.data.params["policy.long"])) == ("8", 6000)
    assert run.info.status == "FAILED"


def test_a_password_in_the_uri_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    err = refuse("train", CONFIG, *SMALL, "log.mlflow=http://me:secret@host:5000", "--out", tmp_path / "run")
    assert "leave it out and set MLFLOW_TRACKING_USERNAME" in err
    assert "secret" not in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
