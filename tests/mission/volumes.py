"""What notes on joints in volumes, V2V-PoseNet, ask for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
import sightline.verbs.view
from sightline.areas.pose.v2v import V2V, V2VSmall
from sightline.contract import registry
from sightline.draw.pictures import PALETTE
from sightline.view.stages import ViewedSample
from tests.command import document_of, succeed
from tests.data.depth import depth_trees
from tests.engine.published_weights import registered
from tests.mission.joints_by_hand import (
    MIDDLE_KNUCKLE,
    find_largest,
    join,
    list_voxels,
    measure_oks,
    measure_pck,
    predictions_of,
    shift_some,
    surface_before,
    to_cells,
    to_mm,
)
from tests.mission.networks_by_hand import v2v
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
ONCE = ("evaluate.every=100", "checkpoint.every=100")
"""An evaluation and a checkpoint at the end alone."""
CLOUDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


# --- data -------------------------------------------------------------------------------------------------------------

_SETS: dict[str, Callable[[Path], dict[str, depth_trees.Drawn]]] = {
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
    """The samples are the frames as they were drawn; so are the joints that errors are measured by."""
    small = ("train.batch_size=2", "data.reference={name: truth}", *_CUBES)
    for name, write in _SETS.items():
        folder = work / name
        drawn = write(folder / "source")
        kind = {"hands2017": name, "itop": name}.get(name, f"{name}_hands")
        succeed("data", "prepare", kind, "--from", folder / "source", "--to", folder / "set")
        held = () if name in ("icvl", "nyu") else ("data.validation_share=0",)
        size = () if name in ("msra", "itop") else ("model={name: v2v_small}",)  # hands and bodies by the recipe's own
        words = (f"data.root={folder / 'set'}", "evaluate.select=test", *held, *small, *size)
        frames: dict[str, Any] = {}
        for split in ("train", "test", *(("validation",) if name == "icvl" else ())):
            data = sightline.load_data(CONFIGS / f"pose/{name}_v2v.yaml", split, overrides=words, transforms="none")
            frames |= {data.sample_name(index): data[index] for index in range(len(data))}
        missing = drawn.keys() ^ frames.keys()
        assert not missing, f"{name}: {missing}"
        for frame, truth in drawn.items():
            assert np.array_equal(frames[frame]["depth"].numpy(), truth.depth.astype(np.float32)), f"{name}: {frame}"
            assert np.allclose(frames[frame]["joints"].numpy(), truth.joints, rtol=0, atol=0.01), f"{name}: {frame}"
        tested = sightline.load_data(CONFIGS / f"pose/{name}_v2v.yaml", "test", overrides=words, transforms="none")
        with predictions_of() as batches:
            found = figures(learn(f"pose/{name}_v2v", folder / "run", *words))
        seen = join(batches)
        names = [tested.sample_name(int(index)) for index in seen["sample_index"]]
        assert sorted(names) == sorted(tested.sample_name(index) for index in range(len(tested))), name
        off = np.linalg.norm(seen["joints_mm"] - np.stack([drawn[frame].joints for frame in names]), axis=-1)
        assert found["mean_error_mm"] == pytest.approx(off.mean(), abs=0.05), name
        assert set(names) <= {frame for frame in drawn if _is_tested(name, frame)}, name
        if name == "itop":
            assert found["detection_rate"] == (off < 100.0).mean()
        norms = [
            each for each in sightline.load_run(folder / "run").model.modules() if isinstance(each, nn.BatchNorm3d)
        ]
        assert all(bool((norm.weight != 1).any()) for norm in norms), f"{name}: layers that do not learn"
    _assert_v2v()


def _assert_v2v() -> None:
    """The network is that of the paper's figure, with weights and statistics drawn so that each layer counts."""
    model = V2V(num_joints=3).double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 5 else 0.2
            drawn = scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith(("var", "norm.weight")) else drawn)
    volume = (torch.rand(1, 1, 16, 8, 8, generator=generator) < 0.3).double()
    with torch.no_grad():
        seen, due = model(volume=volume)["likelihood"], v2v(model.state_dict(), volume)
    assert seen.shape == (1, 3, 8, 4, 4)
    assert torch.allclose(seen, due, rtol=1e-9, atol=1e-9 * float(due.abs().max()))


def _is_tested(name: str, frame: str) -> bool:
    """Tell if a frame is one of those that the release, or its protocol, tests on."""
    starts = {"icvl": "test_seq", "nyu": "test/", "hands2017": "test/", "itop": "03_", "msra": "P0/"}
    return frame.startswith(starts[name])


@row(
    "S1.2",
    "train without files, on hands and on bodies",
    "`sightline train configs/pose/synthetic_hands_v2v_small.yaml`, `.../synthetic_bodies_v2v_small.yaml`",
)
def _without_files(work: Path) -> None:
    _assert_figures("hands", bones=((5, 6, 44.0), (6, 7, 28.0), (7, 8, 22.0), (2, 3, 24.0)), radii=_HAND, near_mm=3.0)
    assert 0 < figures(trained_run("pose"))["mean_error_mm"] < 200
    assert len(document(trained_run("pose"))["per_class"]) == 21
    _assert_learns("hands", work)


_FINGERS = ((12.0, 9.0, 8.0, 7.5), (12.0, 9.5, 8.5, 8.0), (12.0, 9.0, 8.0, 7.5), (12.0, 8.0, 7.0, 6.5))
_HAND = (14.0, *(radius for finger in _FINGERS for radius in finger), 14.0, 11.0, 10.0, 9.0)
_BODY = (110.0, 60.0, 60.0, 60.0, 50.0, 50.0, 40.0, 40.0, 150.0, 75.0, 75.0, 75.0, 75.0, 55.0, 55.0)
"""Radii about the joints of the figures, in mm."""


@part("S1.2", "F")
def _bodies_without_files(work: Path) -> None:
    _assert_figures("bodies", bones=((9, 11, 420.5), (11, 13, 410.0), (2, 3, 360.0)), radii=_BODY, near_mm=15.0)
    run = _assert_learns("bodies", work)
    assert "head" in " ".join(document(run)["per_class"])


def _assert_figures(
    what: str, *, bones: tuple[tuple[int, int, float], ...], radii: tuple[float, ...], near_mm: float
) -> None:
    """Assert that joints lie a limb's radius behind what is measured of them, and that bones have their lengths."""
    config = CONFIGS / f"pose/synthetic_{what}_v2v_small.yaml"
    parts = {split: sightline.load_data(config, split, overrides=FEW, transforms="none") for split in ("train", "test")}
    frames = [parts[split][index] for split in parts for index in range(3)]
    assert torch.equal(parts["train"][1]["depth"], frames[1]["depth"])
    assert len({frame["joints"].numpy().tobytes() for frame in frames}) == len(frames)
    off = []
    for frame in frames:
        joints = frame["joints"].numpy()
        lengths = np.array([np.linalg.norm(joints[first] - joints[second]) for first, second, _ in bones])
        sizes = lengths / [at_rest for _, _, at_rest in bones]
        assert np.allclose(sizes, sizes[0], rtol=0.01), sizes
        assert 0.79 < sizes[0] < 1.21
        behind = surface_before(frame["depth"].numpy(), frame["camera"].numpy(), joints)
        off.append(behind - sizes[0] * np.array(radii) * joints[:, 2] / np.linalg.norm(joints, axis=1))
    known = np.concatenate(off)
    assert np.isfinite(known).mean() > 0.8
    assert abs(np.nanmedian(known)) < near_mm
    assert (np.abs(known) < near_mm).mean() > 0.5, "joints are not in the middle of their limbs"


def _assert_learns(what: str, work: Path) -> Path:
    """Assert that training brings the joints of its own frames nearer; return the trained run."""
    words = ("evaluate.select=test", "train.steps=40", "train.epochs=20", "optimizer.lr=0.01", *ONCE)
    run = learn(f"pose/synthetic_{what}_v2v_small", work / what, *FEW, *words, "train.precision=float32")
    data = sightline.load_data(run, "train", transforms="evaluate")
    batch = data[: len(data)]
    side_mm = float(data.facts["cube_mm"])
    cells = to_cells(batch["joints"].numpy(), batch["reference"].numpy()[:, None], side_mm=side_mm, cells=8)
    off = []
    for model in (sightline.build_model("v2v_small", num_joints=cells.shape[1]), sightline.load_run(run).model):
        with torch.no_grad():
            maps = model.train()(volume=batch["volume"])["likelihood"].double().numpy()
        off.append(np.abs(np.stack([find_largest(each) for each in maps]) - cells).mean())
    assert off[1] < 0.5 * off[0], off
    return run


@row(
    "S1.3", "exchange x, y, z for the authors' order of axes", "`transforms: {train: [{name: place_cube, axes: zyx}]}`"
)
def _axes(work: Path) -> None:
    order = "transforms.train.0.axes=zyx"
    steps = [step("pose/synthetic_hands_v2v_small", work, *words) for words in ((), (order,))]
    plain, turned = (small.micro_batches[0] for small in steps)
    for name in ("volume", "heatmaps"):
        assert torch.equal(turned[name], plain[name].transpose(-1, -3)), name
        assert not torch.equal(turned[name], plain[name])
    joints, middles = plain["joints"].numpy(), plain["reference"].numpy()
    cells = np.floor(to_cells(joints, middles[:, None], side_mm=200.0, cells=16)) + 0.5
    is_within = ((cells > 1) & (cells < 15)).all(axis=-1)  # where the top of a map has two neighbours
    assert is_within.mean() > 0.5
    for small, batch in zip(steps, (plain, turned), strict=True):
        assert torch.equal(batch["joints"], plain["joints"])
        decoded = small.job.task.postprocess({"likelihood": batch["heatmaps"]}, batch)["joints_mm"]
        off = np.abs(decoded.numpy() - joints)[is_within].max()
        assert off < 0.5, "joints are x, y, z in mm, whatever the order"
    largest = np.stack([find_largest(maps) for maps in turned["heatmaps"].numpy()])
    assert np.array_equal(largest[..., ::-1], cells)


@row(
    "S1.4",
    "look at voxels, heat maps and joints at every stage and epoch",
    "`sightline view CONFIG --epoch 1 --all --out DIR`",
)
def _stages(work: Path) -> None:
    augmented = "transforms.train.0={name: place_cube, size: 16, max_shift: 2.0}"
    subjects, write_views = list[ViewedSample](), sightline.verbs.view.write_views

    def written(folder: Any, views: Any, **named: Any) -> list[str]:
        subjects.extend(views)
        return write_views(folder, views, **named)

    with mock.patch.object(sightline.verbs.view, "write_views", written):
        for epoch in (0, 1):
            options = ("--num", 1, "--epoch", epoch, "--all", "--out", work / str(epoch))
            text = said("view", HANDS, *FEW[:3], *_CUBES[1:], augmented, *options)
            for stage in ("train 1: place_cube", "train 2: voxelize", "train 3: draw_heatmaps"):
                assert stage in text
            assert "21 of 21 joints are in the cube" in text
    (first,), (second,) = ([p.read_bytes() for p in (work / str(epoch)).glob("*.png")] for epoch in (0, 1))
    is_same = first == second
    assert not is_same, "both epochs have the same picture"
    for epoch, subject in enumerate(subjects):
        _assert_shown(subject, sightline.load_data(HANDS, "train", overrides=(*FEW[:3], *_CUBES[1:], augmented)), epoch)
    picture = np.asarray(Image.open(next((work / "1").glob("*.png"))).convert("RGB")).reshape(-1, 3)
    for colour in (TRUE, READ):
        assert (picture == colour).all(axis=1).sum() > 300, "the skeleton is not in the picture"


TRUE, READ = (30, 122, 74), (214, 69, 65)
"""Colours of labelled joints, and of those that are read from heat maps."""


def _assert_shown(subject: ViewedSample, data: Any, epoch: int) -> None:
    """Assert that voxels, maps and joints of a sample lie in its pictures where the sample has them."""
    data.epoch = epoch
    sample = data[0]
    stages = {stage.stage: stage for stage in subject.stages}
    for name in ("raw", "train 1: place_cube", "train 2: voxelize", "train 3: draw_heatmaps"):
        assert name in stages
        for panel in stages[name].panels:
            assert (panel.pixels.reshape(-1, 3) == TRUE).all(axis=1).sum() > 50, f"{name}, {panel.name}: no joints"
    fx, fy, u0, v0 = sample["camera"].tolist()
    image = stages["raw"].panels[0].pixels
    x, y, z = sample["joints"].double().numpy().T
    columns, rows = ((u0 + fx * x / z + 0.5).astype(int), (v0 + fy * y / z + 0.5).astype(int))
    shades = {tuple(colour) for colour in PALETTE.tolist()}
    discs = [tuple(image[r, c].tolist()) for r, c in zip(rows, columns, strict=True)]
    assert np.mean([disc in shades for disc in discs]) > 0.9, "no joints are drawn"
    own = [disc == tuple(PALETTE[joint % len(PALETTE)].tolist()) for joint, disc in enumerate(discs)]
    assert np.mean(own) > 0.6, "joints are drawn in each other's place"  # some lie below others
    near = [
        (image[r - 5 : r + 6, c - 5 : c + 6] == TRUE).all(axis=-1).any() for r, c in zip(rows, columns, strict=True)
    ]
    assert np.mean(near) > 0.8, "joints are not where the bones are"  # some lie below others
    assert (image[sample["depth"].numpy() > 0] != image[0, 0]).any(axis=-1).all(), "the hand is not in the picture"
    shown = np.floor(stages["train 2: voxelize"].points).astype(int)
    assert {tuple(voxel) for voxel in shown.tolist()} == {
        tuple(voxel) for voxel in sample["volume"][0].nonzero().tolist()
    }
    front = stages["train 2: voxelize"].panels[0].pixels
    occupied = sample["volume"][0].amax(dim=2).numpy().T[::-1]  # rows are y, upwards
    scale = len(front) // 16
    corners = front[::scale, ::scale][:16, :16]
    dark = (corners < 252).any(axis=-1)
    assert (dark | (occupied == 0)).all(), "a voxel is not in the picture"
    assert (dark != (occupied > 0)).mean() < 0.35  # joints are drawn over some
    maps = stages["train 3: draw_heatmaps"]
    cells = {tuple(cell) for cell in np.floor(maps.points / 2).astype(int).tolist()}
    assert cells == {tuple(cell) for cell in (sample["heatmaps"].amax(dim=0) > 0.5).nonzero().tolist()}
    front = maps.panels[0].pixels
    highest = sample["heatmaps"].amax(dim=(0, 3)).numpy().T[::-1]
    corners = front[:: len(front) // 8, :: len(front) // 8][:8, :8]
    assert (corners.min(axis=-1)[highest > 0.5] < 230).all(), "a map is not in the picture"
    assert (front.reshape(-1, 3) == READ).all(axis=1).sum() > 50, "no joints that are read from maps"


@row("S1.5", "catch augmentation that changes the stored samples", "`sightline check CONFIG`, finding `data-mutation`")
def _mutation(work: Path) -> None:
    found = find_fault("D3", "data-mutation")
    assert found["severity"] == "error"
    assert "the data set edits what is stored" in found["summary"]
    assert found["evidence"] == {"field": "points"}


@row(
    "S1.6",
    "rely on transforms that leave the stored samples unchanged, and know why",
    "`sightline check CONFIG --plugin FILE.py` of a transform that edits its input",
)
def _unchanged(work: Path) -> None:
    (work / "shrinking.py").write_text(_SHRINKING)
    words = (*SOLIDS, "transforms.train=[{name: shrinking}]")
    raw = sightline.load_data(CLOUDS, "train", overrides=SOLIDS, transforms="none")[0]["points"]
    with Planter():  # which forgets the names of its parts
        data = sightline.load_data(CLOUDS, "train", overrides=words, plugins=[work / "shrinking.py"])
        assert all(torch.equal(data[0]["points"], raw * 0.5) for _ in range(3))  # of a copy of its own each time
        assert torch.equal(data[:2]["points"][0], raw * 0.5)
        plugin = ("--plugin", work / "shrinking.py")
        assert "data-mutation" not in findings(CLOUDS, *words, *NETWORK, skip_but("data-mutation"), *plugin)


_SHRINKING = """
import sightline


@sightline.register.transform("shrinking")
class Shrinking(sightline.Transform):
    def __call__(self, draws, *, points):
        points *= 0.5
        return {"points": points}
"""


@row(
    "S1.9",
    "verify voxels and heat maps against the frame",
    "`sightline check CONFIG`, findings `misplaced-volume`, `misplaced-heatmap`",
)
def _misplaced(work: Path) -> None:
    assert "z, y, x" in find_fault("C8", "misplaced-volume")["summary"]
    assert "z, y, x" in find_fault("O43", "misplaced-heatmap")["summary"]
    sample = sightline.load_data(HANDS, "test", overrides=FEW)[0]
    frame = {name: sample[name].double().numpy() for name in ("depth", "camera", "reference")}
    places = list_voxels(frame["depth"], frame["camera"], frame["reference"], side_mm=200.0, cells=16)
    found = {tuple(voxel) for voxel in sample["volume"][0].nonzero().tolist()}
    assert len(found ^ places) <= 0.01 * len(places), "the voxels are not those of the frame"
    cells = to_cells(sample["joints"].double().numpy(), frame["reference"], side_mm=200.0, cells=8)
    assert np.abs(find_largest(sample["heatmaps"].numpy()) - cells).max() <= 0.501


# --- validation, own parts --------------------------------------------------------------------------------------------


@row("S1.27", "validate by the error of the joints, not by the loss", "`sightline evaluate RUN`")
def _joint_error(work: Path) -> None:
    run = trained_run("pose")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["mean_error_mm"] for line in lines if line["split"] == "validation"]
    with predictions_of() as batches:
        found = document_of("evaluate", run, *CPU)
    seen = join(batches)
    off = np.linalg.norm(seen["joints_mm"] - seen["joints"], axis=-1)
    expected = {"mean_error_mm": off.mean(), "max_error_mm": off.max(), "median_error_mm": np.sort(off, axis=None)[52]}
    for name, value in expected.items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-6), name
    assert found["metrics"]["frames_within"] == (off.max(axis=1) <= 20.0).mean()
    assert found["metrics"]["mean_error_mm"] == figures(run)["mean_error_mm"] > 1
    assert set(found["per_class"]) == set(document(run)["per_class"])
    by_joint = [joint["error_mm"] for joint in found["per_class"].values()]
    assert by_joint == pytest.approx(off.mean(axis=0).tolist(), rel=1e-6)
    middles = np.stack([find_largest(maps) for maps in seen["maps"]])
    largest = to_mm(middles, seen["reference"][:, None], side_mm=200.0, cells=8)
    assert np.abs(seen["joints_mm"] - largest).max() <= 12.5 * 1.001, "joints are not where the maps are highest"
    _assert_chosen_by_error(work)


def _assert_chosen_by_error(work: Path) -> None:
    """Assert that the best of three evaluations is that of the smallest error, the first: later ones are far off."""

    class Worsening(V2VSmall):
        evaluations: ClassVar[list[int]] = []

        def likelihood(self, volume: Tensor) -> Tensor:
            maps = super().likelihood(volume)
            if self.training:
                return maps
            self.evaluations.append(1)
            peaks, place = torch.zeros_like(maps), 4 if len(self.evaluations) == 1 else 0
            peaks[:, :, place, place, place] = 1.0
            return peaks

    with registered(registry.models, worsening=Worsening):
        words = (*FEW, "model={name: worsening}", "train.steps=6", "train.epochs=3", "evaluate.every=1")
        run = learn("pose/synthetic_hands_v2v_small", work / "run", *words, "evaluate.select=test")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = {line["step"]: line["mean_error_mm"] for line in lines if "mean_error_mm" in line}
    assert len(errors) > 1
    best = min(errors, key=lambda step: errors[step])
    assert best != max(errors)
    assert (run / "checkpoints/best").resolve().name == f"step_{best:08d}"


@row("S1.28", "validate by PCK and OKS", "`sightline evaluate RUN 'metrics=[{name: keypoints}]'`", letter="O")
def _key_points(work: Path) -> None:
    """Of predictions that are off by up to half a cell along each axis, and of some that are moved by a whole one."""
    run, words = trained_run("pose"), "metrics=[{name: keypoints}]"
    with predictions_of(shift_some) as batches:
        found = document_of("evaluate", run, words, *CPU)
    seen, names = join(batches), ("pck", "oks", "oks_ap")
    assert found["metrics"].keys() >= {*names}
    middles = np.stack([find_largest(maps) for maps in seen["maps"]])
    joints_mm = to_mm(middles, seen["reference"][:, None], side_mm=200.0, cells=8)
    off = np.linalg.norm(joints_mm - seen["joints"], axis=-1)
    similarity = measure_oks(off, seen["joints"])
    levels = np.arange(10, 20) / 20
    expected = (measure_pck(off, seen["joints"], share=0.2), similarity.mean(), (similarity[:, None] >= levels).mean())
    assert 0.3 < expected[0] < 0.9
    assert [found["metrics"][name] for name in names] == pytest.approx(expected, abs=1e-6)
    with predictions_of(lambda likelihood, batch: batch["heatmaps"].to(likelihood.dtype)):
        exact = document_of("evaluate", run, words, *CPU)["metrics"]
    assert [exact[name] for name in names] == pytest.approx([1.0, 1.0, 1.0], abs=0.1)


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
    assert norms["v2v_small"] > 1.01 * norms["straight"] > 0


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
    """After some steps the points that it finds are nearer than those that it is given, as NumPy measures both."""
    words = (*FEW[:3], "evaluate.select=test", "train.steps=30", "train.epochs=15", *ONCE)
    run = learn("pose/synthetic_hands_scale_net", work / "run", *words, "model.dropout=0", "schedule.name=constant")
    found = figures(run)
    tested = sightline.load_data(run, "test", transforms="none")[:3]
    middle, given = (tested[name].double().numpy() for name in ("joints", "reference"))
    middle = middle[:, MIDDLE_KNUCKLE]
    assert found["reference_error_mm"] == pytest.approx(np.linalg.norm(given - middle, axis=1).mean(), rel=1e-5)
    model, data = sightline.load_run(run).model.eval(), sightline.load_data(run, "test")
    with torch.no_grad():
        offset = model(crop=data[:3]["crop"])["offset"].double().numpy()
    refined = np.linalg.norm(given + 100.0 * offset - middle, axis=1)  # offsets are in halves of 200 mm
    assert found["centre_error_mm"] == pytest.approx(refined.mean(), rel=1e-3)
    learnt = sightline.load_data(run, "train", transforms="evaluate")
    batch = learnt[: len(learnt)]
    with torch.no_grad():
        offset = model(crop=batch["crop"])["offset"].double()
    middle, given = batch["joints"][:, MIDDLE_KNUCKLE].double(), batch["reference"].double()
    off = float((given + 100.0 * offset - middle).norm(dim=1).mean())
    assert off < 0.7 * float((given - middle).norm(dim=1).mean()), "nothing is learnt"


@row("S1.31", "keep tests for own parts", "`sightline init NAME --task pose`, then `pytest`")
def _own_tests(work: Path) -> None:
    project = make_project(work, "shore")
    names = {"README.md", "conftest.py", "shore.py", "shore.yaml", "test_shore.py", "test_shore_loss.py"}
    assert {path.name for path in project.iterdir()} == names
    assert all("my_project" not in (project / name).read_text() for name in names)
    with Planter():  # which forgets the names of its parts
        plugin, tests = (_import_file(project / name) for name in ("shore.py", "test_shore_loss.py"))
    tests.test_the_loss_of_one_joint_by_hand(plugin)
    tests.test_a_ball_is_as_near_as_its_front(plugin)
    with Planter():
        _import_file(project / "test_shore.py").test_samples_are_what_they_declare_and_the_same_every_time()
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
    """The versions of then: those of a run that was made with others."""
    run = copy_run("pose", work)
    environment = document(run, "environment.json")
    versions = environment["versions"]
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
    assert versions["python"] == platform.python_version()
    assert versions["sightline"] == importlib.metadata.version("sightline")
    then = {name: f"0.{number}.77" for number, name in enumerate(versions)}
    (run / "environment.json").write_text(json.dumps({**environment, "versions": then}))
    succeed("report", run, "--out", work / "page.html")
    page = (work / "page.html").read_text()
    assert [name for name, version in then.items() if f"{name} {version}" not in page] == []
    assert f"torch {torch.__version__}" not in page
