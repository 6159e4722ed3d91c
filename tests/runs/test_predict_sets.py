"""Files of the sets that come with sightline, as their publishers lay them out, are answered as evaluation scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline import registry
from sightline.data.files.ply import read_ply
from sightline.types import SampleKey
from tests.command import succeed
from tests.data.clouds.cloud_writers import write_ply
from tests.data.clouds.shapenet_part_writers import CATEGORIES, prepare, write_layout
from tests.runs.point_runs import CONFIG, Run, columns_of, scored_by, write


def test_raw_shapes_of_shapenet_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifted and scaled as the text release has them, every point answered for though the run sees sixteen."""
    raw = write_layout("text", tmp_path / "raw")
    prepare(raw, tmp_path / "data")
    config = f"""
data: {{name: shapenet_part, root: {tmp_path / "data"}}}
model: {{name: parts_toy}}
metrics: [{{name: part_iou}}]
transforms: {{evaluate: [{{name: sample_points, num_points: 16, order: first, score_all: true}}]}}
evaluate: {{metric: instance_miou, batch_size: 5, select: test}}
{CONFIG}"""
    run = Run(tmp_path, "run", config)
    expected, kept, _ = scored_by(run, monkeypatch)
    held = registry.data.get_entry("shapenet_part").builder(split="test", root=str(tmp_path / "data"))
    categories = [int(held[SampleKey(index, 0, 0)]["category"]) for index in range(len(held))]
    assert sorted(categories) == list(range(16))
    for name, (synset, first, last) in list(CATEGORIES.items())[::5]:
        words = ("--columns", "x,y,z,_,_,_,_", f"category={name}", "--out", tmp_path / "out")
        (row,) = run.predict(raw / synset / "d.txt", *words)["predictions"]
        index = categories.index(list(CATEGORIES).index(name))
        scored = expected[index]
        labels = np.load(row["written"]["labels"])
        assert labels.tolist() == (first + scored[:, first : last + 1].argmax(axis=1)).tolist()
        assert np.array_equal(labels, kept[index])
        assert (row["num_points"], row["category"]) == (len(scored), name.lower())
        assert row["treatment"] == "moved to its mean, scaled to radius 1"


def test_furnished_rooms_thinned_by_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by float32 columns, colours with them, and answered by the offset-batched Point Transformer."""
    config = f"""
data: {{name: synthetic_rooms, train_size: 4, test_size: 3, points_per_m2: 10}}
model: {{name: point_transformer, widths: [8, 16], strides: [1, 4], num_neighbours: [8, 8], num_blocks: [1, 1]}}
metrics: [{{name: iou}}]
transforms:
  evaluate: [{{name: voxel_sample, size_m: 0.3, choice: nearest, score_all: true}}, {{name: place_on_floor}}]
evaluate: {{metric: miou, batch_size: 2, select: test}}
{CONFIG}"""
    run = Run(tmp_path, "run", config, "train.epochs=1", "train.batch_size=2")
    expected, kept, counts = scored_by(run, monkeypatch)
    builder = registry.data.get_entry("synthetic_rooms").builder
    held = builder(split="test", train_size=4, test_size=3, points_per_m2=10.0)
    found = np.zeros_like(counts)
    for index in range(3):
        room = {name: value.numpy() for name, value in held[SampleKey(index, 0, 0)].items()}
        write(tmp_path / "in" / f"{index}.ply", columns_of(room))
        (row,) = run.predict(tmp_path / "in" / f"{index}.ply", "--out", tmp_path / "out")["predictions"]
        labels = np.load(row["written"]["labels"])
        assert labels.tolist() == expected[index].argmax(axis=1).tolist()
        assert np.array_equal(labels, kept[index])
        np.add.at(found, (room["label"], labels), 1)
    assert np.array_equal(found, counts)
    assert json.loads((run.path / "inputs.json").read_text())["features"] == ["colours"]


def test_scenes_of_the_users_own_in_centimetres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the origin, colours to 255; a file to predict needs no labels, and may be in any place."""
    for number in range(6):
        random = np.random.default_rng(number)
        corner_cm = np.array([4e5, -7e6, 90])
        points = (random.uniform(0, 400, size=(random.integers(300, 400), 3)) + corner_cm).round(2)
        columns = dict(zip("xyz", points.T, strict=True))
        columns |= {name: random.integers(0, 256, len(points)) for name in ("red", "green", "blue")}
        labelled = columns | {"label": np.digitize(points[:, 2], (200, 350))}
        folder = tmp_path / "in" / ("test" if number < 3 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        write_ply(folder / f"{number}.ply", labelled, dtype="<f8")
        write_ply(tmp_path / f"{number}.ply", columns, dtype="<f8")
    words = ("--from", tmp_path / "in", "--to", tmp_path / "data", "up_axis=z", "unit=cm")
    succeed("data", "prepare", "scene_folder", *words)
    config = f"""
data: {{name: scene_folder, root: {tmp_path / "data"}, colours: true}}
model: {{name: rooms_toy}}
metrics: [{{name: iou}}]
transforms: {{evaluate: [{{name: voxel_sample, size_m: 0.8, choice: nearest, score_all: true}}]}}
evaluate: {{metric: miou, batch_size: 2, select: test}}
{CONFIG}"""
    run = Run(tmp_path, "run", config, "train.batch_size=1")
    _, kept, _ = scored_by(run, monkeypatch)
    document = run.predict(*(tmp_path / f"{number}.ply" for number in range(3)), "--out", tmp_path / "out")
    for number, row in enumerate(document["predictions"]):
        assert row["treatment"] == "prepared as the set was"
        assert np.array_equal(np.load(row["written"]["labels"]), kept[number])
        given, written = (read_ply(path).vertex for path in (tmp_path / f"{number}.ply", Path(row["written"]["ply"])))
        assert all(np.array_equal(given[axis], written[axis]) for axis in "xyz"), "in the file's own coordinates"
    told = run("predict", run.path, tmp_path / "0.ply", "--unit-sphere", expect=2)
    assert "--unit-sphere: the run was trained on scenes, whose size means something" in told
