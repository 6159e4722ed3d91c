"""The figure at the end of a contrast run: whatever is wrong with it, the run keeps its end; however long, all wait."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.contrast.crosspoint import IntraPoint
from sightline.contract.errors import DataError
from sightline.engine.distributed import World
from sightline.verbs import train as verb
from sightline.workbench.probe.features import share_errors
from tests.probe.contrast import THIN, train_thin
from tests.processes import run_ranks
from tests.runs.broken_off import Forked, run_forked, wait_for

WAITING = """
import sys, time
from sightline.engine.distributed import start_world
from sightline.workbench.probe.measure import fit_on_rank_zero

def learn():
    time.sleep(7)
    return "the figure"

with start_world(device="cpu", timeout_s=2.0) as world:
    assert fit_on_rank_zero(world, learn, timeout_s=2.0) == "the figure"
"""


@dataclasses.dataclass(frozen=True)
class Told(World):
    """The second of two processes, which hears what the first one says."""

    texts: tuple[str, ...] = ()

    def gather_text(self, text: str, *, operation: str = "text") -> list[str]:
        return [*self.texts, text]


def second(*texts: str) -> World:
    return Told(rank=1, size=2, texts=texts)


def not_finite(self: nn.Module, *, points: Tensor) -> Tensor:
    return torch.full((len(points), 32), float("nan"))


def out_of_memory(self: nn.Module, *, points: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("tried to allocate 4 GiB")


def too_few_points(self: nn.Module, *, points: Tensor) -> Tensor:
    raise ValueError("40 neighbours asked for in clouds of 32 points")


def unbindable(self: nn.Module, *, voxels: Tensor) -> Tensor:
    return voxels


@pytest.mark.parametrize(
    ("encode", "told"),
    [
        (None, "IntraPoint: has no `encode` and `feature_width`"),
        (not_finite, "its feature is not finite (72 such)"),
        (unbindable, "needs 'voxels'"),
        (out_of_memory, "a smaller evaluate.batch_size needs less (tried to allocate 4 GiB)"),
        (too_few_points, "ValueError: 40 neighbours asked for in clouds of 32 points"),
    ],
    ids=["none", "not finite", "unbindable", "out of memory", "too few points"],
)
def test_a_model_that_cannot_be_probed_ends_its_run_all_the_same(
    encode: Callable[..., Tensor] | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IntraPoint, "encode", encode)
    said: list[str] = []
    monkeypatch.setattr(verb, "print_note", said.append)
    run = train_thin(tmp_path)
    assert "probe_svm_accuracy" not in (run / "final.json").read_text()
    (reason,) = (line for line in said if line.startswith("probe_svm_accuracy"))
    assert reason.startswith("probe_svm_accuracy is left out: ")
    assert told in reason


def test_the_figure_stands_beside_what_guessing_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve classes, and as many of each."""
    said: list[str] = []
    monkeypatch.setattr(verb, "print_note", said.append)
    train_thin(tmp_path)
    assert "probe_svm_accuracy: guessing gets 0.0833, always the largest class 0.0833" in said
    remarks = [line for line in said if line.startswith("probe_svm_accuracy")]
    assert remarks[-1] == "probe_svm_accuracy: `evaluate RUN --probe svm` compares it with random weights"


def test_a_cloud_that_one_process_cannot_read_is_a_fault_on_all() -> None:
    with pytest.raises(DataError, match=r"^cloud 7 is broken$"), share_errors(second("cloud 7 is broken")):
        pass
    with pytest.raises(DataError, match="mine"), share_errors(second("")):
        raise DataError("mine")
    with pytest.raises(torch.OutOfMemoryError), share_errors(second("")):
        raise torch.OutOfMemoryError
    with share_errors(second("")):
        pass


@pytest.mark.long
@pytest.mark.processes
def test_the_others_wait_longer_than_the_time_out_for_the_first() -> None:
    """Three and a half times as long: beyond the alarm at 2 s, and the last resort at 2 + 1.2 + 2 s."""
    run_ranks(["-c", WAITING], 2)


# --- signals ----------------------------------------------------------------------------------------------------------

STUCK = '''\
"""Machines that are fitted without end, in a call that no signal reaches; MARK is made as the first one begins."""

import os
import time
from pathlib import Path

from sklearn.svm import SVC

from tests.limits import ENDLESS_S

fit = SVC.fit


def stuck(*arguments):
    if float(os.environ.get("SLOWED_S", "0")):
        Path(__file__).with_name("mark").touch()
        time.sleep(ENDLESS_S)
    return fit(*arguments)


SVC.fit = stuck
'''


@pytest.mark.parametrize(
    ("number", "num_processes"), [pytest.param(signal.SIGTERM, 1, marks=pytest.mark.long), (signal.SIGINT, 2)]
)
def test_a_signal_while_machines_are_fitted_ends_the_run_which_then_finishes(
    number: int, num_processes: int, tmp_path: Path
) -> None:
    config, plugin, out = tmp_path / "thin.yaml", tmp_path / "stuck.py", tmp_path / "run"
    config.write_text(THIN)
    plugin.write_text(STUCK)
    words = ["train", str(config), "--no-check", "--device", "cpu", "--plugin", str(plugin), "--out", str(out)]
    started = Forked(words, tmp_path / "log", num_processes=num_processes, slowed_s=1.0)
    wait_for((tmp_path / "mark").exists, otherwise=started.log.read_text)
    for process in started.processes:
        assert process.pid is not None
        os.kill(process.pid, number)
    code, text = started.wait()
    assert [process.exitcode for process in started.processes] == [128 + number] * num_processes, text
    assert "state saved; go on with --resume auto" in text
    assert "Traceback" not in text
    assert not (out / ".lock").exists()
    assert not (out / "final.json").exists()
    if num_processes == 2:
        return
    code, text = run_forked([*words, "--resume", "auto"], tmp_path / "resumed.log")
    assert code == 0, text
    assert "probe_svm_accuracy" in (out / "final.json").read_text()
