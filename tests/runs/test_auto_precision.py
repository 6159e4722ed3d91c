"""`train.precision: auto`: what it stands for on each machine, that a run records it, and that it never changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sightline.config import read_config
from sightline.engine.device.numerics import resolve_precision
from tests.cases import run_each
from tests.command import refuse, succeed
from tests.processes import ROOT
from tests.runs.broken_off import differences, run_forked
from tests.runs.small import PLAIN, SMALL
from tests.trained import break_off

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
WORDS = (*SMALL, *PLAIN, "checkpoint.keep_last=2", "--device", "cpu", "--no-check")
AUTO = "train.precision=auto"
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, *, bf16: bool = False, amx: bool = False, gpu: bool = False) -> None:
    """Let this machine have these instructions, and a GPU that computes in bf16 or only emulates it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu or including_emulation)


@run_each(
    "machine, device, expected",
    [
        ({}, CPU, "float32"),
        ({"bf16": True}, CPU, "bf16"),
        ({"amx": True}, CPU, "bf16"),
        ({"gpu": True}, CPU, "float32"),
        ({"gpu": True}, GPU, "bf16"),
        ({"bf16": True}, GPU, "float32"),
    ],
)
def test_auto_is_bf16_where_the_device_computes_in_it(
    machine: dict[str, bool], device: torch.device, expected: str
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretend(monkeypatch, **machine)
        assert resolve_precision("auto", device) == expected
        assert [resolve_precision(name, device) for name in ("float64", "fp16")] == ["float64", "fp16"]


def test_a_run_has_the_bits_of_one_that_names_the_format_and_keeps_it_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a machine with bf16, broken off, and resumed on one without, by the same words."""
    pretend(monkeypatch, bf16=True)
    done = succeed("train", CONFIG, *WORDS, AUTO, "--out", tmp_path / "auto")
    assert "train.precision: auto is bf16 in this run" in done.err
    succeed("train", CONFIG, *WORDS, "train.precision=bf16", "--out", tmp_path / "named")
    assert differences(tmp_path / "auto", tmp_path / "named") == []
    assert (tmp_path / "auto" / "config.yaml").read_bytes() == (tmp_path / "named" / "config.yaml").read_bytes()
    shutil.copytree(tmp_path / "auto", tmp_path / "resumed", symlinks=True)
    break_off(tmp_path / "resumed")
    pretend(monkeypatch)
    resume = ("--out", tmp_path / "resumed", "--resume", "auto")
    done = succeed("train", CONFIG, *WORDS, AUTO, *resume)
    assert "train.precision: auto is bf16 in this run" in done.err
    assert read_config(tmp_path / "resumed" / "config.yaml").train.precision == "bf16"
    assert differences(tmp_path / "resumed", tmp_path / "named") == []
    expected = "train.precision: bf16 there, float32 here"
    assert expected in refuse("train", CONFIG, *WORDS, "train.precision=float32", *resume)
    assert "train.precision: auto is float32 in this run" in (
        succeed("train", CONFIG, *WORDS, AUTO, "train.steps=1", "--out", tmp_path / "here").err
    )


@pytest.mark.processes
def test_the_first_of_several_processes_chooses(tmp_path: Path) -> None:
    plugin = tmp_path / "other_machine.py"
    plugin.write_text(
        "import os\nimport torch\n\ntorch.cpu._is_amx_tile_supported = lambda: False\n"
        "torch.cpu._is_avx512_bf16_supported = lambda: os.environ.get('RANK') == '0'\n"
    )
    run = tmp_path / "run"
    words = ["train", str(CONFIG), *WORDS, AUTO, "train.steps=2", "--plugin", str(plugin), "--out", str(run)]
    code, text = run_forked(words, tmp_path / "log", num_processes=2)
    assert code == 0, text
    assert read_config(run / "config.yaml").train.precision == "bf16"
