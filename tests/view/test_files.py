"""Clouds of one's own: coloured by what the file says of its points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import DataError
from sightline.draw.pictures import PALETTE
from sightline.store.files.ply import write_ply
from sightline.view.cloud_file import view_file
from sightline.view.stages import ClassColoring

POINTS = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 4


def names_of(path: Path) -> list[str]:
    return [each.name for each in view_file(path, name=path.name).stages[0].colorings]


def test_a_coloured_ply_file_keeps_points_colours_and_labels(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", points=POINTS, colors=PALETTE[:20], label=LABELS)
    (cloud,) = view_file(tmp_path / "a.ply", name="a").stages
    assert np.array_equal(cloud.points, POINTS)
    colours, labels, _ = cloud.colorings
    assert np.array_equal(colours.colors(), PALETTE[:20])
    assert isinstance(labels, ClassColoring)
    assert np.array_equal(labels.labels(), LABELS)
    assert np.array_equal(labels.colors(), PALETTE[LABELS])
    assert names_of(tmp_path / "a.ply") == ["colours", "label", "height"]


def test_a_predicted_cloud_is_coloured_by_the_names_of_its_classes(tmp_path: Path) -> None:
    """Its colours are those of the labels again; a name may be any text, and a comment of other programs is none."""
    names = ("floor", 'Tür, \n"links"', "end_header")
    write_ply(tmp_path / "a.ply", points=POINTS, colors=PALETTE[LABELS], label=LABELS, class_names=names)
    (cloud,) = view_file(tmp_path / "a.ply", name="a").stages
    labels, _ = cloud.colorings
    assert isinstance(labels, ClassColoring)
    assert labels.counts() == {**dict.fromkeys(names, 5), "3": 5}
    assert np.array_equal(cloud.points, POINTS)
    content = (tmp_path / "a.ply").read_bytes()
    for comment in (b'["floor', b'{"floor": 0}', b"[1, 2]", b"\xff", b"[" * 20_000):
        (tmp_path / "b.ply").write_bytes(content.replace(json.dumps(names).encode(), comment))
        assert names_of(tmp_path / "b.ply") == ["colours", "label", "height"]


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_colours_are_read_on_the_scale_that_they_have(tmp_path: Path, full: float) -> None:
    shares = np.linspace(0, 1, 20)
    columns = {"r": shares * full, "g": np.full(20, full), "b": np.zeros(20)}
    np.savez(tmp_path / "a.npz", points=POINTS, **columns)
    (cloud,) = view_file(tmp_path / "a.npz", name="a").stages
    expected = np.stack([shares * 255, np.full(20, 255), np.zeros(20)], axis=1)
    assert np.abs(cloud.colorings[0].colors() - expected).max() <= 0.5


def test_other_channels_run_along_a_ramp_and_fractions_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=POINTS, intensity=np.arange(20.0), label=np.linspace(0, 1, 20))
    assert names_of(tmp_path / "a.npz") == ["intensity", "label", "height"]
    (cloud,) = view_file(tmp_path / "a.npz", name="a").stages
    assert not any(isinstance(each, ClassColoring) for each in cloud.colorings)


def test_a_file_of_points_alone_is_coloured_by_height_along_the_axis_that_is_up(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    (cloud,) = view_file(tmp_path / "a.npy", name="a", up_axis="y").stages
    (height,) = cloud.colorings
    light = height.colors().astype(int).sum(axis=1)
    assert light.argmax() == POINTS[:, 1].argmax()
    assert light.argmin() == POINTS[:, 1].argmin()


def test_the_vertices_of_a_mesh_are_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text("OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n")
    (cloud,) = view_file(tmp_path / "a.off", name="a").stages
    assert cloud.description == "the vertices of a mesh of 2 triangles"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\n")
    with pytest.raises(DataError, match=r"a\.ply"):
        view_file(tmp_path / "a.ply", name="a")


def test_a_raw_scan_shows_the_labels_beside_it(tmp_path: Path) -> None:
    """Ids of a label file, beside the scan or in SemanticKITTI's folders, and classes that `predict` wrote."""
    scan = tmp_path / "velodyne/000000.bin"
    scan.parent.mkdir()
    np.column_stack([POINTS, np.ones(20)]).astype("<f4").tofile(scan)
    with pytest.raises(DataError, match=r"320 bytes fit 4 and 5 columns of float32.*--columns x,y,z,intensity"):
        view_file(scan, name="a")
    (tmp_path / "labels").mkdir()
    (LABELS.astype("<u4") + (7 << 16)).astype("<u4").tofile(tmp_path / "labels/000000.label")
    np.save(scan.with_name("000000.labels.npy"), LABELS[::-1])
    (cloud,) = view_file(scan, name="a", columns=("x", "y", "z", "remission")).stages
    truth, predicted = cloud.coloring("label file"), cloud.coloring("predicted")
    assert isinstance(truth, ClassColoring)
    assert isinstance(predicted, ClassColoring)
    assert np.array_equal(truth.labels(), LABELS)
    assert np.array_equal(predicted.labels(), LABELS[::-1])
    np.save(scan.with_name("000000.labels.npy"), LABELS[:5])
    with pytest.raises(DataError, match=r"has labels of shape \(5,\), but 000000\.bin has 20 points"):
        view_file(scan, name="a", columns=("x", "y", "z", "remission"))
