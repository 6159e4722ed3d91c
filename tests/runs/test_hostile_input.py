"""Standard streams that are closed or full, run directories changed by hand, names with escape codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract.errors import CheckpointError, PluginError, UserError
from sightline.contract.plugins import check_recorded
from sightline.runs.checkpoint import resolve
from sightline.runs.lineage import read_lineage
from sightline.runs.run_documents import assert_own_files, load_document, read_facts
from tests.cases import run_each
from tests.command import run_here
from tests.limits import HANG_S
from tests.marks import long_but
from tests.processes import forked, free_port
from tests.runs.broken_off import Bench

# --- standard streams that are closed, full, or read no further: a run goes on, without a traceback -------------------


NO_ROOM = "error: standard output: cannot be written: No space left on device; the results were not printed in full\n"


def run_with(words: list[str], kind: str, errors: str, environment: dict[str, str]) -> None:
    """In a process of its own: `sightline <words>` with standard output, and error where not kept, of this kind."""
    import torch

    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor, target in ((1, kind), (2, errors)):
        if target == "closed":
            os.close(descriptor)
        elif target == "pipe":
            os.dup2(writing, descriptor)
        elif target == "full":
            os.dup2(full, descriptor)
        else:
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["sightline", *words]
    from sightline.cli import main

    main()


def codes_of(words: list[str], kind: str, errors: str, *, num_processes: int = 1) -> list[int | None]:
    place = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(num_processes):
        more = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
        processes.append(forked(run_with, words, kind, errors, {"OMP_NUM_THREADS": "1"} | more))
    for process in processes:
        process.join(HANG_S)
        process.kill()
    return [process.exitcode for process in processes]


@pytest.mark.parametrize(("kind", "num_processes"), long_but([("pipe", 2)], [("pipe", 1), ("closed", 1), ("pipe", 2)]))
def test_a_run_goes_on_that_nobody_reads(kind: str, num_processes: int, tmp_path: Path) -> None:
    words = Bench(tmp_path).words("run", "train.epochs=1", slow=True)
    assert codes_of(words, kind, kind, num_processes=num_processes) == [0] * num_processes
    assert json.loads((tmp_path / "run" / "final.json").read_text())["metrics"]
    assert "end: done" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_whose_results_find_no_room_ends_and_says_so(tmp_path: Path) -> None:
    words = Bench(tmp_path).words("run", "train.epochs=1")
    assert codes_of(words, "full", str(tmp_path / "errors")) == [1]
    assert (tmp_path / "errors").read_text().endswith(NO_ROOM)
    assert (tmp_path / "run" / "final.json").exists()


# --- run directories whose files were changed by hand, or are links out of them --------------------------------------


LINEAGE = {
    "from": "runs/a",
    "checkpoint": "step_1",
    "sha256": "0" * 64,
    "modules": None,
    "match": {"matched": 2, "total": 2, "filled": None},
    "source": {"model": "pointnet", "task": "classify", "data": {"name": "modelnet40"}},
    "lineage": None,
}


@pytest.mark.parametrize(
    "change",
    [{"sha256": 3}, {"match": []}, {"match": {}}, {"source": {"model": "a"}}, {"lineage": []}, {"lineage": {}}],
)
def test_a_forged_lineage_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "lineage.json").write_text(json.dumps(LINEAGE | change))
    with pytest.raises(UserError, match=r"lineage\.json: is not a lineage as runs write it"):
        read_lineage(tmp_path)


@pytest.mark.parametrize("count", [3.5, "3", -1, True, 2**40, [3], None])
def test_a_count_of_nothing_among_the_facts_is_one_line(tmp_path: Path, count: Any) -> None:
    (tmp_path / "facts.json").write_text(json.dumps({"num_classes": count}))
    with pytest.raises(UserError, match=r"facts\.json: num_classes is .*, a count is needed"):
        read_facts(tmp_path)


@run_each("names", [5, -1, None, float("inf"), "a", {"a": 1}, ["a", 3]])
def test_names_that_are_none_among_the_facts_are_one_line(tmp_path: Path, names: Any) -> None:
    for name in ("class_names", "part_names"):
        (tmp_path / "facts.json").write_text(json.dumps({name: names}))
        with pytest.raises(UserError, match=rf"facts\.json: {name} is .*, a list of names is needed"):
            read_facts(tmp_path)


PLUGIN = {"name": "a.py", "path": "/a.py", "sha256": "0", "modules": {}}


@pytest.mark.parametrize("listed", [3.5, {"a": 1}, ["a"], [[]], [{**PLUGIN, "name": []}], [{**PLUGIN, "modules": 1}]])
def test_a_forged_list_of_plugins_is_one_line(tmp_path: Path, listed: Any) -> None:
    with pytest.raises(PluginError, match=r"environment\.json lists plugins in another form"):
        check_recorded(listed, (), run=tmp_path)


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deep_json_is_one_line(tmp_path: Path, depth: int) -> None:
    (tmp_path / "final.json").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(UserError, match=r"final\.json: cannot be read: .* nested more than 200 deep") as caught:
        load_document(tmp_path / "final.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["facts.json", "checkpoints", "checkpoints/step_1", "checkpoints/step_1/a", "predictions/a.png"]
)
def test_a_link_out_of_a_run_is_refused(tmp_path: Path, place: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / place).parent.mkdir(parents=True)
    (run / place).symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"{place}: is a link to .*elsewhere, out of the run directory"):
        assert_own_files(run)


def test_a_run_may_be_a_link_and_its_last_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/step_1").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last").symlink_to("step_1")
    (tmp_path / "link").symlink_to("run")
    assert_own_files(tmp_path / "link")


def test_the_last_checkpoint_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", tmp_path / "run/checkpoints/last")
    with pytest.raises(CheckpointError, match=r"points to '.*elsewhere', out of"):
        resolve(tmp_path / "run")


# --- names with escape codes, line ends and bytes that are no text ----------------------------------------------------


CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "cloud_folder_pointnet.yaml"
CLASSES = ("<b>round", "\x1b[31mred\x07", "line\nend")
FILES = ("u.xyz", "e\x1b[2J.xyz", "n\nl.xyz", "<img src=x>.xyz", os.fsdecode(b"\xff.xyz"))
SMALL = (
    *("train.epochs=1", "train.batch_size=4", "train.tail=drop", "log.tensorboard=false", "--device", "cpu"),
    *("model={name: dgcnn, num_neighbours: 4, embedding: 16}", "losses=[{name: cross_entropy}]"),
    *("transforms.train.0.num_points=64", "transforms.evaluate.0.num_points=64"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a prepared set and its source; the last two files of a class are the same cloud."""
    draws = np.random.default_rng(0)
    for place, name in enumerate(CLASSES):
        (tmp_path / "source" / name).mkdir(parents=True)
        for file in FILES:
            points = draws.normal(size=(300, 3)) * np.roll([1.0, 1.0, 0.1], place)
            if file != FILES[-1]:
                last = points
            np.savetxt(tmp_path / "source" / name / file, last)
    return tmp_path


def test_every_verb_prints_them_escaped(folder: Path) -> None:
    prepared, run = folder / "prepared", folder / "run"
    words = (CONFIG, f"data.root={prepared}", *SMALL)
    make = ("data", "prepare", "cloud_folder", "--from", folder / "source", "--to", prepared)
    for command in (
        (*make, "up_axis=z", "num_points=64"),
        ("data", "info", prepared),
        ("check", *words),
        ("train", *words, "--no-check", "--out", run),
        ("evaluate", run, "--device", "cpu"),
        ("predict", run, folder / "source", "--device", "cpu"),
        ("view", run, "--out", folder / "view"),
        ("evaluate", run, "--probe", "svm", "--device", "cpu"),
    ):
        done = run_here(*command)
        assert done.code == (command[0] == "check"), done.err  # copies of training's clouds in the other part
        out, err = done.out, done.err
        printed = (out + err).replace("\n", "")
        odd = sorted({each for each in printed if not each.isprintable()})
        assert not odd, (command[0], odd)
        # Where a name holds a line end, what follows it does not begin a line.
        assert not [line for line in (out + err).split("\n") if line.startswith(("end", "l.xyz"))], command[0]
