"""`train.batch_size: auto` under planted limits of memory: the number, the run that has it, and its resumption."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.config import read_config
from sightline.engine import batch_size, build
from sightline.parts.tasks.supervised import Supervised
from tests.cases import run_each
from tests.command import refuse, run_here, succeed
from tests.processes import ROOT
from tests.runs.broken_off import differences, run_forked
from tests.runs.small import PLAIN, SMALL
from tests.trained import break_off

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
WORDS = (
    *(word for word in SMALL if "train.batch_size" not in word),
    *PLAIN,
    "checkpoint.keep_last=2",
    "--device",
    "cpu",
    "--no-check",
)
AUTO, NAMED = "train.batch_size=auto", "train.batch_size=8"


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let this host have a memory that is full above this many samples of a micro-batch, as a GPU says it."""
    most, losses = [10**9], Supervised.losses

    def full_above(task: Any, model: Any, batch: Any, context: Any) -> Any:
        if len(batch["sample_index"]) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")
        return losses(task, model, batch, context)

    monkeypatch.setattr(Supervised, "losses", full_above)
    monkeypatch.setattr(build, "is_memory_bound", lambda device: True)
    return most


@run_each("least, most, largest", [(2, 999, n) for n in (0, 2, 3, 4, 37, 128, 998, 999, 5000)] + [(6, 6, 9), (6, 6, 3)])
def test_the_largest_number_that_fits_is_found_in_few_trials(least: int, most: int, largest: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= largest

    expected = 0 if largest < least else min(most, largest)
    assert batch_size.find_largest(fits, least, most) == expected
    assert all(least <= size <= most for size in tried)
    assert len(tried) == len(set(tried)) <= 2 * math.log2(max(2, expected)) + 2


@run_each(
    "most, words, expected",
    [
        (23, ("train.micro_batches=2", "train.tail=drop"), 46),
        (10**9, (), 48),
        (59, ("evaluate.select=test",), 58),  # 59 of 60 samples leave a last batch of one
    ],
)
def test_a_run_has_the_number_and_its_bits(
    most: int, words: tuple[str, ...], expected: int, limit: list[int], tmp_path: Path
) -> None:
    limit[0] = most
    auto, named = (tmp_path / f"{name}_{most}_{len(words)}_{expected}" for name in ("auto", "named"))
    done = succeed("train", CONFIG, *WORDS, *words, "train.steps=3", AUTO, "--out", auto)
    assert f"train.batch_size: auto is {expected} in this run" in done.err
    assert read_config(auto / "config.yaml").train.batch_size == expected
    succeed("train", CONFIG, *WORDS, *words, "train.steps=3", f"train.batch_size={expected}", "--out", named)
    assert differences(auto, named) == []
    assert (auto / "config.yaml").read_bytes() == (named / "config.yaml").read_bytes()


def test_a_resumed_run_takes_its_number_and_searches_nothing(
    limit: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit[0] = 14
    run = tmp_path / "run"
    succeed("train", CONFIG, *WORDS, AUTO, "--out", run)
    assert read_config(run / "config.yaml").train.batch_size == 14
    shutil.copytree(run, tmp_path / "whole", symlinks=True)
    break_off(run)
    monkeypatch.undo()  # a machine without a GPU, too
    monkeypatch.setattr(build, "find_batch_size", lambda *_, **__: pytest.fail("a resumed run searches"))
    done = succeed("train", CONFIG, *WORDS, AUTO, "--out", run, "--resume", "auto")
    assert "train.batch_size: auto is 14 in this run" in done.err
    assert differences(run, tmp_path / "whole") == []
    assert "train.batch_size: 14 there, 8 here" in refuse(
        "train", CONFIG, *WORDS, NAMED, "--out", run, "--resume", "auto"
    )


def test_what_cannot_be_searched_is_one_line(limit: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit[0] = 1
    code, _, err = run_here("train", CONFIG, *WORDS, AUTO, "--out", tmp_path / "run")
    assert code == 1
    assert "a step of 2 samples, two a micro-batch, does not fit into the GPU's memory" in err
    monkeypatch.setattr(Supervised, "losses", lambda *_: 1 / 0)
    code, _, err = run_here("train", CONFIG, *WORDS, AUTO, "--out", tmp_path / "run")
    assert code == 1
    assert "a training step of 2 samples failed: ZeroDivisionError" in err
    monkeypatch.undo()
    for command in ("train", "check", "profile", "describe"):
        out = ("--out", tmp_path / "run", "--no-check") if command == "train" else ()
        err = refuse(command, CONFIG, *WORDS[: len(SMALL) - 1], AUTO, "--device", "cpu", *out)
        assert "auto searches the largest batch that fits into the memory of a GPU, and this run is on the cpu" in err
        assert err.count("\n") == 1
    assert "a whole number, at least 1, or 'auto'" in refuse("show", CONFIG, "train.batch_size=all")
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_of_several_processes_the_smallest_share_counts(tmp_path: Path) -> None:
    plugin, run = tmp_path / "limits.py", tmp_path / "run"
    plugin.write_text(
        "import os\nimport torch\nfrom sightline.engine import build\n"
        "from sightline.parts.tasks.supervised import Supervised\n\n"
        "losses, most = Supervised.losses, {'0': 21, '1': 9}[os.environ['RANK']]\n\n"
        "def full_above(task, model, batch, context):\n"
        "    if len(batch['sample_index']) > most:\n        raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "    return losses(task, model, batch, context)\n\n"
        "Supervised.losses, build.is_memory_bound = full_above, lambda device: True\n"
    )
    words = ["train", str(CONFIG), *WORDS, AUTO, "train.steps=2", "--plugin", str(plugin), "--out", str(run)]
    code, text = run_forked(words, tmp_path / "log", num_processes=2)
    assert code == 0, text
    assert read_config(run / "config.yaml").train.batch_size == 18
