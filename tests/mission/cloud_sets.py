"""What notes on self-supervised learning of point clouds ask for: data sets, and what can be seen of them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.areas.contrast.shapenet_render import ShapeNetRender
from sightline.contract.types import SampleKey
from tests.command import document_of, refuse, succeed
from tests.data.clouds import modelnet_writers, shapenet_part_writers, shapenet_render_writers
from tests.data.scenes.scene_writers import ROOMS, annotation, write_s3dis
from tests.mission.rows import row
from tests.mission.small import (
    CONFIGS,
    CPU,
    NETWORK,
    SOLIDS,
    document,
    figures,
    find_fault,
    learn,
    said,
)
from tests.trained import trained_run

PARTS = (
    "model={name: dgcnn_parts, num_neighbours: 4, embedding: 16}",
    *("transforms.train.0.num_points=24", "transforms.evaluate.0.num_points=24", "train.batch_size=8"),
)
_SOLIDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"
_MODELNET = CONFIGS / "classify/modelnet40_pointnet.yaml"


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def samples(config: Path, split: str, *overrides: str) -> dict[str, dict[str, Any]]:
    """Read the samples of a split as they are stored, by their names."""
    data = sightline.load_data(config, split, transforms="none", overrides=overrides)
    return {data.sample_name(index): dict(data[index]) for index in range(len(data))}


def weights(run: Path) -> dict[str, Tensor]:
    """Read the tensors of a run's last checkpoint."""
    return load_file(run / "checkpoints/last/model.safetensors")


def in_unit_sphere(points: np.ndarray) -> np.ndarray:
    """Shift a cloud (N, 3) to its mean, and scale it so that the farthest point is at 1."""
    points = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    scaled: np.ndarray = points / np.linalg.norm(points, axis=1).max()
    return scaled


def are_close(found: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    """Whether two arrays have the same shape, and the same values but for a tolerance."""
    found, expected = np.asarray(found), np.asarray(expected)
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=0, atol=tolerance))


# --- data sets --------------------------------------------------------------------------------------------------------


@row(
    "S0.1",
    "train on ModelNet40, from text files with normals or packed",
    "`sightline data prepare modelnet40 --from PATH --to DIR`",
)
def _modelnet40(work: Path) -> None:
    run = trained_run("modelnet")
    assert document(run)["data"] == {"name": "modelnet40", "split": "test", "num_samples": 2}
    loaded = sightline.load_run(run)
    assert loaded.facts["in_channels"] == 6
    made = {}
    for layout in ("npz", "hdf5"):
        packed = modelnet_writers.write_layout(layout, work / layout)
        made[layout] = document_of("data", "prepare", "modelnet40", "--from", packed, "--to", work / f"{layout}_set")
    assert (made["npz"]["layout"], made["npz"]["splits"]["train"]["num_rows"]) == ("npz", 6)
    for split, names in modelnet_writers.SHAPES.items():
        text = samples(run, split, f"data.root={run.parent / 'set'}")
        archive = samples(_MODELNET, split, f"data.root={work / 'npz_set'}", "data.num_points=6")
        assert text.keys() == archive.keys() == {*names}
        for name in names:
            cloud, label = modelnet_writers.cloud(name), modelnet_writers.label_of(name)
            assert are_close(text[name]["points"], cloud[:, :3])
            assert are_close(text[name]["features"], cloud[:, 3:]), "other normals than in the file"
            assert are_close(archive[name]["points"], cloud[:, :3], 1e-3)  # stored with 11 bits
            assert int(text[name]["label"]) == int(archive[name]["label"]) == label
    packed = [*samples(_MODELNET, "train", f"data.root={work / 'hdf5_set'}", "data.num_points=6").values()]
    for place, sample in enumerate(packed):  # two of each of twelve files
        name = modelnet_writers.SHAPES["train"][place % 6]
        assert are_close(sample["points"], modelnet_writers.cloud(f"{name}{place // 2}")[:, :3])
        assert int(sample["label"]) == modelnet_writers.label_of(name)
    assert len(packed) == 24
    names = modelnet_writers.SHAPES["test"]
    clouds = torch.from_numpy(np.stack([modelnet_writers.cloud(name) for name in names]))
    with torch.no_grad():
        logits = loaded.model(points=clouds[..., :3], features=clouds[..., 3:])["logits"]
    loss = F.cross_entropy(logits, torch.tensor([modelnet_writers.label_of(name) for name in names]))
    assert document(run)["losses"]["cross_entropy"] == pytest.approx(loss.item(), rel=1e-4)


@row(
    "S0.2",
    "train on the 16 kinds and 50 parts of ShapeNetPart, six columns and a label a point",
    "`sightline data prepare shapenet_part --from PATH --to DIR`",
)
def _shapenet_part(work: Path) -> None:
    root = prepare_parts(work)
    run = learn("segment/shapenet_part_dgcnn", work / "run", f"data.root={root}", "data.normals=file", *PARTS)
    facts = sightline.load_run(run).facts
    assert (len(facts["parts_of_category"]), facts["num_classes"], facts["in_channels"]) == (16, 50, 6)
    assert 0 < figures(run)["instance_miou"] < 1
    alone = ("transforms.evaluate=[]", "evaluate.batch_size=1")  # whole shapes, of any size
    found = document_of("evaluate", run, *alone, *CPU)["metrics"]["instance_miou"]
    assert found == pytest.approx(instance_miou(sightline.load_run(run).model), abs=1e-6)
    kinds = shapenet_part_writers.CATEGORIES
    assert [(each[0], each[-1]) for each in facts["parts_of_category"]] == [each[1:] for each in kinds.values()]
    for split, keys in (("train", "abc"), ("test", "d")):  # as published figures: validation shapes train, too
        found = samples(run, split)
        assert found.keys() == {f"{synset}/{key}" for synset, _, _ in kinds.values() for key in keys}
        for place, (name, (synset, _, _)) in enumerate(kinds.items()):
            for key in keys:
                sample, shape = found[f"{synset}/{key}"], shapenet_part_writers.shape_of(name, key)
                assert int(sample["category"]) == place
                assert are_close(sample["points"], shape.points)
                assert are_close(sample["features"], shape.normals), "other normals than in the file"
                assert np.array_equal(sample["label"], shape.parts), "other parts than in the file"


def instance_miou(model: nn.Module) -> float:
    """Compute the mean over test shapes of the mean IoU over the parts of their kinds; a part that is in none has 1."""
    shares = []
    for place, (name, (_, first, last)) in enumerate(shapenet_part_writers.CATEGORIES.items()):
        shape = shapenet_part_writers.shape_of(name, "d")
        points, normals = (torch.from_numpy(values[None]).float() for values in (shape.points, shape.normals))
        with torch.no_grad():
            logits = model(points=points, features=normals, category=torch.tensor([place]))["logits"]
        found = first + logits[0, :, first : last + 1].argmax(1).numpy()
        for part in range(first, last + 1):
            both, either = ((found == part) & (shape.parts == part), (found == part) | (shape.parts == part))
            share = both.sum() / either.sum() if either.any() else 1.0
            shares.append(share / (last - first + 1))
    return float(sum(shares)) / len(shapenet_part_writers.CATEGORIES)


def prepare_parts(work: Path) -> Path:
    """Prepare a small ShapeNetPart."""
    source = shapenet_part_writers.write_text(work / "parts")
    succeed("data", "prepare", "shapenet_part", "--from", source, "--to", work / "set")
    return work / "set"


_S3DIS_CLASSES = "ceiling floor wall beam column window door table chair sofa bookcase board clutter stairs".split()
"""The thirteen of the publication in the order of PointNet's release, and one that counts as clutter."""


@row("S0.3", "segment the rooms of S3DIS", "`sightline data prepare s3dis --from PATH --to DIR`")
def _s3dis(work: Path) -> None:
    run = learn_rooms(work)
    assert document(run)["data"] == {"name": "s3dis", "split": "test", "num_samples": 2}  # area 5
    assert sightline.load_run(run).facts["num_classes"] == 13
    counts = np.array(document(run)["confusion"]["counts"])
    assert counts[0].tolist() == [0] * 13  # no ceiling there
    num_points = np.zeros(13, dtype=int)
    found = {"train": samples(run, "train"), "test": samples(run, "test")}
    for area, rooms in ROOMS.items():
        for room, files in rooms.items():
            parts = [annotation(f"{area}{room}{file}", num_points=4 + len(file)) for file in sorted(files)]
            table = np.array([line.split() for lines in parts for line in lines], dtype=np.float64)
            classes = [min(_S3DIS_CLASSES.index(file.partition("_")[0]), 12) for file in sorted(files)]
            labels = np.repeat(classes, [len(lines) for lines in parts])
            split = "test" if area == "Area_5" else "train"
            sample = found[split].pop(f"{area}/{room}", None)
            assert sample is not None, f"{area}/{room} is not in {split}"
            assert are_close(sample["points"], table[:, :3] - table[:, :3].min(axis=0))
            assert are_close(sample["features"], table[:, 3:] / 255)
            assert np.array_equal(sample["label"], labels), "other classes than those of the files' names"
            num_points += np.bincount(labels, minlength=13) if split == "test" else 0
    assert found == {"train": {}, "test": {}}
    assert counts.sum(axis=1).tolist() == num_points.tolist()  # every point of area 5 is scored
    assert figures(run)["overall_accuracy"] == pytest.approx(counts.trace() / counts.sum())


def learn_rooms(work: Path, *words: str) -> Path:
    """Train a Point Transformer on small rooms."""
    succeed("data", "prepare", "s3dis", "--from", write_s3dis(work / "rooms"), "--to", work / "set")
    narrow = "{name: point_transformer, widths: [16, 32], strides: [1, 4], num_blocks: [1, 1], num_neighbours: [8, 8]}"
    few = (f"data.root={work / 'set'}", "data.repeats=1", "train.batch_size=2", f"model={narrow}")
    return learn("segment/s3dis_point_transformer", work / "run", *few, *words)


@row(
    "S0.4",
    "pair clouds with rendered images, and be told which half is missing",
    "`sightline data prepare shapenet_render --from PATH --to DIR`",
)
def _shapenet_render(work: Path) -> None:
    source = shapenet_render_writers.write_release(work / "release")
    clouds, images = source / "ShapeNet", source / "ShapeNetRendering"
    shutil.rmtree(images / "02691156/10155/rendering")
    shutil.rmtree(images / "03001627/0b7")
    (clouds / "03001627/c2e9.ply").unlink()
    words = ("data", "prepare", "shapenet_render", "--from", source, "--to")
    text = said(*words, work / "set", "size_px=12")
    assert "02691156 airplane: clouds 2, image_folders 2, pairs 1" in text
    assert "03001627 chair: clouds 2, image_folders 2, pairs 1" in text
    assert "left out: 02691156/10155 (0 of 24)" in text
    assert "1 clouds have no images, left out: 03001627/0b7" in text
    assert "1 image folders have no cloud, left out: 03001627/c2e9" in text
    found, whole = (
        {data.sample_name(index): data[SampleKey(index, 0, 0)] for index in range(len(data))}
        for data in (
            ShapeNetRender(split="train", root=str(root))
            for root in (work / "set", trained_run("crosspoint").parent / "set")
        )
    )
    assert found.keys() == {"02691156/1a04", "03001627/ffa1", "04530566/a"}
    assert whole.keys() == {*shapenet_render_writers.names()}
    for name, sample in itertools.chain(found.items(), whole.items()):
        assert are_close(sample["points"], in_unit_sphere(shapenet_render_writers.cloud_of(name)))
        views = [shapenet_render_writers.view_of(name, view).astype(np.float64) for view in range(24)]
        on_black = np.stack([view[..., :3] * view[..., 3:] / 255 for view in views])
        far = np.abs(on_black - np.asarray(sample["image"], dtype=np.float64)).max(axis=(1, 2, 3))
        assert far.min() <= 1, f"{name} has a picture of another object"
    shutil.rmtree(images)
    error = refuse(*words, work / "none")
    assert f"{images}: is missing, and {clouds} has 5 clouds" in error
    assert figures(trained_run("crosspoint"))["cross_retrieval_accuracy"] >= 0  # pairs of such files were trained on


@row("S0.5", "keep data behind links, and be told where files were sought", "`sightline train CONFIG data.root=LINK`")
def _links(work: Path) -> None:
    stored = trained_run("modelnet").parent / "set"
    (work / "link").symlink_to(stored)
    words = ("data.num_points=6", "data.normals=file", "train.batch_size=3", *NETWORK, "evaluate.select=test")
    linked = learn("classify/modelnet40_pointnet", work / "run", f"data.root={work / 'link'}", *words)
    assert document(linked) == document(trained_run("modelnet"))
    (work / "above").symlink_to(stored.parent)
    expected = samples(_MODELNET, "train", f"data.root={stored}", "data.num_points=6")
    for root in (work / "link", work / "above/set"):
        found = samples(_MODELNET, "train", f"data.root={root}", "data.num_points=6")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name]["points"], each["points"]) for name, each in expected.items())
    error = refuse("train", _MODELNET, f"data.root={work / 'gone'}")
    assert f"{work / 'gone'}: there is no such folder" in error
    assert f"sightline data prepare modelnet40 --from PATH --to {work / 'gone'}" in error
    assert f"looked in {Path.cwd()};" in refuse("train", _MODELNET, "data.root=gone/below")
    with mock.patch.dict(os.environ, SIGHTLINE_DATA=str(work / "sets")):
        error = refuse("train", _MODELNET)
    assert f"{work / 'sets/modelnet40'}: there is no such folder" in error
    (work / "broken").symlink_to(work / "nowhere")
    assert f"{work / 'broken'}: there is no such folder" in refuse("train", _MODELNET, f"data.root={work / 'broken'}")


@row("S0.6", "see how many objects a class has, and how many points an object", "`sightline data info DIR`")
def _counts(work: Path) -> None:
    root = trained_run("modelnet").parent / "set"
    text = said("data", "info", root)
    assert "airplane 3, bathtub 0, bed 1" in text
    assert "points_per_shape: 6" in text
    found = document_of("data", "info", root)
    for split, names in modelnet_writers.SHAPES.items():
        kinds = [name.rpartition("_")[0] for name in names]
        assert found["counts"][split] == {name: kinds.count(name) for name in modelnet_writers.CLASS_NAMES}
        assert found["sizes"][split] == len(names)
    parts = document_of("data", "info", prepare_parts(work))
    for split, keys in {"train": "ab", "validation": "c", "test": "d"}.items():
        shapes = [shapenet_part_writers.shape_of(name, key) for name in shapenet_part_writers.NAMES for key in keys]
        sizes = [len(shape.parts) for shape in shapes]
        assert parts["points_per_shape"][split] == [min(sizes), max(sizes)]
        assert [*parts["counts"][split].values()] == [len(keys)] * 16
        counts = np.bincount(np.concatenate([shape.parts for shape in shapes]), minlength=50)
        assert [*parts["part_points"][split].values()] == counts.tolist()


@row(
    "S0.7",
    "know the axis order that a network expects",
    "`sightline describe CONFIG`, finding `exchanged-axes` of `sightline check CONFIG`",
)
def _axis_order(work: Path) -> None:
    rows = document_of("describe", _SOLIDS, *SOLIDS, *NETWORK)["modules"]
    assert rows[0]["inputs"][0][1:] == [32, 3]  # points, then coordinates
    assert "turns (8, 64, 3) into (8, 3, 64)" in find_fault("O8", "exchanged-axes")["summary"]
