"""A stranger's code: own model, ragged data set, loss, metric and transform, from training to named errors."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sightline
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, PluginError
from sightline.contract.plugins import load_plugins
from sightline.contract.types import DataInfo
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.command import document_of, succeed
from tests.runs.broken_off import Forked, last_saved, run_forked, wait_for

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "my_plugin.yaml"
PLUGINS = (ROOT / "examples" / "my_plugin.py", ROOT / "examples" / "my_transform.py")
GIVEN = [word for path in PLUGINS for word in ("--plugin", str(path))]
WEIGHTS = "checkpoints/last/model.safetensors"
SHORT = ["log.tensorboard=false", "train.epochs=4", "train.ema_decay=0.9"]  # 36 steps


def run(log: Path, *words: str, num_processes: int = 1) -> str:
    code, text = run_forked(words, log, num_processes=num_processes)
    assert code == 0, text
    return text


def words_of(out: Path, *words: str) -> list[str]:
    return ["train", str(CONFIG), *SHORT, "--out", str(out), *GIVEN, *words]


def kill_in_mid_training(out: Path, num_processes: int) -> None:
    """Train until a few steps are saved, and none is in metrics.jsonl, then end every process with SIGKILL."""
    words = words_of(out, "checkpoint.every_steps=1", "--no-check", "log.every=100")
    child = Forked(words, out.with_suffix(".log"), num_processes=num_processes, held_at="step_00000005")
    wait_for(lambda: last_saved(out) >= 3 or not child.is_alive(), otherwise=child.log.read_text)
    for process in child.processes:
        process.kill()
    code, output = child.wait()
    assert code == -signal.SIGKILL, f"training was over before it could be killed: {output}"
    assert not (out / "metrics.jsonl").exists()
    assert not (out / "final.json").exists()


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("final.json", WEIGHTS, "checkpoints/last/ema.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.processes
@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_plugin_trains_resumes_to_the_same_bits_and_evaluates(tmp_path: Path, num_processes: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(tmp_path / "whole.log", *words_of(whole), num_processes=num_processes)
    final = json.loads((whole / "final.json").read_text())
    # Guessing is right once in three; 48 samples put four standard deviations of it at 0.61.
    assert final["metrics"]["top_1_accuracy"] > 0.61
    kill_in_mid_training(killed, num_processes)
    resumed = run(
        tmp_path / "resumed.log", *words_of(killed, "--resume", "auto", "--no-check"), num_processes=num_processes
    )
    assert "resumed at step" in resumed
    assert_same_run(whole, killed)
    run(tmp_path / "evaluated.log", "evaluate", str(whole), *GIVEN, "--json", str(tmp_path / "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == final, "one process evaluates what any number trained"
    if num_processes == 1:
        assert_loads(whole)


def assert_loads(path: Path) -> None:
    """The Python interface reads the run, and its metrics are those of the run; a forgotten plugin is named."""
    loaded = sightline.load_run(path, plugins=PLUGINS)
    assert loaded.class_names == ("round", "flat", "long")
    points, offsets = torch.rand(50, 3), torch.tensor([0, 20, 50])
    assert loaded.model(points=points, offsets=offsets)["logits"].shape == (2, 3)
    forgotten = (
        r"was made with the plugins (.*my_plugin\.py), (.*my_transform\.py); give them again: --plugin \1 --plugin \2"
    )
    with pytest.raises(PluginError, match=forgotten):
        sightline.load_run(path)


@pytest.fixture
def parts() -> Iterator[None]:
    """The plugins' parts are registered, and gone after the test."""
    before = {kind: dict(each._entries) for kind, each in registry.REGISTRIES.items() if each.names()}
    load_plugins(PLUGINS)
    yield
    for kind, entries in before.items():
        registry.REGISTRIES[kind]._entries = entries


@pytest.mark.usefixtures("parts")
def test_show_prints_what_reads_back_equal_and_check_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(succeed("show", CONFIG, *GIVEN).out)
    shown = read_config(tmp_path / "shown.yaml")
    assert shown == read_config(CONFIG)
    assert shown.data.arguments["train_size"] == 120, "a default of the plugin's signature is written out"
    found = document_of("check", CONFIG, *GIVEN)
    assert (found["errors"], found["warnings"]) == (0, 0), found


# --- the same named errors as built-ins ------------------------------------------------------------------------------


@pytest.mark.usefixtures("parts")
def test_a_collate_that_breaks_its_promise_names_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    pebbles = plugin_part("Pebbles")
    monkeypatch.setattr(pebbles, "collate", lambda self, samples: {"points": torch.zeros(3, 3)})
    job = build(read_config(CONFIG), World()).job
    with pytest.raises(DataError, match=r"Pebbles\.collate gives points, .*but info\.fields promises 'label'"):
        next(job.stream.iterate(0, 1))


@pytest.mark.usefixtures("parts")
def test_a_fact_that_cannot_be_noted_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pebbles = plugin_part("Pebbles")
    start_as_before = pebbles.__init__

    def state_a_tensor(self: object, *, split: str, train_size: int = 120, test_size: int = 48) -> None:
        start_as_before(self, split=split)
        self.info = DataInfo({**self.info.facts, "class_counts": torch.ones(3)}, self.info.fields)  # type: ignore

    monkeypatch.setattr(pebbles, "__init__", state_a_tensor)
    with pytest.raises(ConfigError, match="data set 'pebbles' states the fact 'class_counts' as tensor"):
        build(read_config(CONFIG), World())


def plugin_part(name: str) -> type:
    """A class of the example as it is registered now."""
    module = sys.modules["sightline_plugin_my_plugin"]
    part: type = getattr(module, name)
    return part
