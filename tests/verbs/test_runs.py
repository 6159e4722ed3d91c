"""Runs below a folder: what the table states."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sightline
from sightline.runs import run_folders
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_folders import filter_runs, sort_runs
from tests.command import refuse, run_here, succeed
from tests.limits import count_bytes, count_calls
from tests.processes import ROOT
from tests.trained import trained_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classifiers of one name and a detector; the second was started later, and is not finished."""
    for number, time_ in enumerate(("2026-01-02T10:00:00+00:00", "2026-03-04T10:00:00+00:00", ""), start=1):
        copy(trained_run("plain"), tmp_path / "shapes" / str(number), time=time_)
    copy(trained_run("detect"), tmp_path / "crowds" / "1", time="2026-02-03T10:00:00+00:00")
    (tmp_path / "shapes" / "2" / "final.json").unlink()
    return tmp_path


def copy(run: Path, target: Path, **environment: str) -> Path:
    shutil.copytree(run, target, symlinks=True)
    record = json.loads((target / "environment.json").read_text())
    (target / "environment.json").write_text(json.dumps(record | environment))
    return target


def by_path(folder: Path) -> dict[str, run_folders.RunSummary]:
    return {str(run.path.relative_to(folder)): run for run in sightline.list_runs(folder)}


def test_a_run_is_summarised_by_what_its_files_state(folder: Path) -> None:
    runs = by_path(folder)
    assert list(runs) == ["shapes/2", "crowds/1", "shapes/1", "shapes/3"], "newest first"
    run = runs["shapes/1"]
    final = json.loads((run.path / "final.json").read_text())
    assert (run.name, run.task, run.data, run.model) == (
        "synthetic_shapes_pointnet",
        "classify",
        "synthetic_shapes",
        "pointnet_plain",
    )
    assert (run.state, run.steps, run.metric, run.mode) == ("finished", 8, "overall_accuracy", "max")
    assert (run.figure, run.split) == (final["metrics"]["overall_accuracy"], "test")
    listed = subprocess.run(["find", run.path, "!", "-type", "d", "-printf", "%s\\n"], capture_output=True, check=True)
    assert run.num_bytes == sum(map(int, listed.stdout.split()))
    unfinished = runs["shapes/2"]
    last = json.loads((unfinished.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (unfinished.state, unfinished.figure) == ("stopped", last["overall_accuracy"])
    assert unfinished.split == "validation"


def test_the_last_evaluation_counts_however_long_ago_it_was(folder: Path) -> None:
    """Of an epoch of many steps more is logged than is read at first, and the table had no figure."""
    file = folder / "shapes" / "2" / "metrics.jsonl"
    before = by_path(folder)["shapes/2"]
    line = json.dumps({"step": 9, "epoch": 2, "split": "train", "time_s": 1.0, "loss/total": 0.5})
    with file.open("a") as lines:
        lines.write(f"{line}\n" * (2 * run_folders._TAIL_BYTES // len(line)))
    after = by_path(folder)["shapes/2"]
    assert (after.figure, after.split, after.steps) == (before.figure, "validation", 9)


def test_the_summaries_agree_with_the_config_reader() -> None:
    from sightline.runs.run_records import read_reported_run

    for path in map(trained_run, ("plain", "boxes3d", "detect", "lidar", "pose", "packed")):
        (run,) = sightline.list_runs(path)
        config = read_reported_run(path, "run").config
        values = {"name": run.name, "task.name": run.task, "data.name": run.data, "evaluate.metric": run.metric}
        assert values == {key: json.loads(config[key]) for key in values}, path
        if path.name != "packed":
            assert run.steps == json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def test_a_locked_run_is_running(folder: Path) -> None:
    run = folder / "shapes" / "2"
    with RunDirectory(run, is_writer=True).lock():
        assert by_path(folder)["shapes/2"].state == "running"
    assert by_path(folder)["shapes/2"].state == "stopped"
    dead = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "never"}
    (run / ".lock").write_text(json.dumps(dead))
    assert by_path(folder)["shapes/2"].state == "stopped"
    (run / ".lock").write_text(json.dumps(dead | {"host": "elsewhere"}))
    assert (by_path(folder)["shapes/2"].state, by_path(folder)["shapes/2"].note) == ("running", "on elsewhere")


def test_the_table_is_sorted_filtered_and_written(folder: Path, tmp_path: Path) -> None:
    done = succeed("runs", folder, "--filter", "task=classify", "--sort", "size", "--json", tmp_path / "runs.json")
    assert "3 runs below" in done.out
    assert "crowds" not in done.out
    documents = json.loads((tmp_path / "runs.json").read_text())
    assert {document["task"] for document in documents} == {"classify"}
    sizes = [document["num_bytes"] for document in documents]
    assert sizes == sorted(sizes, reverse=True)
    assert "has no run of this kind" in succeed("runs", folder, "--filter", "no such text").err
    assert succeed("runs", folder, "--filter", "CROWDS", "--filter", "state=finished").out.count("finished") == 1


def test_figures_are_sorted_in_the_direction_of_their_metric(folder: Path) -> None:
    runs = sightline.list_runs(folder)
    values = {"shapes/1": 0.5, "shapes/3": 0.75, "shapes/2": 0.9, "crowds/1": 0.1}
    for run in runs:
        name = str(run.path.relative_to(folder))
        object.__setattr__(run, "figure", values[name])
    assert [run.path.name for run in sort_runs(filter_runs(runs, ["classify"]), "figure")] == ["2", "3", "1"]
    for run in runs:
        object.__setattr__(run, "mode", "min")
    assert [run.path.name for run in sort_runs(filter_runs(runs, ["classify"]), "figure")] == ["1", "3", "2"]


def test_links_and_folders_of_others_are_left_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = copy(trained_run("pose"), tmp_path_factory.mktemp("elsewhere") / "pose")
    (folder / "link").symlink_to(elsewhere)
    (folder / "circle").symlink_to(folder)
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.yaml").write_text("model: theirs\n")
    assert len(sightline.list_runs(folder)) == 4
    assert "is not a run directory" in refuse("runs", "diff", "foreign", "shapes/1", "--below", folder)


BREAKS: dict[str, Callable[[Path], object]] = {
    "config of bytes": lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe"),
    "no final figures": lambda run: (run / "final.json").write_text("{}"),
    "cut final": lambda run: (run / "final.json").write_text('{"metrics": {'),
    "a list as figures": lambda run: (run / "final.json").write_text('{"metrics": [1], "data": 3}'),
    "lines of text": lambda run: (run / "metrics.jsonl").write_text("no\n"),
    "lines of numbers": lambda run: (run / "metrics.jsonl").write_text("1\n"),
    "environment of a list": lambda run: (run / "environment.json").write_text("[]"),
    "another lock": lambda run: (run / ".lock").write_text("theirs"),
    "a list as a lock": lambda run: (run / ".lock").write_text("[]"),
    "text as a figure": lambda run: (run / "final.json").write_text(
        '{"metrics": {"overall_accuracy": "x"}, "data": {"split": "test"}, "selection": ""}'
    ),
    "a pipe as lines": lambda run: ((run / "metrics.jsonl").unlink(), os.mkfifo(run / "metrics.jsonl")),
    "a link as lines": lambda run: (
        (run / "metrics.jsonl").rename(run.parents[1] / "elsewhere"),
        (run / "metrics.jsonl").symlink_to(run.parents[1] / "elsewhere"),
    ),
    "deep final": lambda run: (run / "final.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("name", BREAKS)
def test_damaged_runs_are_listed_with_the_reason(name: str, folder: Path) -> None:
    BREAKS[name](folder / "shapes" / "3")
    done = succeed("runs", folder)
    assert "4 runs" in done.out
    assert by_path(folder)["shapes/3"].state == "damaged"
    assert done.err.startswith(f"warning: {folder}/shapes/3: ")
    assert done.err.count("\n") == 1


def test_differences_are_those_of_the_report(folder: Path, tmp_path: Path) -> None:
    (run, other) = (folder / "shapes" / "1", folder / "shapes" / "3")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("  lr: 0.05", "  lr: 0.125"))
    printed, page = tmp_path / "a.json", tmp_path / "b.json"
    done = succeed("runs", "diff", "shapes/1", other, "--below", folder, "--json", printed)
    assert "optimizer.lr" in done.out
    assert "0.125" in done.out
    succeed("report", run, other, "--out", tmp_path / "page.html", "--json", page)
    documents = [json.loads(path.read_text()) for path in (printed, page)]
    for key in ("figures", "config_differences"):
        assert documents[0][key] == documents[1][key]
    assert documents[0]["config_differences"] == {"optimizer.lr": ["0.05", "0.125"]}
    assert "the configs are the same" in succeed("runs", "diff", "shapes/1", "shapes/2", "--below", folder).err


def test_many_runs_cost_what_reading_them_does_and_no_torch(tmp_path: Path) -> None:
    """Ten times as many runs take ten times the calls; of each little more is read than its JSON."""
    for number in range(200):
        copy(trained_run("plain"), tmp_path / str(number // 20) / str(number))
    code = "import sys, sightline; sightline.list_runs(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    calls = {
        number: count_calls(lambda path=path: sightline.list_runs(path))
        for number, path in ((20, tmp_path / "0"), (200, tmp_path))
    }
    assert calls[200] < 11 * calls[20]
    plain = sum(path.stat().st_size for path in tmp_path.glob("*/*/*.json"))
    listed: list[int] = []
    assert count_bytes(lambda: listed.append(len(sightline.list_runs(tmp_path)))) < 3 * plain
    assert listed == [200]
    assert run_here("runs", tmp_path).code == 0
