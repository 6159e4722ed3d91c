"""No result replaces a file that is not a result: inputs, records of runs and sets, and files of other kinds stay."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import sightline
from sightline.contract.errors import RunError
from tests.command import refuse, run_here, succeed
from tests.trained import copy_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, clouds, a prepared set's record, and a network with its description."""
    monkeypatch.chdir(tmp_path)
    copy_run("plain", tmp_path)
    cloud = np.random.default_rng(0).random((80, 3))
    np.save(tmp_path / "c.npy", cloud)
    (tmp_path / "clouds").mkdir()
    np.savetxt(tmp_path / "clouds/a.csv", cloud, delimiter=",")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/manifest.json").write_text("{}")
    for name in ("net.onnx", "net.onnx.json", "notes.txt", "boxes.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def read_tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PREDICT = ("predict", "run", "c.npy", "clouds")
REPLACED: list[tuple[Sequence[str], str]] = [
    (
        (*PREDICT, "--json", "c.npy"),
        r"--json c\.npy: does not end in \.json, and would be replaced; give the name of a",
    ),
    ((*PREDICT, "--csv", "run/config.yaml"), r"--csv run/config\.yaml: does not end in \.csv"),
    ((*PREDICT, "--csv", "clouds/a.csv"), r"--csv clouds/a\.csv: is a file to predict and would be overwritten"),
    ((*PREDICT, "--json", "a.json", "--csv", "a.json"), r"--csv a\.json: is also the file of --json; give another"),
    ((*PREDICT, "--json", "-"), "--json -: results are written into a file; give its name"),
    (("evaluate", "run", "--json", "run/final.json"), r"--json run/final\.json: is a file of the run run"),
    (("report", "run", "--json", "run/facts.json"), r"is a file of the run run"),
    (("runs", ".", "--json", "set/manifest.json"), "is the record of what set holds"),
    (("list", "--json", "net.onnx.json"), r"is the description of net\.onnx"),
    (
        ("describe", "run", "--svg", "notes.txt"),
        r"--svg notes\.txt: is a drawing in SVG; give a name",
    ),
    (("score", "boxes.json", "--data", "run", "--json", "boxes.json"), "is also what the command reads; give another"),
    (("report", "run", "--out", "a.html", "--json", "./a.html"), r"--out a\.html: is also the file of --json"),
]


@pytest.mark.parametrize(("words", "said"), REPLACED, ids=[" ".join(words)[:60] for words, _ in REPLACED])
def test_a_file_that_is_not_a_result_is_kept(words: Sequence[str], said: str, folder: Path) -> None:
    before = read_tree(folder)
    told = refuse(*words)
    assert re.search(said, told), told
    assert told.count("error: ") == 1
    assert read_tree(folder) == before


def test_an_earlier_result_is_replaced(folder: Path) -> None:
    """Also in a run's folder, and an empty file of any name, as `mktemp` makes."""
    (folder / "empty").touch()
    for name in ("found.json", "run/found.json", "FOUND.JSON", "empty"):
        for _ in range(1 if name == "empty" else 2):
            succeed("runs", ".", "--json", name)
        assert len(json.loads((folder / name).read_text())) == 1


def test_what_the_disk_refuses_is_one_line_and_leaves_no_half(folder: Path) -> None:
    """A project, and a network with its description; the earlier ones stay."""
    made = sightline.export("run", out="whole.onnx")
    before = read_tree(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
        project, page = run_here("init", "river"), run_here("report", "run", "--out", "page.html")
        with pytest.raises(RunError, match=r"new\.onnx: cannot write: file too large; raise the limit"):
            sightline.export("run", out="new.onnx")
        with pytest.raises(RunError, match=r"whole\.onnx: cannot write: file too large"):
            sightline.export("run", out=made.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (project.code, project.err.count("\n")) == (2, 1)
    assert "init: river: cannot be written: File too large; give another place by --to" in project.err
    assert (page.code, page.err.count("\n")) == (1, 1)
    assert "page.html: cannot write: file too large; raise the limit on the size of a file (ulimit -f) and" in page.err
    assert page.err.endswith("run the same command again\n")
    assert read_tree(folder) == before
    assert not (folder / "river").exists()
    succeed("init", "river")
