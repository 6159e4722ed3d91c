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


def _file(name: str, content: str | bytes | np.ndarray, *said: str) -> Mistake:
    """A file among sound ones that cannot be used."""
    path = f"scans/ball/{name}"
    return Mistake(f"{name}: {said[0]}", PREPARE, (re.escape(name), *said), _write(path, content))


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
    ]


def _of_runs() -> list[Mistake]:
    def move_data() -> None:
        os.rename("prepared", "moved")

    gone = r"data\.root: prepared: there is no such folder"
    return [
        Mistake("resume", _resume("--out", "run", "model.dropout=0.1"), ("model.dropout: 0.4 there", "another --out")),
        Mistake("facts", ("evaluate", "run"), (r"facts\.json: is missing",), lambda: os.remove("run/facts.json")),
        Mistake(
            "checkpoints",
            ("evaluate", "run"),
            ("has no checkpoint yet", "sightline train run --resume auto"),
            lambda: shutil.rmtree("run/checkpoints"),
        ),
        Mistake("data", ("evaluate", "run"), (rf"{gone}; looked in /\S+; if the set is elsewhere",), move_data),
        Mistake(
            "export", ("export", "run"), (rf"not at hand \(run/config\.yaml:\d+: {gone}\); give files",), move_data
        ),
    ]


MISTAKES = (*_of_files(), *_of_runs())
