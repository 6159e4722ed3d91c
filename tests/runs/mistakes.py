"""What a newcomer does wrong: each with the command, and what its message must hold, the place and the remedy."""

from __future__ import annotations

import os
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


GONE = r"data\.root: prepared: there is no such folder"
MISTAKES = (
    Mistake(
        "a page of the web",
        PREPARE,
        (r"a\.ply:1: starts with '<html>not ", "download it again"),
        lambda: Path("scans/ball/a.ply").write_text("<html>not found</html>"),
    ),
    Mistake(
        "two columns",
        PREPARE,
        (r"a\.npy: .*2 columns and no names", r"columns=\[x, y, z"),
        lambda: np.save("scans/ball/a.npy", np.arange(40.0).reshape(20, 2)),
    ),
    Mistake(
        "one point",
        PREPARE,
        (r"a\.npy: all \d+ points coincide", "leave the file out"),
        lambda: np.save("scans/ball/a.npy", np.ones((9, 3))),
    ),
    Mistake("source", (*PREPARE[:4], "scnas", *PREPARE[5:]), ("scnas: there is no such", "with clouds: CLASS")),
    Mistake("set", ("data", "prepare", "cloudfolder", *PREPARE[3:]), ("did you mean 'cloud_folder'",)),
    Mistake("home of nobody", (*PREPARE[:4], "~nobody_here/x", *PREPARE[5:]), ("home of ~nobody_here is not known",)),
    Mistake("within", (*PREPARE[:6], "scans/new", "up_axis=z"), (r"scans/new: lies in \S+scans,", "outside of it")),
    Mistake(
        "resume",
        ("train", "run", "model.dropout=0.1", "--resume", "auto"),
        ("model.dropout: 0.4 there, 0.1 here", "another --out"),
    ),
    Mistake("facts", ("evaluate", "run"), (r"facts\.json: is missing",), lambda: os.remove("run/facts.json")),
    Mistake(
        "data",
        ("evaluate", "run"),
        (rf"{GONE}; looked in /\S+; if the set is elsewhere",),
        lambda: os.rename("prepared", "moved"),
    ),
    Mistake(
        "export",
        ("export", "run"),
        (rf"not at hand \(run/config\.yaml:\d+: {GONE}\); give files",),
        lambda: os.rename("prepared", "moved"),
    ),
)
