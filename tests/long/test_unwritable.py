"""Folders that cannot be written: what only reads them works, what writes ends in one line and leaves nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.command import run_here
from tests.privileges import as_anybody
from tests.processes import ROOT
from tests.trained import copy_run
from tests.verbs.test_kept_files import read_tree

PRESET = ROOT / "configs/classify/own_clouds.yaml"
NEW = ("cloud_folder", "up_axis=z", "--from", "clouds", "--to")
OUT = r"--out closed/.*: cannot be written: Permission denied; give another place$"
AGAIN = r"closed/.*: cannot write: permission denied; make it writable, or choose another folder with --{}$"
READ = (
    ("evaluate", "closed/run", "--device", "cpu"),
    ("predict", "closed/run", "cloud.npy"),
    ("runs", "closed"),
    ("data", "verify", "closed/set"),
    ("data", "info", "closed/set"),
    ("data", "prepare", *NEW, "closed/set"),
    ("train", PRESET, "data.root=closed/set", "train.steps=1", "--no-check", "--device", "cpu", "--out", "trained"),
)
WRITTEN = (
    (("evaluate", "closed/run", "--device", "cpu", "--save-predictions"), AGAIN.format("out")),
    (("report", "closed/run"), OUT),
    (("report", "closed/run", "--out", "closed/a.html"), OUT),
    (("export", "closed/run", "--out", "closed/a.onnx"), OUT),
    (("view", "closed/run", "--num", 1, "--out", "closed/pictures"), OUT),
    (("compress", "run", "closed/run", "--ratio", "0.2", "--out", "closed/packed"), OUT),
    (("data", "prepare", *NEW, "closed/new"), AGAIN.format("to")),
    (("train", "closed/run", "--resume", "auto", "train.epochs=9"), AGAIN.format("out")),
    (
        ("train", PRESET, "data.root=closed/set", "train.steps=1", "--no-check", "--out", "closed/new"),
        AGAIN.format("out"),
    ),
    (("sweep", "closed/run", "--space", "optimizer.lr=0.1,0.2", "--out", "closed/sweep"), OUT),
    (("study", "closed/run", "--arm", "a=", "--arm", "b=optimizer.lr=0.1", "--out", "closed/study"), OUT),
    (("init", "river", "--to", "closed/river"), "river: cannot be written: Permission denied; give another place"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run and a prepared set, closed to writers, and beside it what they are made of."""
    root = tmp_path_factory.mktemp("unwritable")
    draw = np.random.default_rng(0)
    for name in ("ball", "cube"):
        (root / "clouds" / name).mkdir(parents=True)
        for number in range(12):
            np.savetxt(root / "clouds" / name / f"{number}.xyz", draw.normal(size=(1100, 3)), fmt="%.5f")
    np.save(root / "cloud.npy", draw.random((80, 3)))
    copy_run("plain", root / "closed")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        done = run_here("data", "prepare", *NEW, "closed/set")
        assert done.code == 0, done.err
        inner = [root / "closed", *(path for path in (root / "closed").rglob("*") if not path.is_symlink())]
        for path in inner:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield root
        for path in inner:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("words", READ, ids=lambda words: " ".join(map(str, words))[-50:])
def test_what_is_only_read_need_not_be_writable(words: tuple[object, ...], folder: Path) -> None:
    before = read_tree(folder / "closed")
    with as_anybody():
        done = run_here(*words)
    assert done.code == 0, done.err
    assert read_tree(folder / "closed") == before


@pytest.mark.parametrize(("words", "said"), WRITTEN, ids=[" ".join(map(str, words))[-50:] for words, _ in WRITTEN])
def test_what_cannot_be_written_is_one_line(words: tuple[object, ...], said: str, folder: Path) -> None:
    before = read_tree(folder / "closed")
    with as_anybody():
        done = run_here(*words)
    assert done.code in (1, 2)
    assert re.search(f"error: .*{said}", done.err.strip()), done.err
    assert "Traceback" not in done.err
    assert read_tree(folder / "closed") == before
