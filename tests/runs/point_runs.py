"""Small runs that class points, on sets of equal and of ragged clouds, made by a plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import sightline
from sightline.contract import registry
from sightline.contract.plugins import load_plugins
from sightline.contract.types import SampleKey
from sightline.parts.tasks.segment import Segment
from tests.command import run_here
from tests.data.clouds.cloud_writers import write_ply

PLUGIN = '''
"""Networks that see a point, its cloud's mean and, where there is one, its category; rooms; a transform that thins."""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

import sightline
from sightline.layers.cloud_layouts import as_packed
from sightline.contract.types import CloudInputSpec, DataInfo, Field, Sample, SampleKey


class Output(TypedDict):
    logits: Tensor


class PerPoint(sightline.Model):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_channels, 16), nn.ReLU(), nn.Linear(16, num_classes))

    def logits(self, rows: Tensor, offsets: Tensor, form: Tensor) -> Output:
        if int(offsets.diff().min()) < 4:
            raise ValueError("clouds of fewer than 4 points")
        means = torch.stack([part.amax(dim=0) for part in rows[:, :3].tensor_split(offsets[1:-1].cpu())])
        around = means.repeat_interleave(offsets.diff(), dim=0)
        return {"logits": self.net(torch.cat([rows, around], dim=1)).view(*form.shape[:-1], -1)}


@sightline.register.model("parts_toy")
class PartsToy(PerPoint):
    def __init__(self, *, num_classes: int, in_channels: int, num_categories: int) -> None:
        super().__init__(in_channels + 3 + num_categories, num_classes)
        self.num_categories = num_categories

    def forward(self, *, points: Tensor, category: Tensor, offsets: Tensor | None = None) -> Output:
        rows, _, bounds = as_packed(points, None, offsets)
        named = nn.functional.one_hot(category, self.num_categories).to(rows.dtype)
        rows = torch.cat([rows, named.repeat_interleave(bounds.diff(), dim=0)], dim=1)
        return self.logits(rows, bounds, points)


@sightline.register.model("rooms_toy")
class RoomsToy(PerPoint):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels + 3, num_classes)

    def forward(self, *, points: Tensor, offsets: Tensor, features: Tensor) -> Output:
        rows, features, bounds = as_packed(points, features, offsets)
        return self.logits(torch.cat([rows, features], dim=1), bounds, points)


@sightline.register.data("toy_rooms")
class ToyRooms(sightline.Dataset):
    """Rooms of ragged size with colours, ten metres from the origin; a point's class is its height."""

    def __init__(self, *, split: str) -> None:
        self.split = split
        ragged = {"collate": "concatenate"}
        fields = {
            "points": sightline.Field("points 3", "float32", "m", "", -50.0, 50.0, **ragged),
            "colours": sightline.Field("points 3", "float32", "", "", 0.0, 1.0, **ragged),
            "label": sightline.Field("points", "int64", low=0, high=2, **ragged),
        }
        facts = {"num_classes": 3, "class_names": ("floor", "wall", "ceiling"), "in_channels": 6, "up_axis": "z"}
        facts["ignore_index"] = 255
        sizes = {"train": 12, "test": 7}
        self.info = sightline.DataInfo(facts, fields, sizes, features=("colours",), clouds=CloudInputSpec())

    def __len__(self) -> int:
        return self.info.split_sizes[self.split]

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        random = np.random.default_rng([key.index, self.split == "test"])
        points = random.uniform(-2, 2, size=(random.integers(300, 600), 3)).astype(np.float32) + np.float32(10)
        label = np.digitize(points[:, 2], (9.2, 10.8))
        colours = np.clip(label[:, None] / 3 + random.uniform(0, 0.4, size=points.shape), 0, 1).astype(np.float32)
        return {name: torch.from_numpy(v) for name, v in (("points", points), ("colours", colours), ("label", label))}


WHOLE = {"collate": "concatenate", "offsets": "whole_offsets"}


@sightline.register.transform("thin")
class Thin(sightline.Transform):
    """Every other point, backwards; with `keep` the row of the nearest that stays stands for each point."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        field = sightline.Field("whole", "int64", **WHOLE)
        self.adds = {"nearest": field, "whole_label": field} if keep else {}

    def __call__(self, draws, *, points: Tensor, colours: Tensor, label: Tensor) -> dict[str, Tensor]:
        rows = torch.arange(points.shape[1] - 1, -1, -2)
        thinned = {"points": points[:, rows], "colours": colours[:, rows], "label": label[:, rows]}
        if not self.keep:
            return thinned
        nearest = torch.cdist(points.double(), thinned["points"].double()).argmin(dim=2)
        return {**thinned, "nearest": nearest, "whole_label": label}
'''
CONFIG = """
task: {name: segment}
losses: [{name: cross_entropy}]
optimizer: {name: adam, lr: 3e-2}
train: {epochs: 2, batch_size: 4}
log: {tensorboard: false}
"""
PARTS = f"""
data: {{name: synthetic_shapes, target: parts, train_size: 40, test_size: 18, num_points: 48}}
model: {{name: parts_toy}}
metrics: [{{name: part_iou}}]
evaluate: {{metric: instance_miou, batch_size: 5, select: test}}
{CONFIG}"""
ROOMS = f"""
data: {{name: toy_rooms}}
model: {{name: rooms_toy}}
metrics: [{{name: iou}}]
evaluate: {{metric: miou, batch_size: 3, select: test}}
{CONFIG}"""


class Run:
    """A trained run and its plugin, on the command line and in Python."""

    def __init__(self, folder: Path, name: str, config: str, *overrides: str) -> None:
        self.path, self.plugin = folder / name, folder / "plugin.py"
        self.plugin.write_text(PLUGIN)
        (folder / f"{name}.yaml").write_text(config)
        self("train", folder / f"{name}.yaml", *overrides, "--no-check", "--out", self.path)

    def __call__(self, verb: str, *words: object, expect: int = 0) -> str:
        """What a verb says on both streams."""
        done = run_here(verb, *words, "--plugin", self.plugin, "--device", "cpu")
        assert done.code == expect, done.err
        return done.out + done.err

    def predict(self, *words: object, expect: int = 0) -> dict[str, Any]:
        out = self.path.parent / "predicted.json"
        self("predict", self.path, *words, "--json", out, expect=expect)
        return json.loads(out.read_text())

    def load(self) -> sightline.LoadedRun:
        return sightline.load_run(self.path, plugins=[self.plugin])


def rooms_of(run: Run) -> list[dict[str, np.ndarray]]:
    """The test part of the plugin's rooms."""
    load_plugins([run.plugin])
    held = registry.data.get_entry("toy_rooms").builder(split="test")
    return [{name: v.numpy() for name, v in held[SampleKey(index, 0, 0)].items()} for index in range(len(held))]


def columns_of(room: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a room's file."""
    names = ("x", "y", "z", "red", "green", "blue")
    return dict(zip(names, np.hstack([room["points"], room["colours"]]).T, strict=True))


def write(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Columns in a file that holds every bit of float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.stack(list(columns.values()), axis=1)
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".txt":
        np.savetxt(path, table, fmt="%.9g", header="", comments="")
    else:
        write_ply(path, columns)


class Scored(NamedTuple):
    """What an evaluation scored: by sample the probabilities (N, C) and the labels (N,), and the confusion of all."""

    probabilities: list[np.ndarray]
    labels: list[np.ndarray]
    confusion: np.ndarray


def scored_by(run: Run, monkeypatch: pytest.MonkeyPatch) -> Scored:
    """Evaluate a run: probabilities as its metrics get them, labels as it keeps them, counts as it tells them."""
    found: dict[int, np.ndarray] = {}
    assess = Segment.losses_and_predictions

    def recording(self: Segment, model: Any, batch: Any, around: Any) -> Any:
        sums, predictions = assess(self, model, batch, around)
        bounds = predictions["cloud_offsets"].tolist()
        rows = predictions["probabilities"].double().numpy()
        for place, index in enumerate(batch["sample_index"].tolist()):
            found[index] = rows[bounds[place] : bounds[place + 1]]
        return sums, predictions

    out, kept = run.path.parent / "evaluated.json", run.path.parent / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "losses_and_predictions", recording)
        run("evaluate", run.path, "--json", out, "--save-predictions", "--out", kept)
    counts = json.loads(out.read_text())["confusion"]["counts"]
    samples = json.loads((kept / "manifest.json").read_text())["samples"]
    assert [sample["index"] for sample in samples] == sorted(found)
    labels = [np.load(kept / sample["file"]) for sample in samples]
    return Scored([found[index] for index in sorted(found)], labels, np.array(counts))
