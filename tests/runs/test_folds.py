"""Runs that test the parts of a set in turn: pooled from summed counts, and refused where they do not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import run_here, succeed
from tests.trained import trained_run

PLUGIN = '''
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

import sightline
from sightline.contract.types import Folds

AREAS = ("north", "south", "west")


@sightline.register.data("areas")
class Areas(sightline.Dataset):
    """Rooms of ragged size in three areas, one of them tested; a point's class is the octant half that it lies in."""

    def __init__(self, *, split: str, test_area: str = "north", areas: tuple[str, ...] = AREAS) -> None:
        tested = {"train": [a for a in areas if a != test_area], "test": [test_area]}
        self.rooms = [(areas.index(area), room) for area in tested[split] for room in range(3)]
        point = {"collate": "concatenate"}
        label = sightline.Field("points", "int64", low=0, high=2, **point)
        fields = {"points": sightline.Field("points 3", "float32", **point), "label": label}
        facts = {"num_classes": 3, "class_names": ("low", "middle", "high"), "in_channels": 3}
        sizes = {name: 3 * len(held) for name, held in tested.items()}
        self.info = sightline.DataInfo(facts, fields, sizes, folds=Folds(tuple(areas), (test_area,)))

    def __len__(self) -> int:
        return len(self.rooms)

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        random = np.random.default_rng(self.rooms[key.index])
        points = random.uniform(-1, 1, size=(random.integers(30, 90), 3)).astype(np.float32)
        return {"points": torch.from_numpy(points), "label": torch.from_numpy(np.digitize(points[:, 2], (-0.3, 0.3)))}


class Output(TypedDict):
    logits: Tensor


@sightline.register.model("per_point")
class PerPoint(sightline.Model):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_channels, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, *, points: Tensor) -> Output:
        return {"logits": self.net(points)}
'''
CONFIG = """
task: {name: segment}
data: {name: areas}
model: {name: per_point}
losses: [{name: cross_entropy}]
metrics: [{name: iou}]
optimizer: {name: adam, lr: 3e-2}
train: {epochs: 2, batch_size: 3}
evaluate: {metric: miou, batch_size: 2, select: test}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin, a config, and a run for each of the three areas."""
    folder = tmp_path_factory.mktemp("folds")
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "areas.yaml").write_text(CONFIG)
    for area in ("north", "south", "west"):
        trained(folder, area, f"data.test_area={area}")
    return folder


def trained(folder: Path, name: str, *overrides: str) -> None:
    words = ("train", folder / "areas.yaml", *overrides, "--plugin", folder / "plugin.py", "--device", "cpu")
    succeed(*words, "--no-check", "--out", folder / name)


def pooled(folder: Path, *names: str | Path):
    out = folder / "pooled.json"
    out.unlink(missing_ok=True)
    runs = [folder / name for name in names]
    return run_here("evaluate", *runs, "--plugin", folder / "plugin.py", "--device", "cpu", "--json", out), out


def test_pooled_figures_come_from_summed_counts_not_from_means(folder: Path) -> None:
    done, out = pooled(folder, "south", "north", "west")
    assert done.code == 0, done.err
    document = json.loads(out.read_text())
    finals = [json.loads((folder / name / "final.json").read_text()) for name in ("south", "north", "west")]
    counts = sum(np.array(final["confusion"]["counts"]) for final in finals)
    assert document["confusion"]["counts"] == counts.tolist()
    common = np.diag(counts)
    expected = (common / (counts.sum(0) + counts.sum(1) - common)).mean()
    assert document["metrics"]["miou"] == pytest.approx(expected, rel=1e-12)
    assert document["metrics"]["miou"] != np.mean([final["metrics"]["miou"] for final in finals])
    assert document["data"]["num_samples"] == 9
    assert [fold["tested"] for fold in document["folds"]] == [["south"], ["north"], ["west"]]
    assert [fold["metrics"] for fold in document["folds"]] == [final["metrics"] for final in finals]


def test_predictions_of_folds_go_into_each_runs_own_folder(folder: Path) -> None:
    runs = [folder / name for name in ("south", "north", "west")]
    words = ("--plugin", folder / "plugin.py", "--device", "cpu", "--save-predictions")
    succeed("evaluate", *runs, *words)
    for run in runs:
        manifest = json.loads((run / "predictions" / "test" / "manifest.json").read_text())
        assert manifest["run"] == str(run)
        assert [entry["file"] for entry in manifest["samples"]] == ["0.npy", "1.npy", "2.npy"]


def test_folds_that_do_not_fit_together_are_refused(folder: Path) -> None:
    trained(folder, "again", "data.test_area=south", "seed=1")
    trained(folder, "two", "data.test_area=south", "data.areas=[north, south]")
    for names, told in (
        (("north", "south"), "no run tests west; the figures of 2 of 3 folds"),
        (("north", "south", "again"), f"south is tested by {folder / 'south'}, {folder / 'again'}; its points would"),
        (("north", "two"), "only folds of one set are pooled"),
        (("north", trained_run("classify")), "'synthetic_shapes' is not tested part by part"),
    ):
        done, out = pooled(folder, *names)
        assert (done.code, out.exists()) == (2, False)
        assert told in done.err
