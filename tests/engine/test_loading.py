"""What is said where a run has no weights to load, or damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.engine.loading import checkpoint_path, load_trained
from sightline.errors import CheckpointError, UserError
from sightline.runs import checkpoint
from tests.engine.snapshots import snapshot_of


def test_a_run_without_a_checkpoint_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError) as error:
        checkpoint_path(tmp_path, "last")
    assert str(error.value) == (
        f"checkpoint last: the run {tmp_path} has no checkpoint yet (interrupted before the first one?); go on with: "
        f"sightline train {tmp_path} --resume auto --out {tmp_path}"
    )


def test_another_word_is_answered_by_what_there_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, snapshot_of(1), keep_last=1, is_best=True)
    with pytest.raises(UserError) as error:
        checkpoint_path(tmp_path, "beste")
    assert str(error.value) == (
        "checkpoint beste: there is no beste; give last, best or a path; "
        f"{tmp_path}/checkpoints holds best, last, step_00000001; did you mean 'best'?"
    )


def test_a_damaged_checkpoint_names_the_option_that_takes_a_sound_one(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, snapshot_of(step), keep_last=2, is_best=step == 1)
    damaged = tmp_path / "checkpoints/step_00000002/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError) as error:
        load_trained(torch.nn.Linear(1, 1), checkpoint_path(tmp_path, "last"))
    sound = damaged.parents[1] / "step_00000001"
    assert str(error.value).endswith(f"the newest sound one is {sound}; give it by --checkpoint")
    assert "resume" not in str(error.value)
