"""`sightline predict` gives every point of a file the label that `sightline evaluate` scored, in its order."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.types import SampleKey
from sightline.draw.pictures import PALETTE
from sightline.store.files.ply import read_ply
from sightline.workbench.predict.segment import SegmentPrediction
from tests.command import succeed
from tests.data.clouds.cloud_writers import write_off, write_ply
from tests.runs.point_runs import CONFIG, PARTS, ROOMS, Run, columns_of, rooms_of, scored_by, write

# --- labels of predict are those that evaluate scores -----------------------------------------------------------------


# Float32 products of other batches are rounded differently: 2^-24 for each of some 1,024 terms at the worst.
ROUNDING = 1e-4


def counted(labels: list[np.ndarray], answers: list[np.ndarray], num_classes: int) -> np.ndarray:
    """The confusion of labels (rows) and answers (columns), point by point."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (np.concatenate(labels), np.concatenate(answers)), 1)
    return counts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("parts"), "run", PARTS)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that thins its rooms and scores every point of them."""
    return Run(tmp_path_factory.mktemp("rooms"), "run", ROOMS, "transforms.evaluate=[{name: thin, keep: true}]")


@pytest.fixture(scope="module")
def shapes() -> dict[str, np.ndarray]:
    """The test part of the run on parts."""
    held = SyntheticShapes(split="test", train_size=40, test_size=18, num_points=48, target="parts")
    batch = held.get_batch([SampleKey(index, 0, 0) for index in range(18)])
    names = held.info.facts["category_names"]
    kept = {name: batch[name].numpy() for name in ("points", "label", "category")}
    return kept | {"folder": np.array([names[number] for number in kept["category"]])}


def write_shapes(folder: Path, shapes: dict[str, np.ndarray], ending: str) -> list[Path]:
    paths = []
    for index, points in enumerate(shapes["points"]):
        paths.append(folder / shapes["folder"][index] / f"{index:03d}{ending}")
        write(paths[-1], dict(zip("xyz", points.T, strict=True)))
    return paths


@pytest.mark.parametrize("ending", [".npy", ".ply", ".txt"])
def test_parts_of_files_are_those_that_evaluation_scored(
    parts: Run, shapes: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    paths = write_shapes(tmp_path / "in", shapes, ending)
    document = parts.predict(*paths, "--out", tmp_path / "out")
    expected, kept, counts = scored_by(parts, monkeypatch)
    facts = parts.load().facts
    answers = []
    for index, row in enumerate(document["predictions"]):
        own = list(facts["parts_of_category"][shapes["category"][index]])
        assert (row["file"], row["category"]) == (str(paths[index]), shapes["folder"][index])
        assert row["treatment"] == "as it is"
        labels = np.load(row["written"]["labels"])
        assert (labels.dtype, labels.shape) == (np.int64, (48,))
        assert labels.tolist() == [own[np.argmax(point[own])] for point in expected[index]]
        assert np.array_equal(labels, kept[index])
        answers.append(labels)
    assert np.array_equal(counted(list(shapes["label"]), answers, facts["num_classes"]), counts)


@pytest.mark.parametrize("ending", [".npy", ".ply", ".txt"])
def test_every_point_of_rooms_that_were_thinned_is_as_evaluation_scored_it(
    rooms: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    held = rooms_of(rooms)
    for index, room in enumerate(held):
        write(tmp_path / "in" / f"{index}{ending}", columns_of(room))
    named = ["--columns", "x,y,z,red,green,blue"] if ending != ".ply" else []
    document = rooms.predict(tmp_path / "in", *named, "--out", tmp_path / "out", "probabilities=float32")
    expected, kept, counts = scored_by(rooms, monkeypatch)
    answers = [np.load(tmp_path / "out" / f"{index}.labels.npy") for index in range(len(held))]
    for index, row in enumerate(document["predictions"]):
        assert row["num_points"] == len(held[index]["points"])
        assert answers[index].tolist() == expected[index].argmax(axis=1).tolist()
        assert np.array_equal(answers[index], kept[index])
        found = np.load(row["written"]["probabilities"])
        assert found.dtype == np.float32
        assert np.abs(found - expected[index]).max() < ROUNDING
        assert row["mean_probability"] == pytest.approx(expected[index].max(axis=1).mean(), abs=ROUNDING)
        shares = np.bincount(answers[index], minlength=3) / row["num_points"]
        names = ("floor", "wall", "ceiling")
        assert row["shares"] == {names[i]: shares[i] for i in np.argsort(-shares, kind="stable") if shares[i]}
    assert np.array_equal(counted([room["label"] for room in held], answers, 3), counts)


def test_the_cloud_is_written_where_the_file_has_it_in_the_fixed_colours(
    parts: Run, shapes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The set normalises its shapes; a shape in millimetres somewhere else is the same shape, and stays there."""
    here, there = tmp_path / "here", tmp_path / "there"
    moved = shapes | {"points": shapes["points"].astype(np.float64) * 400 + [10, -2e6, 0.1]}
    write_shapes(here, shapes, ".npy")
    write_shapes(there, moved, ".npy")
    parts.predict(here, "--out", tmp_path / "of_here")
    document = parts.predict(there, "--out", tmp_path / "of_there")
    assert {row["treatment"] for row in document["predictions"]} == {"moved to its mean, scaled to radius 1"}
    for index in range(len(shapes["points"])):
        labels = np.load(tmp_path / "of_there" / f"{index:03d}.labels.npy")
        assert np.array_equal(labels, np.load(tmp_path / "of_here" / f"{index:03d}.labels.npy"))
        for folder, points in (("of_there", moved["points"]), ("of_here", shapes["points"])):
            vertex = read_ply(tmp_path / folder / f"{index:03d}.ply").vertex
            assert np.array_equal(np.stack([vertex[axis] for axis in "xyz"], axis=1), points[index])
            assert np.array_equal(vertex["label"], labels)
            assert np.array_equal(np.stack([vertex[c] for c in ("red", "green", "blue")], axis=1), PALETTE[labels])
    assert b"property float x" in (tmp_path / "of_here" / "000.ply").read_bytes()
    assert b"property double x" in (tmp_path / "of_there" / "000.ply").read_bytes()


def test_points_that_transforms_drop_get_the_answer_of_the_nearest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "run", ROOMS, "transforms.evaluate=[{name: thin, keep: false}]")
    held = rooms_of(run)
    for index, room in enumerate(held):
        write(tmp_path / "in" / f"{index}.ply", columns_of(room))
    document = run.predict(tmp_path / "in", "--out", tmp_path / "out")
    expected = scored_by(run, monkeypatch).probabilities
    for index, (room, row) in enumerate(zip(held, document["predictions"], strict=True)):
        rows = np.arange(len(room["points"]))[::-2]
        labels = np.load(row["written"]["labels"])
        answers = expected[index].argmax(axis=1)
        assert labels[rows].tolist() == answers.tolist(), "as it was scored, where it was"
        nearest = cKDTree(room["points"][rows]).query(room["points"])[1]
        assert labels.tolist() == answers[nearest].tolist()
        others = len(labels) - len(rows)
        assert row["treatment"] == f"as it is, {others} of {len(labels)} points as the nearest of {len(rows)}"


def test_larger_clouds_and_meshes_get_a_label_for_every_point_of_the_file(
    parts: Run, shapes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The run takes 48 points; what it is given more, and the corners of a mesh, go by the nearest of those."""
    name = shapes["folder"][0]
    dense = np.repeat(shapes["points"][0], 3, axis=0) * 7 + np.random.default_rng(0).normal(0, 1e-3, (144, 3)) + 90
    write(tmp_path / name / "dense.ply", dict(zip("xyz", dense.T, strict=True)))
    corners = np.random.default_rng(1).standard_normal((9, 3))
    write_off(tmp_path / name / "mesh.off", corners, [(0, 1, 2), (3, 4, 5), (6, 7, 8)])
    found = parts.load().predict([tmp_path], probabilities="float32").predicted
    assert [(answer.num_points, answer.category) for answer in found] == [(144, name), (9, name)]
    own = parts.load().facts["parts_of_category"][int(shapes["category"][0])]
    for answer, points in zip(found, (dense.astype(np.float32), corners), strict=True):
        assert np.array_equal(answer.points, points)
        assert set(answer.labels.tolist()) <= set(own)
        assert len(np.unique(answer.probabilities, axis=0)) <= 48
        assert np.array_equal(answer.probability, answer.probabilities[np.arange(answer.num_points), answer.labels])
    assert found[0].treatment.endswith("chosen by the file's name, 96 of 144 points as the nearest of 48")
    assert found[1].treatment.endswith("9 of 9 points as the nearest of 48")


def test_python_gives_what_the_command_wrote(rooms: Run, tmp_path: Path) -> None:
    held = rooms_of(rooms)[:3]
    for index, room in enumerate(held):
        write(tmp_path / "in" / f"{index}.ply", columns_of(room))
    table = tmp_path / "out.csv"
    document = rooms.predict(tmp_path / "in", "--out", tmp_path / "out", "probabilities=float16", "--csv", table)
    found = rooms.load().predict([tmp_path / "in"], probabilities="float32")
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert (found.exit_code, len(found.predicted), len(lines)) == (0, 3, 3)
    for answer, row, line in zip(found.predicted, document["predictions"], lines, strict=True):
        assert isinstance(answer, SegmentPrediction)
        assert np.array_equal(answer.labels, np.load(row["written"]["labels"]))
        written = np.load(row["written"]["probabilities"])
        assert written.dtype == np.float16
        assert np.array_equal(written, answer.probabilities.astype(np.float16))
        assert (row["mean_probability"], row["shares"]) == (answer.mean_probability, answer.shares)
        assert sum(answer.shares.values()) == pytest.approx(1, abs=1e-12)
        assert float(line["mean_probability"]) == row["mean_probability"]
        shares = {name: float(line[f"share of {name}"]) for name in ("floor", "wall", "ceiling")}
        assert {name: share for name, share in shares.items() if share} == answer.shares
        assert (line["file"], line["num_points"], line["refused"]) == (row["file"], str(answer.num_points), "")
    assert rooms.load().predict([tmp_path / "in"]).predicted[0].probabilities is None


def test_tiles_label_every_point_of_a_room_once(rooms: Run, tmp_path: Path) -> None:
    """With a halo as wide as the room they are the whole, in its order; with a narrow one, every point has a label."""
    room = rooms_of(rooms)[0]
    write(tmp_path / "room.ply", columns_of(room))
    run = rooms.load()
    (whole,), (wide,), (narrow,) = (
        run.predict([tmp_path / "room.ply"], probabilities="float32", tiles=tiles).predicted
        for tiles in (None, {"size_m": 0.5, "halo_m": 50.0}, {"size_m": 2.0, "halo_m": 1.0})
    )
    assert np.array_equal(wide.probabilities, whole.probabilities)
    assert len(narrow.labels) == len(whole.labels) == len(room["points"])
    assert np.isfinite(narrow.probabilities).all()


def test_categories_come_from_folders_or_by_name_or_are_asked_for(
    parts: Run, shapes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    paths = write_shapes(tmp_path / "in", shapes, ".npy")[:4]
    astray = tmp_path / "somewhere" / "x.npy"
    write(astray, dict(zip("xyz", shapes["points"][0].T, strict=True)))
    document = parts.predict(*paths, astray, expect=2)
    assert [row["file"] for row in document["predictions"]] == list(map(str, paths))
    (refused,) = document["refused"]
    assert refused["reason"].startswith(f"{astray}: is in the folder 'somewhere', which names no category; give")
    assert "called mug, hammer" in refused["reason"]
    name = shapes["folder"][0]
    document = parts.predict(astray, f"category={name.upper()}")
    alone = parts.predict(paths[0])["predictions"][0]
    assert {**document["predictions"][0], "file": ""} == {**alone, "file": ""}
    told = parts("predict", parts.path, astray, "category=hamer", expect=2)
    assert "category=hamer: is none of mug, hammer" in told
    assert "did you mean 'hammer'?" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("category=mug",), "category=mug: the set that the run was trained on has no categories"),
        (("probabilities=float16",), "probabilities: are written into the folder of --out"),
        (("--out", "{folder}/in/a.ply"), "a.ply: is a file; give a folder"),
        (("--out", "{folder}/in"), "a.ply is a file to predict and would be overwritten"),
    ],
)
def test_mistakes_are_one_line(rooms: Run, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    write(tmp_path / "in" / "a.ply", columns_of(rooms_of(rooms)[0]))
    before = (tmp_path / "in" / "a.ply").read_bytes()
    said = rooms(
        "predict", rooms.path, tmp_path / "in", *(word.format(folder=tmp_path) for word in words), expect=2
    ).splitlines()
    assert told in said[-1]
    assert len(said) <= 2, "the other is what the run was trained on"
    assert (tmp_path / "in" / "a.ply").read_bytes() == before


# --- files of the shipped sets, as their publishers lay them out, are predicted as evaluation does --------------------


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
