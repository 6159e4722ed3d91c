"""First words of a training, before torch is imported: its config, data and folder, and then what is being done."""

from __future__ import annotations

import sys
from pathlib import Path

from sightline.commands.run import TrainOptions
from sightline.contract.errors import UserError, escape_to_one_line
from sightline.draw.progress_line import ProgressLine
from sightline.engine.launcher import prints_first

TRAINING_LINE = ProgressLine("train")
"""What a training does until its first step."""


def begin_training(options: TrainOptions) -> None:
    """Name config, data and folder of a training on one line, and say what is being done from now on.

    Processes that a launcher started do not: it has said it. Of a faulty config nothing is named that depends on it.
    """
    if prints_first():
        sys.stderr.write(escape_to_one_line(describe_training(options)) + "\n")
        sys.stderr.flush()
        TRAINING_LINE.show(lambda: "imports its libraries")


def describe_training(options: TrainOptions) -> str:
    """Describe config, data and folder of a training, by the files of the config alone."""
    from sightline.config.faults import ConfigFaults
    from sightline.config.reader import read_tree

    words = [word for word in options.overrides if not word.startswith("imgsz=")]  # transforms need torch
    path = options.config / "config.yaml" if options.config.is_dir() else options.config
    try:
        tree = read_tree(path, words, ConfigFaults()).plain()
    except (UserError, OSError):
        tree = None
    sections = tree if isinstance(tree, dict) else {}
    data = sections.get("data")
    data = data if isinstance(data, dict) else {}
    root = f" in {data['root']}" if data.get("root") else ""
    of_data = f", data {data['name']}{root}" if data.get("name") else ""
    is_resumed_there = options.resume == "auto" and options.config.is_dir()
    out = options.out or (options.config if is_resumed_there else None)
    name = sections.get("name", path.stem)
    folder = f"the next folder of {Path('runs', str(name))}" if out is None else out
    return f"train: config {options.config}{of_data}, output {folder}"
