"""B4.11 to B4.15: augmentation, mixed scenes, views and settings of the published networks on sparse voxels."""

from __future__ import annotations

import cmath
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.parts.transforms.point_selection import DropPoints
from sightline.parts.transforms.points import ClipPoints, Rotate
from tests.mission.rows import row
from tests.mission.trial import Edit
from tests.processes import ROOT

_CONFIGS = ROOT / "configs" / "segment"
_SIDE = 0.25
_SMALL = {
    "base": str(_CONFIGS / "synthetic_rooms_spunet.yaml"),
    "data": {"name": "synthetic_rooms", "train_size": 8, "test_size": 2, "points_per_m2": 10},
    "model": {
        "name": "spunet",
        "grid_m": _SIDE,
        "stem_width": 4,
        **{f"{half}coder_{key}": value for half in ("en", "de") for key, value in (("widths", [4]), ("blocks", [1]))},
    },
    "train": {"batch_size": 4, "epochs": 1},
    "evaluate": {"select": "test"},
    "loader": {"workers": 0},
}


def _build(work: Path, **sections: Any) -> TrainingSetup:
    path = work / "small.yaml"
    path.write_text(yaml.safe_dump(_SMALL | sections))
    return build(read_config(path, ()), World())


@row(
    "B4.11",
    "augment as the published networks on voxels do: tilts about the middle, lost points, a clipped range",
    "`{name: rotate, axis: x, about: middle}`, `{name: drop_points, ratio: 0.2, fill: none}`, `{name: clip_points}`",
)
def _augmentation(work: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 200, 3, generator=generator, dtype=torch.float64) * 4 + 7
    label = torch.arange(200)[None]
    tilted = Rotate(up_axis="z", axis="x", max_angle_rad=math.pi / 64, about="middle")(
        Draws.from_seed(0), points=points
    )
    middle = (points[0].amin(dim=0) + points[0].amax(dim=0)) / 2
    before, after = points[0] - middle, tilted["points"][0] - middle
    pairs = [(complex(*b), complex(*a)) for b, a in zip(before[:, 1:].tolist(), after[:, 1:].tolist(), strict=True)]
    farthest = max(pairs, key=lambda pair: abs(pair[0]))
    angle = cmath.phase(farthest[1] / farthest[0])
    assert 0 < abs(angle) <= math.pi / 64
    assert max(abs(one * cmath.rect(1, angle) - two) for one, two in pairs) < 1e-6  # of a matrix in float32
    assert (before[:, 0] - after[:, 0]).abs().max() < 1e-12
    kept = DropPoints(ratio=0.2, fill="none")(Draws.from_seed(0), points=points, label=label)
    assert len(set(kept["label"][0].tolist())) == 160
    assert torch.equal(kept["points"][0], points[0, kept["label"][0]])
    clipped = ClipPoints(extent_m=(8.0, 8.0, 8.0, 9.0, 9.0, 9.0))(Draws.from_seed(0), points=points)["points"]
    expected = [[min(max(value, 8.0), 9.0) for value in point] for point in points[0].tolist()]
    assert clipped[0].tolist() == expected


@row(
    "B4.12",
    "train on two scenes in one place (Mix3D), with the same step in one batch and in micro-batches",
    "`{name: mix_scenes, probability: 0.8}`",
)
def _mixed(work: Path) -> None:
    place = {"name": "place_on_floor", "plan": "centre"}
    mixed, divided = (_read_step(work, [place, {"name": "mix_scenes"}], number) for number in (1, 4))
    alone = _read_step(work, [place], 1)
    assert mixed.keys() == divided.keys() == alone.keys()
    num_mixed = 0
    for index, scene in mixed.items():
        own = alone[index]
        assert all(torch.equal(scene[name], divided[index][name]) for name in scene)
        assert all(torch.equal(scene[name][: len(own["points"])], own[name]) for name in scene)
        added = {name: values[len(own["points"]) :] for name, values in scene.items()}
        if len(added["points"]):
            num_mixed += 1
            assert not any(torch.equal(added["points"], other["points"]) for other in [own])
            assert (added["points"].amin(dim=0) + added["points"].amax(dim=0))[:2].abs().max() < 1e-4
    assert num_mixed >= 2


def _read_step(work: Path, transforms: list[dict[str, Any]], micro_batches: int) -> dict[int, dict[str, Tensor]]:
    """The scenes of the first step by the number of the sample."""
    train = {**_SMALL["train"], "micro_batches": micro_batches}  # type: ignore[dict-item]
    built = _build(work, transforms={"train": transforms, "evaluate": []}, train=train)
    scenes = {}
    for (keys,) in built.job.stream.plan.step_keys(0):
        batch = built.job.stream.reader(keys)
        for index, first, last in zip(batch["sample_index"].tolist(), *_bounds(batch["offsets"]), strict=True):
            scenes[index] = {name: batch[name][first:last] for name in ("points", "label", "colours")}
    return scenes


def _bounds(offsets: Tensor) -> tuple[list[int], list[int]]:
    return offsets[:-1].tolist(), offsets[1:].tolist()


@row(
    "B4.13",
    "test by several views of a scene, each by fragments of a grid, as the published figures are tested",
    "`sightline evaluate RUN evaluate.votes=13 task.fragments_m=0.02`",
)
def _views(work: Path) -> None:
    built = _build(
        work,
        task={"name": "segment", "fragments_m": _SIDE},
        transforms={"train": [], "evaluate": [], "vote": [{"name": "views", "views": "turns"}]},
        evaluate={"select": "test", "votes": 4, "batch_size": 1},
    )
    found: list[tuple[dict[str, Any], Tensor]] = []
    model = built.job.model
    built.test_evaluator(model, World(), on_batch=lambda batch, said: found.append((batch, said["probabilities"])))
    model.eval()
    assert len(found) == 2
    for batch, probabilities in found:
        total = np.zeros(probabilities.shape)
        for quarter in range(4):
            points = batch["points"].numpy().copy()
            for _ in range(quarter):
                points = np.stack([-points[:, 1], points[:, 0], points[:, 2]], axis=1)
            total += _predict_fragments(model, points, batch["features"])
        assert np.abs(probabilities.numpy() - total / 4).max() < 1e-5


def _predict_fragments(model: torch.nn.Module, points: np.ndarray, features: Tensor) -> np.ndarray:
    """The mean probabilities of every point: fragment i has member i of each cube, or i modulo its members."""
    cubes: dict[tuple[int, ...], list[int]] = {}
    for number, point in enumerate(points):
        cubes.setdefault(tuple(np.floor(point / np.float32(_SIDE)).astype(int).tolist()), []).append(number)
    total, times = 0.0, np.zeros(len(points))
    for fragment in range(max(map(len, cubes.values()))):
        rows = [members[fragment % len(members)] for members in cubes.values()]
        with torch.no_grad():
            logits = model(points=torch.from_numpy(points[rows])[None], features=features[rows][None])["logits"][0]
        said = np.zeros((len(points), logits.shape[1]))
        said[rows] = logits.double().softmax(dim=1).numpy()
        total, times[rows] = total + said, times[rows] + 1
    return total / times[:, None]  # type: ignore[operator, no-any-return]


@row(
    "B4.14",
    "start from the published settings of networks on voxels: five data sets, SpUNet and MinkUNet",
    "`sightline train configs/segment/scannet_spunet.yaml`",
)
def _settings(work: Path) -> None:
    rates = {"scannet_spunet": (0.05, 0.05, 1e5), "scannet200_spunet": (0.05, 0.05, 1e5)}
    rates |= {"nuscenes_lidarseg_spunet": (0.002, 0.04, 1e3), "semantic_kitti_spunet": (0.002, 0.04, 1e3)}
    for name, (rate, share, fall) in rates.items():
        config = read_config(_CONFIGS / f"{name}.yaml", ())
        schedule = registry.schedules.build(config.schedule, facts={"num_steps": 1001, "steps_per_epoch": 10})
        assert config.optimizer.arguments["lr"] == rate
        factors = [schedule(step) for step in range(1001)]
        assert abs(factors[0] - 0.1) < 1e-12
        assert abs(factors[-1] - 1 / fall) < 1e-12
        assert factors.index(max(factors)) == round(1000 * share)
        momenta = [schedule.momentum(step) for step in range(1001)]
        assert abs(momenta[0] - 0.95) < 1e-12
        assert momenta.index(min(momenta)) == round(1000 * share)
        assert abs(min(momenta) - 0.85) < 1e-12
    half = {
        name: registry.schedules.build(
            read_config(_CONFIGS / f"{name}.yaml", ()).schedule, facts={"num_steps": 1000, "steps_per_epoch": 10}
        )(500)
        for name in ("s3dis_spunet", "semantic_kitti_minkunet")
    }
    assert abs(half["s3dis_spunet"] - 0.5**0.9) < 1e-12
    assert abs(half["semantic_kitti_minkunet"] - 0.5) < 1e-12


@row(
    "B4.15",
    "tell figures of two protocols apart: points as their voxels, by fragments, by fragments and views",
    "`sightline evaluate RUN`",
)
def _protocols(work: Path) -> None:
    vote = [{"name": "views", "views": "turns"}]
    for fragments_m, votes, protocol in (
        (None, 1, "voxel"),
        (_SIDE, 1, "fragments"),
        (_SIDE, 2, "fragments + views"),
        (None, 2, "voxel + views"),
    ):
        built = _build(
            work,
            task={"name": "segment", "fragments_m": fragments_m},
            transforms={"train": [], "evaluate": [], "vote": vote},
            evaluate={"select": "test", "votes": votes},
        )
        evaluation = built.test_evaluator(built.job.model, World())
        assert evaluation.describe("miou")["protocol"] == protocol
        plain = dataclasses.replace(evaluation, protocol="")
        assert "protocol" not in plain.describe("miou")


MUTANTS = {
    "B4.11": Edit("parts/transforms/points.py", '"points": turned["points"] + middle', '"points": turned["points"]'),
    "B4.12": Edit(
        "parts/transforms/mixed_scenes.py", "torch.cat([own, other[name]], dim=1)", "torch.cat([own, own], dim=1)"
    ),
    "B4.13": Edit("engine/evaluate.py", "for vote in range(1, self.votes):", "for vote in range(2, self.votes):"),
    "B4.14": Edit(
        "engine/schedules.py",
        "return self._along(step, outer, inner, outer)",
        "return self._along(step, inner, outer, inner)",
    ),
    "B4.15": Edit("parts/tasks/windows.py", 'protocol = "fragments"', 'protocol = "windows"'),
}
