"""What notes on joints in volumes ask for of any network: numbers, kernels, randomness, comparisons."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sightline
import sightline.verbs.compare
from sightline.areas.pose.v2v import V2VSmall
from sightline.contract import registry
from sightline.workbench.compare import comparison, matrix
from sightline.workbench.compare.subject import make_subject
from sightline.workbench.compare.variants import make_variant
from tests.command import document_of, refuse, run_here, succeed
from tests.doc_blocks import blocks_of
from tests.engine.published_weights import registered
from tests.mission.rows import part, row
from tests.mission.small import CPU, ONE_STEP, SOLIDS, learn
from tests.mission.volumes import CLOUDS, FEW, HANDS
from tests.processes import ROOT


@row("S1.20", "train in float64", "`sightline train CONFIG train.precision=float64`")
def _float64(work: Path) -> None:
    class Typed(V2VSmall):
        dtypes: ClassVar[set[torch.dtype]] = set()

        def likelihood(self, volume: Tensor) -> Tensor:
            stem, maps = self.stem(volume), super().likelihood(volume)
            self.dtypes.update((volume.dtype, stem.dtype, maps.dtype, *(p.dtype for p in self.parameters())))
            return maps

    words = (*FEW, "evaluate.select=test", "train.precision=float64", "model={name: typed}")
    with registered(registry.models, typed=Typed):
        run = learn("pose/synthetic_hands_v2v_small", work / "run", *words)
        saved = sightline.load_run(run).model.state_dict()
    assert Typed.dtypes == {torch.float64}
    files = sorted((run / "checkpoints/last").glob("*.safetensors"))
    assert "model.safetensors" in [file.name for file in files]
    for file in files:
        stored = {name: value for name, value in load_file(file).items() if value.is_floating_point() and value.ndim}
        assert {value.dtype for value in stored.values()} <= {torch.float64}, file.name
    assert saved.keys()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert float(np.float32(line["loss/total"])) != line["loss/total"], "a loss that float32 holds"


@row(
    "S1.21",
    "do without the vendor's kernels, for all or for batch norm alone",
    "`sightline train CONFIG train.cudnn=all_but_batch_norm`",
)
def _kernels(work: Path) -> None:
    normalise, convolve = torch.batch_norm, torch.nn.functional.conv3d
    for level, expected in (("on", (True, True)), ("all_but_batch_norm", (True, False)), ("off", (False, False))):
        seen: dict[str, set[bool]] = {"convolution": set(), "norm": set()}

        def spy_norm(*given: Any, seen: dict[str, set[bool]] = seen) -> Tensor:
            seen["norm"].add(given[8])
            return normalise(*given)

        def spy_convolution(*given: Any, seen: dict[str, set[bool]] = seen) -> Tensor:
            seen["convolution"].add(torch.backends.cudnn.enabled)
            return convolve(*given)

        with (
            mock.patch.object(torch, "batch_norm", spy_norm),
            mock.patch.object(torch.nn.functional, "conv3d", spy_convolution),
        ):
            words = (*FEW, "evaluate.select=test", f"train.cudnn={level}")
            learn("pose/synthetic_hands_v2v_small", work / level, *words)
        assert tuple(seen.values()) == tuple({value} for value in expected), level


@row("S1.22", "find the layer that they spoil", "`sightline compare CONFIG --against native-batch-norm`")
def _spoilt(work: Path) -> None:
    """Refused without a GPU; with another network's batch norm in place of the vendor's, on this machine's CPU."""
    error = refuse("compare", HANDS, *FEW, "--against", "native-batch-norm", *CPU)
    assert "native-batch-norm" in error
    assert "cuDNN" in error
    words = (HANDS, *FEW, "train.precision=float32", "--against", "native-batch-norm", "--steps", 0, *CPU)
    normalise = torch.batch_norm

    def spoil(values: Tensor, *given: Any) -> Tensor:
        """Normalise 8 channels, which one layer has, wrongly where the vendor's kernels are on."""
        is_spoilt = given[-1] and values.shape[1] == 8
        return normalise(values, *given) * (1.001 if is_spoilt else 1.0)

    with vendor_on_cpu():
        assert document_of("compare", *words)["equal"]
        with mock.patch.object(torch, "batch_norm", spoil):
            done = run_here("compare", *words, "--json", work / "found.json")
    assert done.code == 1, done.err
    found = json.loads((work / "found.json").read_text())
    assert found["first"]["layer"] == "stem.0.norm"
    assert {row["layer"] for row in found["guilty"]} == {"stem.0.norm"}


@contextlib.contextmanager
def vendor_on_cpu() -> Iterator[None]:
    """Context in which a comparison of a GPU's kernels runs on the CPU, whose batch norm is told if they are on."""

    def on_gpu(*given: Any, **named: Any) -> Any:
        subject, num_steps = make_subject(*given, **named)
        return dataclasses.replace(subject, device=torch.device("cuda")), num_steps

    def on_cpu(model: nn.Module, precision: str, device: torch.device, **named: Any) -> Any:
        return make_variant(model, precision, torch.device("cpu"), **named)

    with (
        mock.patch.object(sightline.verbs.compare, "make_subject", on_gpu),
        mock.patch.object(comparison, "make_variant", on_cpu),
    ):
        yield


@row("S1.23", "see loss, time and memory of every device, format and kernel", "`sightline compare CONFIG --matrix`")
def _one_pair(work: Path) -> None:
    found = document_of("compare", HANDS, *FEW, "--against", "bfloat16", "--steps", 1, "--samples", 1, *CPU)
    (ours,), (theirs,) = found["steps"]["losses"], found["steps"]["expected"]
    assert ours == pytest.approx(theirs, rel=0.05)
    assert found["variant"] == "bf16 on cpu"


@part("S1.23", "L")
def _matrix(work: Path) -> None:
    """Weights, gradients and Adam's two averages are 16 bytes a weight in float32, 32 in float64."""
    clock, forward = [0.0], V2VSmall.likelihood

    def counted(model: V2VSmall, volume: Tensor) -> Tensor:
        clock[0] += 1.0  # a second each
        return forward(model, volume)

    words = (HANDS, *FEW, "--matrix", "--steps", 2, "--samples", 1, *CPU, "--json", work / "cells.json")
    with (
        mock.patch.object(V2VSmall, "likelihood", counted),
        mock.patch.object(matrix, "time", SimpleNamespace(perf_counter=lambda: clock[0])),
    ):
        done = succeed("compare", *words)
    text = " ".join(f"{done.out} {done.err}".split())
    cells = json.loads((work / "cells.json").read_text())["matrix"]
    assert [(cell["precision"], cell["device"]) for cell in cells[:3]] == [
        *(("float64", "cpu"), ("float32", "cpu"), ("bf16", "cpu"))
    ]
    lacking = {(cell["precision"], cell["device"], cell["cudnn"], cell["tf32"]) for cell in cells[3:]}
    kernels = ("on", "off", "all_but_batch_norm")
    assert lacking == {
        (precision, "cuda", cudnn, tf32)
        for precision in ("float64", "float32", "bf16")
        for cudnn in kernels
        for tf32 in ((False, True) if precision == "float32" else (None,))
    }
    assert text.count("no GPU here") == 12
    exact, single, half = ([cell["losses"][step] for step in ("0", "1")] for cell in cells[:3])
    assert single == pytest.approx(exact, rel=1e-4)
    assert half == pytest.approx(exact, rel=0.05)
    assert len({tuple(losses) for losses in (exact, single, half)}) == 3, "formats have the same bits"
    assert exact[0] != exact[1]
    assert all(f"{loss:.7g}" in text for loss in (*exact, *single, *half))
    first = sightline.load_data(HANDS, "train", overrides=FEW)[0]["heatmaps"].double().square().mean().item()
    assert exact[0] == pytest.approx(first, rel=0.2)  # of maps near zeros
    weights = sum(p.numel() for p in sightline.build_model("v2v_small", num_joints=21).parameters())
    for cell, size in zip(cells[:3], (8, 4, 4), strict=True):
        assert cell["first"] is None
        assert cell["step_s"] == 1.0
        assert 4 * weights * size < cell["peak_bytes"] < 2**30
    assert cells[0]["peak_bytes"] > 1.5 * cells[1]["peak_bytes"]


@row("S1.24", "forbid randomness", "`sightline train CONFIG train.determinism=strict`")
def _strict(work: Path) -> None:
    ends = []
    words = ("train.determinism=strict", "train.steps=2", "evaluate.select=test")
    for seed, name in enumerate("ab"):
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        run = learn("pose/synthetic_hands_v2v_small", work / name, *FEW, *words)
        assert torch.are_deterministic_algorithms_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        ends.append((run / "checkpoints/last/model.safetensors").read_bytes())
    assert ends[0] == ends[1]
    with registered(registry.models, undecided=Undecided):
        run = ("train", HANDS, *FEW, "model={name: undecided}", *ONE_STEP, "evaluate.select=test", "--no-check", *CPU)
        refused = run_here(*run, words[0], "--out", work / "refused")
        assert refused.code != 0, "an operation without a fixed order is not refused"
        assert "no deterministic form" in refused.err
        succeed(*run, "--out", work / "seeded")


class Undecided(V2VSmall):
    """A network with an operation whose result depends on which of two writes is the last."""

    def likelihood(self, volume: Tensor) -> Tensor:
        maps = super().likelihood(volume)
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return maps


@row(
    "S1.25",
    "compare with the authors' program, in any language, or with another torch",
    "`sightline compare RUN --against FILE.py`, `--against RECORD`",
)
def _another_program(work: Path) -> None:
    theirs = ROOT / "examples/their_pointnet.py"
    few = (*SOLIDS, "model={name: pointnet_plain, embedding: 64}", "losses=[{name: cross_entropy}]")
    words = (*few, "--against", theirs, "--steps", 0, *CPU, "--json", work / "found.json")
    assert run_here("compare", CLOUDS, *words).code == 1
    found = json.loads((work / "found.json").read_text())
    assert (found["first"]["layer"], found["first"]["what"]) == ("encode.2.norm", "result")
    assert found["settings"] == ["eps is 1e-05 and in the reference 0.001"]


@part("S1.25", "M")
def _record(work: Path) -> None:
    """By the NumPy program of the page, in a process of its own, with a weight in the wrong layout."""
    program, command = blocks_of(ROOT / "docs/reference/compare_records.md")
    text = program.text.replace('active @ w["encode.2.weight"].T', 'active @ w["encode.2.weight"]')
    subprocess.run([sys.executable, "-I", "-c", text], cwd=work, check=True)
    words = [ROOT / w if w.startswith("examples/") else work / w if w == "record" else w for w in command.commands()[0]]
    done = run_here(*words[1:], *CPU)
    assert done.code == 1, done.err
    assert "the first stage that differs: forward; they diverge first at encode.2 (Linear)" in done.err


_WRONG = """
import torch

from sightline.areas.clouds.models.pointnet import PointNetPlain
import sightline


class Wrong(torch.nn.Linear):
    def forward(self, values):
        made = super().forward(values)
        return made * 1.001 if made.dtype == torch.float32 else made


@sightline.register.model("wrong")
class Net(PointNetPlain):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, embedding=16)
        self.head[0].linear.__class__ = Wrong
"""


@row(
    "S1.26",
    "send upstream a script that reproduces a wrong layer",
    "`sightline compare CONFIG --against float64 --repro DIR`, then `python DIR/repro.py`",
    letter="N",
)
def _repro(work: Path) -> None:
    (work / "wrong.py").write_text(_WRONG)
    model = ("model={name: wrong}", "losses=[{name: cross_entropy}]", "--plugin", work / "wrong.py")
    words = ("--against", "float64", "--steps", 0, "--repro", work / "repro")
    assert run_here("compare", CLOUDS, *SOLIDS, *model, *words, *CPU).code == 1
    script = [sys.executable, "-I", work / "repro/repro.py"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    numbers = re.search(r"measured (\S+), expected (\S+)", done.stdout)
    assert numbers is not None, done.stdout
    measured, expected = map(float, numbers.groups())
    assert measured == pytest.approx(1.001 * expected, rel=1e-5)
    assert "head.0.linear (Wrong), result: float32 on cpu beside float64 on cpu" in done.stdout
    text = (work / "repro/repro.py").read_text()
    assert "sightline" not in text
    assert "made * 1.001" in text
