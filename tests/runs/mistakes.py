"""What a newcomer does wrong: each with the command, and what its message must hold, the place and the remedy."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["CONFIG", "MISTAKES", "PREPARE", "SMALL", "Mistake"]

CONFIG = "configs/classify/cloud_folder_pointnet.yaml"
SMALL = ("train.batch_size=21", "transforms.train.0.num_points=32", "transforms.evaluate.0.num_points=32")
TRAIN = ("train", CONFIG, "data.root=prepared", "--no-check")
PREPARE = ("data", "prepare", "cloud_folder", "--from", "scans", "--to", "new", "up_axis=z")


class Mistake(NamedTuple):
    """`spoil` damages a copy of the newcomer's folder; `said` are regular expressions, each found in the message."""

    name: str
    words: Sequence[str]
    said: Sequence[str]
    spoil: Callable[[], object] = lambda: None
    code: int = 2


def _write(path: str, content: str | bytes | np.ndarray) -> Callable[[], object]:
    if isinstance(content, np.ndarray):
        return lambda: np.save(path, content)
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(path).write_bytes(data)


def _change(path: str, change: Callable[[bytes], bytes]) -> Callable[[], object]:
    def rewrite() -> None:
        data = Path(path).read_bytes()
        os.unlink(path)  # other folders share the file
        Path(path).write_bytes(change(data))

    return rewrite


def _file(name: str, content: str | bytes | np.ndarray, *said: str) -> Mistake:
    """A file among sound ones that cannot be used."""
    path = f"scans/ball/{name}"
    return Mistake(f"{name}: {said[0]}", PREPARE, (re.escape(name), *said), _write(path, content))


def _all_of(*changes: Callable[[], object]) -> Callable[[], object]:
    return lambda: [change() for change in changes]


def _resume(*more: str) -> tuple[str, ...]:
    return ("train", CONFIG, "data.root=prepared", "train.epochs=1", *more, "--resume", "auto")


def _of_files() -> list[Mistake]:
    points = np.arange(60.0).reshape(20, 3)
    return [
        _file("a.ply", "<html>not found</html>", "starts with '<html>not ", "download it again"),
        _file("a.npy", points[:, :2], "2 columns and no names", r"columns=\[x, y, z"),
        _file("a.npy", np.ones((9, 3)), r"all \d+ points coincide", "leave the file out"),
        _file("a.csv", "1,2,3\n1,nan,3\n", ":2: nan is not a finite number", "mend the line"),
        Mistake("no up axis", PREPARE[:-1], ("up_axis: is required", "one of 'x', 'y', 'z'")),
        Mistake("source", (*PREPARE[:4], "scnas", *PREPARE[5:]), ("scnas: there is no such", "with clouds: CLASS")),
        Mistake("set", ("data", "prepare", "cloudfolder", *PREPARE[3:]), ("did you mean 'cloud_folder'",)),
        Mistake(
            "home of nobody", (*PREPARE[:4], "~nobody_here/x", *PREPARE[5:]), ("the home of ~nobody_here is not known",)
        ),
        Mistake("within", (*PREPARE[:6], "scans/new", "up_axis=z"), (r"scans/new: lies in \S+scans,", "outside of it")),
        Mistake("columns", (*PREPARE, "columns=[x, y]"), ("columns: .*lacks z", r"as in \[x, y, z")),
        Mistake("class", PREPARE, ("cone: is taken for a class", "CLASS/FILE"), lambda: Path("scans/cone").mkdir()),
        Mistake(
            "flat", PREPARE, ("a.ply is not in the folder of a class", "CLASS/FILE"), _write("scans/a.ply", b"ply\n")
        ),
        Mistake("link", PREPARE, (r"a\.ply", "take it out"), lambda: Path("scans/ball/a.ply").symlink_to("nowhere")),
        Mistake("pipe", PREPARE, (r"a\.ply", "take it out"), lambda: os.mkfifo("scans/ball/a.ply")),
        Mistake(
            "all at once",
            PREPARE,
            (r"error: 2 of \d+ samples cannot be used", r"\n  .*a\.ply", r"\n  .*b\.ply"),
            _all_of(_write("scans/ball/a.ply", b""), lambda: os.mkfifo("scans/rod/b.ply")),
        ),
        Mistake(
            "prepared set cut",
            TRAIN,
            (r"train\.points\.npy: has \d+ bytes", "prepare the set again"),
            _change("prepared/train.points.npy", lambda data: data[:-4]),
        ),
        Mistake(
            "prepared set edited",
            TRAIN,
            (r"manifest\.json: its text was altered", "prepare the set again"),
            _change("prepared/manifest.json", lambda data: data.replace(b'"ball"', b'"bull"')),
        ),
    ]


def _of_runs() -> list[Mistake]:
    damaged = _change("run/checkpoints/last/model.safetensors", lambda data: data[:-4] + b"abcd")
    return [
        Mistake("run", ("evaluate", "runs/nothing"), ("runs/nothing: is not a run directory", "give the folder")),
        Mistake("config for run", ("evaluate", CONFIG), ("is not a run directory", "give the folder")),
        Mistake("twice", (*TRAIN, "--out", "run"), ("--out run: is not empty", "--resume auto")),
        Mistake("resume", _resume("--out", "run", "model.dropout=0.1"), ("model.dropout: 0.4 there", "another --out")),
        Mistake("resume nothing", (*TRAIN, "--resume", "no"), ("--resume no: neither", "give the --out of a training")),
        Mistake("facts", ("evaluate", "run"), (r"facts\.json: is missing",), lambda: os.remove("run/facts.json")),
        Mistake("weights", ("evaluate", "run"), (r"model\.safetensors: damaged",), damaged),
        Mistake(
            "checkpoints",
            ("evaluate", "run"),
            ("has no checkpoint yet", "sightline train run --resume auto"),
            lambda: shutil.rmtree("run/checkpoints"),
        ),
        Mistake(
            "data moved",
            ("evaluate", "run"),
            (r"data\.root: prepared: there is no such folder; looked in /\S+; if the set is elsewhere",),
            lambda: os.rename("prepared", "moved"),
        ),
        Mistake(
            "data moved before an export",
            ("export", "run"),
            (r"not at hand \(run/config\.yaml:\d+: data\.root: prepared: there is no such folder\); give files",),
            lambda: os.rename("prepared", "moved"),
        ),
        Mistake("no such cloud", ("predict", "run", "a.ply"), (r"a\.ply: there is no such file", "check the path")),
        Mistake(
            "photo", ("predict", "run", "a.jpg"), (r"a\.jpg: files of this kind are not read",), _write("a.jpg", "")
        ),
        Mistake("folder of none", ("predict", "run", "empty"), ("empty: holds no file",), lambda: os.mkdir("empty")),
        Mistake(
            "few points",
            ("predict", "run", "a.npy"),
            (r"a\.npy: holds 4 points", "denser"),
            _write("a.npy", np.eye(4, 3)),
        ),
        Mistake("JSON to a folder", ("predict", "run", "scans", "--json", "scans"), ("--json scans: is a folder",)),
        Mistake("view nothing", ("view", "a.ply", "--out", "v"), (r"a\.ply: there is no such file", "check the path")),
        Mistake("a name too long", ("train", "n" * 300), ("File name too long", "check the path")),
    ]


MISTAKES = (*_of_files(), *_of_runs())
