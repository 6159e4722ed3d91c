"""Errors that a GPU reports: one line with a remedy, wherever the host learns of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from sightline.contract.errors import RunError
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluator
from sightline.training import session
from sightline.verbs.terminal import format_error
from tests.command import run_here
from tests.doctor.planting import CONFIG

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB")
REFUSED = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
TEXTS: dict[Exception, str] = {
    FULL: "the GPU's memory is full; raise train.micro_batches",
    REFUSED: "the GPU refused a number, most often an index or a label out of range; --device cpu names it",
}


@pytest.mark.parametrize("error", TEXTS)
def test_a_training_names_the_step(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(session, "train", fail)
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = run_here("train", tmp_path / "config.yaml", "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"error: step 0: {TEXTS[error]}")
    assert "Traceback" not in done.err


def test_an_evaluation_names_its_own_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More micro-batches would not help it."""

    def fail(*_: Any, pictures: bool) -> NoReturn:
        raise FULL

    monkeypatch.setattr(Evaluator, "__call__", fail)
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = ("--no-check", "--device", "cpu", "--out", tmp_path / "run", "train.steps=1")
    done = run_here("train", tmp_path / "config.yaml", *words)
    line = "error: step 1: the GPU's memory is full in an evaluation; lower evaluate.batch_size"
    assert (done.code, done.err.splitlines()[-1]) == (1, line)


@pytest.mark.parametrize("error", TEXTS)
def test_other_commands_end_by_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert format_error(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {TEXTS[error]}")


@pytest.mark.parametrize("error", TEXTS)
def test_a_collective_is_not_blamed_for_what_came_to_light_in_it(error: Exception) -> None:
    world = World(rank=0, size=2)
    with pytest.raises(type(error)) as caught, world._collective("all_reduce of losses", None):
        raise error
    assert caught.value is error
    with (
        pytest.raises(RunError, match="all_reduce of losses failed: NCCL"),
        world._collective("all_reduce of losses", None),
    ):
        raise RuntimeError("NCCL error: unhandled system error")
