"""What notes on joints in volumes ask for of any network: layers, a few samples, numbers and kernels."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import sightline
from sightline.areas.pose.v2v import V2VSmall
from sightline.contract import registry
from tests.command import document_of, refuse, run_here
from tests.doc_blocks import blocks_of
from tests.engine.published_weights import registered
from tests.mission.rows import part, row
from tests.mission.small import (
    CPU,
    NETWORK,
    SOLIDS,
    find_fault,
    findings,
    learn,
    said,
    skip_but,
)
from tests.mission.volumes import CLOUDS, CUBE, FEW, HANDS
from tests.processes import ROOT
from tests.runtime.planted_loops import PLANTS

# --- layers -----------------------------------------------------------------------------------------------------------


@row(
    "S1.7",
    "check forward and backward of every layer, and of every loss",
    "`sightline check CONFIG --deep`, finding `loss-gradient`",
)
def _deep(work: Path) -> None:
    assert "0.99" in find_fault("N8", "layer-gradient", "--deep", cause="model.numerics")["measured"]
    assert find_fault("L9", "loss-gradient")["severity"] == "error"


_ROUGH = """
from sightline.areas.clouds.models.pointnet import PointNetPlain


class Rough(PointNetPlain):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, embedding=16)
        first = self.head[0].linear
        first.forward, exact = lambda values: exact(values).half().to(values.dtype), first.forward
"""


@row("S1.8", "catch a layer that loses precision", "`sightline compare CONFIG --against float64`")
def _precision(work: Path) -> None:
    words = (CLOUDS, *SOLIDS, "--against", "float64", "--steps", 0, *CPU, "--json", work / "found.json")
    assert run_here("compare", *words, *NETWORK).code == 0
    (work / "rough.py").write_text(_ROUGH + '\n\nimport sightline\n\nsightline.register.model("rough")(Rough)\n')
    model = ("model={name: rough}", "losses=[{name: cross_entropy}]", "--plugin", work / "rough.py")
    done = run_here("compare", *words, *model)
    assert done.code == 1, done.err
    assert json.loads((work / "found.json").read_text())["first"]["layer"].startswith("head.0")


# --- the first loss, and a few samples --------------------------------------------------------------------------------


@row(
    "S1.10",
    "explain the first loss of heat maps",
    "`sightline check CONFIG`, note `initial-squares`: `first loss 3.3e-4, all-zero maps 3.2115e-4`",
)
def _first_loss(work: Path) -> None:
    found = fit(work, "--samples", 1, "--steps", 1)["loss"]
    assert found["floor"] < 1e-12 < found["constant"] < found["start"]


@part("S1.10", "G")
def _all_zero_maps(work: Path) -> None:
    text = said("check", HANDS, *FEW, *SPARSE, skip_but("initial-squares"), "--verbose", *CPU)
    first, zeros = re.search(r"first loss ([^\s,]+), all-zero maps ([^\s,]+)", text).groups()  # type: ignore[union-attr]
    assert 0 < float(zeros) < float(first)


SPARSE = ("transforms.train.0.size=32", "transforms.evaluate.0.size=32")
"""Cubes of which heat maps fill a small part, as those of the notes; of 16 voxels a side constants are half of them."""


def fit(work: Path, *words: object, code: int | None = None) -> Any:
    """Over-fit a few hands; return what `--fit` writes."""
    done = run_here("check", HANDS, *FEW, skip_but(), "--fit", *words, *CPU, "--json", work / "fit.json")
    assert code is None or done.code == code, done.err
    return json.loads((work / "fit.json").read_text())["fit"]


@row(
    "S1.11",
    "have unsuitable initial weights named, of classes and of maps",
    "`sightline check CONFIG`, finding `initial-loss`",
)
def _initial_weights(work: Path) -> None:
    assert "standard deviation 1.31e+03" in find_fault("O10", "initial-loss")["summary"]


@part("S1.11", "G")
def _initial_weights_of_maps(work: Path) -> None:
    class Loud(V2VSmall):
        def likelihood(self, volume: Tensor) -> Tensor:
            return super().likelihood(volume) * 1e5

    with registered(registry.models, loud=Loud):
        assert "initial-loss" in findings(HANDS, *FEW, skip_but("initial-loss"), "model={name: loud}")


@row(
    "S1.12",
    "be told that a loss sits at a trivial plateau",
    "`sightline check RUN`, finding `trivial-plateau`",
    letter="G",
)
def _plateau(work: Path) -> None:
    words = ("optimizer={name: sgd, lr: 1e-9}", "schedule.name=constant", "train.steps=120", "train.epochs=60")
    run = learn("pose/synthetic_hands_v2v_small", work / "run", *FEW, "evaluate.select=test", *words)
    assert (
        "the loss stays at the level of all-zero outputs"
        in findings(run, skip_but("trivial-plateau"))["trivial-plateau"]["summary"]
    )


@row("S1.13", "over-fit one sample, or several", "`sightline check CONFIG --fit --samples 1`")
def _over_fit(work: Path) -> None:
    one = fit(work, "--samples", 1, "--steps", 60, code=0)
    assert one["fitted"]
    assert one["attempts"][0]["fitted_after"] <= 60
    several = (*SOLIDS, *NETWORK, skip_but(), "--fit", "--samples", 3, "--steps", 40, *CPU)
    assert "3 samples: fitted" in said("check", CLOUDS, *several)
    stuck = run_here("check", CLOUDS, *several, "optimizer.lr=1e-9")
    assert stuck.code == 1
    assert "[fit error optim.lr]" in stuck.err


@row(
    "S1.14",
    "tabulate optimisers by number formats",
    "`sightline check CONFIG --fit --grid`: the recipe's, RMSprop and SGD by float32 and float64",
)
def _optimisers(work: Path) -> None:
    for optimizer in ("{name: sgd, lr: 0.1}", "{name: rmsprop, lr: 1e-3}"):
        words = (
            skip_but(),
            f"optimizer={optimizer}",
            "train.precision=float64",
            "--fit",
            "--samples",
            3,
            "--steps",
            30,
        )
        assert "3 samples: fitted" in said("check", CLOUDS, *SOLIDS, *NETWORK, *words, *CPU)


@part("S1.14", "H")
def _grid(work: Path) -> None:
    done = run_here("check", HANDS, *FEW, skip_but(), "--fit", "--grid", "--samples", 1, "--steps", 3, *CPU)
    rows = re.findall(r"│ (recipe \(adam\)|rmsprop|sgd) +│ (float32|float64) ", done.out)
    assert len(set(rows)) == 6, done.out + done.err


@row(
    "S1.15",
    "grow from one sample to the task, rung by rung",
    "`sightline check CONFIG --fit --grow 1,8,64,all`",
    letter="I",
)
def _ladder(work: Path) -> None:
    words = (*SOLIDS, *NETWORK, skip_but(), "--fit", "--grow", "2,4", "--steps", 60, *CPU)
    text = said("check", CLOUDS, *words)
    assert "rung 2: passed" in text
    assert "rung 4: passed" in text


class Rectified(V2VSmall):
    """A network of volumes that ends in a ReLU: the bug of the notes."""

    def likelihood(self, volume: Tensor) -> Tensor:
        return torch.nn.functional.relu(super().likelihood(volume))


@row(
    "S1.16",
    "have a ReLU that ends a network of volumes named",
    "`sightline check CONFIG`, cause `model.activation`; `--fit`: an error",
    letter="J",
)
def _final_relu(work: Path) -> None:
    with registered(registry.models, rectified=Rectified):
        found = findings(HANDS, *FEW, *SPARSE, "model={name: rectified}")
        named = [finding for finding in found.values() if finding["cause"] == "model.activation"]
        assert [finding["severity"] for finding in named] == ["warning"]
        assert (
            run_here(
                *("check", HANDS, *FEW, *SPARSE, skip_but(), "model={name: rectified}", "--fit", "--steps", 20, *CPU)
            ).code
            == 1
        )
    assert "model.activation" not in [finding["cause"] for finding in findings(HANDS, *FEW, *SPARSE).values()]


@row(
    "S1.17",
    "watch the gradients of every layer, and find dead units",
    "`sightline train CONFIG log.gradients=true`, finding `dead-units`",
)
def _gradients(work: Path) -> None:
    run = learn("pose/synthetic_hands_v2v_small", work / "run", *FEW, "evaluate.select=test", "log.gradients=true")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    norms = {name: value for name, value in line.items() if name.startswith("gradient/")}
    assert {"gradient/stem.0.conv", "gradient/output"} <= norms.keys()
    assert sum(value**2 for value in norms.values()) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-4)
    assert "dead-units" in [finding.code for finding in PLANTS["dead units"].run().findings]


@row(
    "S1.18",
    "follow samples through the layers, and state beforehand what must hold",
    "`sightline check CONFIG --fit --trace`, `expect: [{layer: head, zeros: [0, 0.5]}]`",
    letter="K",
)
def _trace(work: Path) -> None:
    words = (*SOLIDS, *NETWORK, skip_but(), "--fit", "--samples", 2, "--steps", 3, *CPU)
    text = run_here("check", CLOUDS, *words, "--trace").out
    assert "encode.0.linear" in text
    assert "head.2" in text
    broken = run_here("check", CLOUDS, *words, "--trace", "expect=[{layer: head.2, mean: [1000, 2000]}]")
    assert broken.code == 1
    assert "head.2" in broken.err


@row(
    "S1.19",
    "compare a small network with the full one",
    "`sightline study CONFIG --arm small= --arm 'published=model={name: v2v}' --out DIR`",
)
def _two_sizes(work: Path) -> None:
    size = CUBE.replace("16", "32")
    few = (*FEW[:3], f"transforms.train={size}", f"transforms.evaluate={size}", "train.precision=float32")
    arms = ("--arm", "small=", "--arm", "published=model={name: v2v}", "--seeds", 1, *CPU, "--out", work / "out")
    text = said("study", HANDS, *few, "train.steps=1", "evaluate.select=test", "log.tensorboard=false", *arms)
    assert re.search(r"│ small │ 1 │ \d+\.\d+ │.*│ published │ 1 │ \d+\.\d+ │", text)
    sizes = [
        sum(p.numel() for p in sightline.load_run(work / f"out/arm_{arm}/seed_0").model.parameters())
        for arm in ("small", "published")
    ]
    assert sizes == [72357, 3410453]


# --- numbers and kernels ----------------------------------------------------------------------------------------------


@row("S1.20", "train in float64", "`sightline train CONFIG train.precision=float64`")
def _float64(work: Path) -> None:
    run = learn("pose/synthetic_hands_v2v_small", work / "run", *FEW, "evaluate.select=test", "train.precision=float64")
    saved = sightline.load_run(run).model.state_dict()
    from safetensors.torch import load_file

    stored = load_file(run / "checkpoints/last/model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float64}
    assert saved.keys()


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
    error = refuse("compare", HANDS, *FEW, "--against", "native-batch-norm", *CPU)
    assert "native-batch-norm" in error
    assert "cuDNN" in error


@row("S1.23", "see loss, time and memory of every device, format and kernel", "`sightline compare CONFIG --matrix`")
def _one_pair(work: Path) -> None:
    found = document_of("compare", HANDS, *FEW, "--against", "bfloat16", "--steps", 1, "--samples", 1, *CPU)
    (ours,), (theirs,) = found["steps"]["losses"], found["steps"]["expected"]
    assert ours == pytest.approx(theirs, rel=0.05)
    assert found["variant"] == "bf16 on cpu"


@part("S1.23", "L")
def _matrix(work: Path) -> None:
    text = said("compare", HANDS, *FEW, "--matrix", "--steps", 1, "--samples", 1, *CPU)
    assert all(name in text for name in ("float64", "float32", "bf16"))
    assert text.count("no GPU here") == 12


@row("S1.24", "forbid randomness", "`sightline train CONFIG train.determinism=strict`")
def _strict(work: Path) -> None:
    ends = []
    for name in ("a", "b"):
        words = ("train.determinism=strict", "train.steps=2", "evaluate.select=test")
        run = learn("pose/synthetic_hands_v2v_small", work / name, *FEW, *words)
        assert torch.are_deterministic_algorithms_enabled()
        ends.append((run / "checkpoints/last/model.safetensors").read_bytes())
    assert ends[0] == ends[1]


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
    assert re.search(r"measured \S+, expected \S+", done.stdout)
    assert "sightline" not in (work / "repro/repro.py").read_text()
