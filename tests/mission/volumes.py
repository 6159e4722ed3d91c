"""What notes on joints in volumes, V2V-PoseNet, ask for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.areas.pose.v2v import V2VSmall
from sightline.contract import registry
from sightline.contract.transform import Transform
from tests.command import document_of, succeed
from tests.data.depth import depth_trees
from tests.engine.published_weights import registered
from tests.mission.rows import part, row
from tests.mission.small import (
    CONFIGS,
    CPU,
    NETWORK,
    SOLIDS,
    document,
    figures,
    find_fault,
    findings,
    learn,
    said,
    skip_but,
    step,
)
from tests.planted.planting import Planter
from tests.processes import ROOT
from tests.trained import copy_run, trained_run

HANDS = CONFIGS / "pose/synthetic_hands_v2v_small.yaml"
CUBE = "[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]"
_CUBES = (f"transforms.train={CUBE}", f"transforms.evaluate={CUBE}")
FEW = ("data.train_size=6", "data.test_size=3", "train.batch_size=3", *_CUBES)
"""Six hands in cubes of 16 voxels a side."""
CLOUDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


# --- data -------------------------------------------------------------------------------------------------------------

_SETS: dict[str, Callable[[Path], object]] = {
    "icvl": depth_trees.write_icvl,
    "nyu": lambda root: depth_trees.write_nyu(root, {"train": 3, "test": 2}),
    "hands2017": lambda root: depth_trees.write_hands2017(root, with_test_labels=True),
    "itop": lambda root: depth_trees.write_itop(root, {"train": ["00_0", "01_0", "02_0"], "test": ["03_0"]}),
    "msra": lambda root: depth_trees.write_msra(root, {"P0/1": 2, "P1/1": 2, "P2/MP": 1}),
}


@row(
    "S1.1",
    "train V2V on hands and bodies of five public sets",
    "`sightline train configs/pose/msra_v2v.yaml`, and `icvl_`, `nyu_`, `hands2017_`, `itop_v2v.yaml`",
)
def _five_sets(work: Path) -> None:
    small = ("model={name: v2v_small}", "train.batch_size=2", "data.reference={name: truth}", *_CUBES)
    for name, write in _SETS.items():
        folder = work / name
        write(folder / "source")
        kind = {"hands2017": name, "itop": name}.get(name, f"{name}_hands")
        succeed("data", "prepare", kind, "--from", folder / "source", "--to", folder / "set")
        held = () if name in ("icvl", "nyu") else ("data.validation_share=0",)
        words = (f"data.root={folder / 'set'}", "evaluate.select=test", *held, *small)
        found = figures(learn(f"pose/{name}_v2v", folder / "run", *words))
        assert 0 < found["mean_error_mm"] < 2000, name


@row(
    "S1.2",
    "train without files, on hands and on bodies",
    "`sightline train configs/pose/synthetic_hands_v2v_small.yaml`, `.../synthetic_bodies_v2v_small.yaml`",
)
def _without_files(work: Path) -> None:
    assert 0 < figures(trained_run("pose"))["mean_error_mm"] < 200
    assert len(document(trained_run("pose"))["per_class"]) == 21


@part("S1.2", "F")
def _bodies_without_files(work: Path) -> None:
    run = learn("pose/synthetic_bodies_v2v_small", work / "run", *FEW, "evaluate.select=test")
    assert 0 < figures(run)["mean_error_mm"] < 2000
    assert "head" in " ".join(document(run)["per_class"])


@row(
    "S1.3", "exchange x, y, z for the authors' order of axes", "`transforms: {train: [{name: place_cube, axes: zyx}]}`"
)
def _axes(work: Path) -> None:
    plain = step("pose/synthetic_hands_v2v_small", work).micro_batches[0]
    turned = step("pose/synthetic_hands_v2v_small", work, "transforms.train.0.axes=zyx").micro_batches[0]
    for name in ("volume", "heatmaps"):
        assert torch.equal(turned[name], plain[name].transpose(-1, -3)), name
        assert not torch.equal(turned[name], plain[name])


@row(
    "S1.4",
    "look at voxels, heat maps and joints at every stage and epoch",
    "`sightline view CONFIG --epoch 1 --out DIR`",
)
def _stages(work: Path) -> None:
    augmented = "transforms.train.0={name: place_cube, size: 16, max_shift: 2.0}"
    for epoch in (0, 1):
        text = said(
            "view", HANDS, *FEW[:3], *_CUBES[1:], augmented, "--num", 1, "--epoch", epoch, "--out", work / str(epoch)
        )
        assert all(stage in text for stage in ("train 1: place_cube", "train 2: voxelize", "train 3: draw_heatmaps"))
        assert "21 of 21 joints inside" in text
    (first,), (second,) = ([p.read_bytes() for p in (work / str(epoch)).glob("*.png")] for epoch in (0, 1))
    is_same = first == second
    assert not is_same, "both epochs have the same picture"


@row("S1.5", "catch augmentation that changes the stored samples", "`sightline check CONFIG`, finding `data-mutation`")
def _mutation(work: Path) -> None:
    assert find_fault("D3", "data-mutation")["severity"] == "error"


@row(
    "S1.6",
    "rely on transforms that leave the stored samples unchanged, and know why",
    "`sightline check CONFIG --plugin FILE.py` of a transform that edits its input",
)
def _unchanged(work: Path) -> None:
    class Shrinking(Transform):
        def __call__(self, draws: object, *, points: Tensor) -> dict[str, Tensor]:
            points *= 0.5
            return {"points": points}

    raw = sightline.load_data(CLOUDS, "train", overrides=SOLIDS, transforms="none")[0]["points"]
    with registered(registry.transforms, shrinking=Shrinking):
        words = (*SOLIDS, "transforms.train=[{name: shrinking}]")
        data = sightline.load_data(CLOUDS, "train", overrides=words)
        assert all(torch.equal(data[0]["points"], raw * 0.5) for _ in range(3))  # of a copy of its own each time
        assert "data-mutation" not in findings(CLOUDS, *words, *NETWORK, skip_but("data-mutation"))


@row(
    "S1.9",
    "verify voxels and heat maps against the frame",
    "`sightline check CONFIG`, findings `misplaced-volume`, `misplaced-heatmap`",
)
def _misplaced(work: Path) -> None:
    assert "z, y, x" in find_fault("C8", "misplaced-volume")["summary"]
    assert "z, y, x" in find_fault("O43", "misplaced-heatmap")["summary"]


# --- validation, own parts --------------------------------------------------------------------------------------------


@row("S1.27", "validate by the error of the joints, not by the loss", "`sightline evaluate RUN`")
def _joint_error(work: Path) -> None:
    run = trained_run("pose")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["mean_error_mm"] for line in lines if line["split"] == "validation"]
    found = document_of("evaluate", run, *CPU)
    assert found["metrics"]["mean_error_mm"] == figures(run)["mean_error_mm"] > 1
    assert set(found["per_class"]) == set(document(run)["per_class"])


@row("S1.28", "validate by PCK and OKS", "`sightline evaluate RUN 'metrics=[{name: keypoints}]'`", letter="O")
def _key_points(work: Path) -> None:
    found = document_of("evaluate", trained_run("pose"), "metrics=[{name: keypoints}]", *CPU)["metrics"]
    assert all(0 <= found[name] <= 1 for name in ("pck", "oks", "oks_ap"))


@row(
    "S1.29",
    "try shortcut paths against vanishing gradients",
    "`sightline train CONFIG --plugin FILE.py log.gradients=true`",
)
def _shortcuts(work: Path) -> None:
    class Nothing(nn.Module):
        def forward(self, volume: Tensor) -> Tensor:
            return volume.new_zeros(1)

    class Straight(V2VSmall):
        def _build(self, num_joints: int) -> None:
            super()._build(num_joints)
            for block in self.modules():
                if hasattr(block, "shortcut"):
                    block.shortcut = Nothing()

    norms = {}
    with registered(registry.models, straight=Straight):
        for name in ("v2v_small", "straight"):
            words = (*FEW, f"model={{name: {name}}}", "log.gradients=true", "evaluate.select=test")
            run = learn("pose/synthetic_hands_v2v_small", work / name, *words, "train.precision=float32")
            norms[name] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["gradient/stem.0.conv"]
    assert norms["v2v_small"] > norms["straight"] > 0


def make_project(work: Path, name: str) -> Path:
    """Make a project of joints."""
    succeed("init", name, "--task", "pose", "--to", work)
    return work / name


@row(
    "S1.30",
    "start with a simpler problem: where the hand is",
    "`sightline train configs/pose/synthetic_hands_scale_net.yaml`",
)
def _scale_net(work: Path) -> None:
    run = learn("pose/synthetic_hands_scale_net", work / "run", *FEW[:3], "evaluate.select=test")
    assert all(value > 0 for value in figures(run).values())


@row("S1.31", "keep tests for own parts", "`sightline init NAME --task pose`, then `pytest`")
def _own_tests(work: Path) -> None:
    project = make_project(work, "shore")
    with Planter():  # which forgets the names of its parts
        plugin, tests = (_import_file(project / name) for name in ("shore.py", "test_shore_loss.py"))
    tests.test_the_loss_of_one_joint_by_hand(plugin)
    loss = next(
        value for name, value in vars(plugin).items() if name.endswith("Loss") and value.__module__ == plugin.__name__
    )
    right = loss.forward
    loss.forward = lambda *given, **named: -right(*given, **named)
    with pytest.raises(AssertionError):
        tests.test_the_loss_of_one_joint_by_hand(plugin)


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@part("S1.31", is_long=True)
def _all_own_tests(work: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    project = make_project(work, "shore")
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[45] passed", done.stdout)


@row("S1.32", "see the versions of the libraries behind a result", "`sightline report RUN`")
def _versions(work: Path) -> None:
    run = copy_run("pose", work)
    succeed("report", run, "--out", work / "page.html")
    page = (work / "page.html").read_text()
    versions = document(run, "environment.json")["versions"]
    assert versions["torch"] == torch.__version__
    assert all(version in page for version in versions.values() if version)
