"""Scenes of the user's own: every kind of file, names of classes, points without one, parts, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import laspy
import numpy as np
import pytest
import torch

from sightline.areas.scenes.sets.scene_folder import SceneFolder
from sightline.config import read_config
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.engine.run_data import build_data
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.scene_preparation import from_lowest_corner
from sightline.workbench.predict.file_samples import read_sample
from tests.command import succeed
from tests.data.clouds.cloud_writers import write_ply
from tests.data.preparing import list_other_notes, refuse
from tests.data.scenes.scene_writers import no_progress

COLUMNS = ("x", "y", "z", "red", "green", "blue", "label")


def table(number: int, num_points: int = 40) -> np.ndarray:
    """x y z red green blue label; four classes."""
    generator = np.random.default_rng(number)
    points = generator.uniform(-3, 3, (num_points + number, 3)) + np.array([100, 200, 5])
    colours = generator.integers(0, 256, points.shape)
    return np.column_stack((points, colours, np.arange(len(points)) % 4))


def write(path: Path, rows: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = dict(zip(COLUMNS, rows.T, strict=True))
    match path.suffix:
        case ".ply":
            write_ply(path, named, form="ascii", dtype="<f8")
        case ".npz":
            np.savez(path, xyz=rows[:, :3], colours=rows[:, 3:6], label=rows[:, 6].astype("i8"))
        case ".h5":
            with h5py.File(path, "w") as file:
                file["points"], file["rgb"], file["label"] = rows[:, :3], rows[:, 3:6], rows[:, 6]
        case ".npy":
            np.save(path, rows)
        case ".txt":
            text = "\n".join(" ".join(repr(value) for value in row) for row in rows.tolist())
            path.write_bytes(f"# {' '.join(COLUMNS)}\n{text}\n".encode())
    return path


def write_folder(root: Path, suffix: str = ".txt", count: int = 6) -> Path:
    for number in range(count):
        write(root / f"scan_{number}{suffix}", table(number))
    return root


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    given = {"up_axis": "z", "unit": "m", **options}
    return SceneFolder.prepare(source=source, target=target, name="scene_folder", progress=no_progress, **given)


def by_name(root: Path, **arguments: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Every sample of every part by the name of its file."""
    samples = {}
    for split in ("train", "validation", "test"):
        scenes = SceneFolder(split=split, root=str(root), **arguments)
        samples |= {scenes.sample_name(i): scenes[SampleKey(i, 0, 0)] for i in range(len(scenes))}
    return samples


@pytest.mark.parametrize("suffix", [".txt", ".ply", ".npz", ".h5", ".npy"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    source = write_folder(tmp_path / "in", suffix)
    options = {"columns": COLUMNS} if suffix == ".npy" else {}
    manifest = prepare(source, tmp_path / "set", **options)
    assert manifest["class_names"] == ["class_0", "class_1", "class_2", "class_3"]
    samples = by_name(tmp_path / "set", colours=True)
    assert sorted(samples) == [f"scan_{number}{suffix}" for number in range(6)]
    for number in range(6):
        sample, rows = samples[f"scan_{number}{suffix}"], table(number)
        assert np.array_equal(sample["label"].numpy(), rows[:, 6])
        expected = rows[:, :3] - rows[:, :3].min(0)
        assert np.abs(sample["points"].numpy() - expected).max() < 8 * np.finfo("f4").eps * 6
        assert np.array_equal(sample["colours"].numpy(), (rows[:, 3:6] / 255).astype("f4"))


def test_facts_and_batches(tmp_path: Path) -> None:
    prepare(write_folder(tmp_path / "in"), tmp_path / "set")
    scenes = SceneFolder(split="train", root=str(tmp_path / "set"), colours=True, repeats=2)
    assert scenes.info.split_sizes == {"train": 8, "validation": 1, "test": 1}
    assert scenes.info.facts["in_channels"] == 6
    assert "ignore_index" not in scenes.info.facts
    batch = BatchReader(scenes)([SampleKey(i, 0, 0) for i in range(3)])
    assert batch["features"].shape == (int(batch["offsets"][-1]), 3)
    assert SceneFolder(split="train", root=str(tmp_path / "set")).info.facts["in_channels"] == 3


def test_names_of_classes_and_points_without_one(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(6):
        rows = table(number)
        rows[:5, 6] = -1
        write(source / f"scan_{number}.txt", rows)
    (source / "classes.txt").write_text("\ufeffground\nhouse\ntree\ncar\nboat\n")  # as Windows' Notepad begins a file
    manifest = prepare(source, tmp_path / "set", unlabelled=-1)
    assert manifest["class_names"] == ["ground", "house", "tree", "car", "boat"]
    assert manifest["num_ignored"] == 30
    assert manifest["differences"] == ["classes without a point in a part: boat (train, validation, test)"]
    scenes = SceneFolder(split="train", root=str(tmp_path / "set"))
    assert scenes.info.facts["ignore_index"] == 255
    assert scenes.info.facts["num_classes"] == 5
    sample = scenes[SampleKey(0, 0, 0)]
    assert (sample["label"][:5] == 255).all()
    assert (sample["label"][5:] < 4).all()
    assert sum(scenes.info.facts["class_counts"]) == sum(
        int((scenes[SampleKey(i, 0, 0)]["label"] < 255).sum()) for i in range(len(scenes))
    )


def test_units_become_metres(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in")
    prepare(source, tmp_path / "m")
    for unit, length in (("ft", 0.3048), ("us_ft", 1200 / 3937), (0.5, 0.5)):
        prepare(source, tmp_path / f"{unit}", unit=unit)
        for name, sample in by_name(tmp_path / f"{unit}").items():
            rows = table(int(name[5]))[:, :3]
            assert np.allclose(sample["points"].numpy(), (rows - rows.min(0)) * length, rtol=1e-6, atol=1e-6)
    prepare(source, tmp_path / "mm", unit="mm")
    metres, millimetres = by_name(tmp_path / "m"), by_name(tmp_path / "mm")
    for name, sample in metres.items():
        assert torch.allclose(sample["points"], millimetres[name]["points"] * 1000, rtol=1e-5, atol=1e-4)


def test_colours_from_zero_to_one_are_told_apart(tmp_path: Path) -> None:
    for number in range(6):
        rows = table(number)
        rows[:, 3:6] /= 255
        write(tmp_path / "in" / f"scan_{number}.txt", rows)
    with pytest.raises(DataError, match="which is black on a scale to 255; set colour_max=1"):
        prepare(tmp_path / "in", tmp_path / "set")
    prepare(tmp_path / "in", tmp_path / "set", colour_max=1)
    sample = by_name(tmp_path / "set", colours=True)["scan_0.txt"]
    assert np.array_equal(sample["colours"].numpy(), (table(0)[:, 3:6] / 255).astype("f4"))
    with pytest.raises(DataError, match=r"colours run from \S+ to \S+, colour_max is 1; set colour_max=255"):
        prepare(write_folder(tmp_path / "in2"), tmp_path / "set2", colour_max=1)


def test_normals_are_brought_to_length_one(tmp_path: Path) -> None:
    for number in range(6):
        rows = table(number)
        np.savez(
            _made(tmp_path / "in") / f"{number}.npz", points=rows[:, :3], normals=rows[:, :3] - 7, label=rows[:, 6]
        )
    prepare(tmp_path / "in", tmp_path / "set")
    sample = by_name(tmp_path / "set", normals=True)["0.npz"]
    assert (sample["normals"].norm(dim=1) - 1).abs().max() < 4 * np.finfo("f4").eps
    expected = table(0)[:, :3] - 7
    assert np.allclose(sample["normals"], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_parts_of_the_users_own(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "train", "test")):
        write(tmp_path / "in" / split / f"{number}.txt", table(number))
    manifest = prepare(tmp_path / "in", tmp_path / "set")
    assert {name: facts["num_rows"] for name, facts in manifest["splits"].items()} == {"train": 2, "test": 1}
    assert SceneFolder(split="train", root=str(tmp_path / "set")).info.split_sizes == {"train": 2, "test": 1}


@pytest.mark.parametrize("name", ["train/more/b.npy", "train/more/b.npz", "train/b.label"])
def test_no_scene_and_no_label_is_left_out_in_silence(tmp_path: Path, name: str) -> None:
    for split in ("train", "test"):
        np.save(_made(tmp_path / "in" / split) / "a.npy", table(0)[:, :3])
        (tmp_path / "in" / split / "a.labels").write_text("1\n" * len(table(0)))
    (tmp_path / "in" / "classes.txt").write_text("none\nground\n")
    (tmp_path / "in/train").rename(tmp_path / "disk")
    (tmp_path / "in/train").symlink_to("../disk")
    (tmp_path / "in/train/also").symlink_to("../in/test")
    prepare(tmp_path / "in", tmp_path / "set")
    _made((tmp_path / "in" / name).parent)
    (tmp_path / "in" / name).write_text("1\n")
    refuse(prepare, tmp_path / "in", rf"{name}: would be left out; lay it out as files in one folder")


def test_parts_are_dealt_by_names_and_seed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", count=20)
    parts = []
    for seed in (0, 0, 1):
        target = tmp_path / f"set{len(parts)}"
        prepare(source, target, seed=seed)
        scenes = {split: SceneFolder(split=split, root=str(target)) for split in ("train", "validation", "test")}
        parts.append({split: {each.sample_name(i) for i in range(len(each))} for split, each in scenes.items()})
    assert parts[0] == parts[1] != parts[2]
    assert {split: len(names) for split, names in parts[0].items()} == {"train": 14, "validation": 2, "test": 4}
    assert len(set.union(*parts[0].values())) == 20


def spoil(**changes: Any) -> np.ndarray:
    rows = table(0)
    for column, (row, value) in changes.items():
        rows[row, COLUMNS.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (spoil(label=(3, 4.5)), r"label\[3\] is 4.5"),
        (spoil(label=(3, -2)), r"label\[3\] is -2, classes are 0 to \d by the labels of all files; .*unlabelled=N"),
        (spoil(label=(3, 70000)), r"label\[3\] is 70000, classes are 0 to 3"),
        (spoil(x=(7, np.nan)), r":9: nan is not a finite number"),
        (spoil(red=(7, 256)), "colours run from .* to 256, colour_max is 255"),
    ],
)
def test_wrong_points_are_named(tmp_path: Path, rows: np.ndarray, words: str) -> None:
    source = write_folder(tmp_path / "in")
    write(source / "scan_0.txt", rows)
    refuse(prepare, source, f"scan_0.txt.*{words}")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", ["colours", "normals"])
def test_what_some_files_have_is_not_left_out_in_silence(tmp_path: Path, first: int, name: str) -> None:
    for number in range(4):
        rows = table(number)
        values = {} if number == first else {name: rows[:, 3:6] + 1.0 * (name == "normals")}
        np.savez(_made(tmp_path / "in") / f"{number}.npz", points=rows[:, :3], label=rows[:, 6], **values)
    words = {
        0: rf"1\.npz: has {name}, which the first file has not; name what",
        1: r"1\.npz: has no .*the first file has",
    }
    with pytest.raises(DataError, match=words[first]):
        prepare(tmp_path / "in", tmp_path / "set")
    manifest = prepare(tmp_path / "in", tmp_path / "set", columns=("x", "y", "z", "label"))
    assert name not in manifest["columns"]


def test_labels_that_are_no_class_are_refused(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "in" / f"{number}.txt", table(number) * [1, 1, 1, 1, 1, 1, 0])
    with pytest.raises(DataError, match=r"in: no point has a class: no label is .* besides unlabelled=0; correct the"):
        prepare(tmp_path / "in", tmp_path / "set", unlabelled=0)


def test_names_that_are_given_are_those_of_classes_txt(tmp_path: Path) -> None:
    """A preparation by either has the same classes; others than in the file, or one twice, are refused."""
    source = write_folder(tmp_path / "in")
    names = ("ground", "house", "tree", "car", "boat")
    given = prepare(source, tmp_path / "given", names=names)
    (source / "classes.txt").write_text("\n".join(names))
    read = prepare(source, tmp_path / "read")
    for key in ("class_names", "class_labels", "splits", "files"):
        assert given[key] == read[key]
    assert given["class_names"] == [*names]
    assert prepare(source, tmp_path / "both", names=names)["class_names"] == [*names]
    for wrong, said in (
        (("a", "b", "c"), r"names: \[a, b, c\] are others than in .*classes.txt; leave names out, or correct it"),
        (("a", "a"), r"names: \[a, a\] has an empty name, or one twice"),
        (("a", " "), "has an empty name, or one twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            prepare(source, tmp_path / "wrong", names=wrong)
    (source / "classes.txt").unlink()
    with pytest.raises(
        DataError, match=r"label\[\d+\] is 2, classes are 0 to 1 by names; correct the file, complete the"
    ):
        prepare(source, tmp_path / "few", names=("a", "b"))


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    refuse(prepare, tmp_path / "nothing", "there is no such folder")
    source = write_folder(tmp_path / "in", count=2)
    few = "holds 2 scenes, too few for 1 to test, 1 to validate and one to train on.* validation_share=0 test_share=0.5"
    refuse(prepare, source, few)
    halves = prepare(source, tmp_path / "halves", validation_share=0.0, test_share=0.5)
    assert halves["splits"].keys() == {"train", "test"}
    write_folder(source)
    refuse(prepare, source, r"has no column 'klass', it has red, green, blue, label; .* label=NAME", label="klass")
    with pytest.raises(ConfigError, match=r"\[x, y, z\] has no 'label'"):
        prepare(source, tmp_path / "set", columns=("x", "y", "z"))
    (source / "classes.txt").write_text("ground\nhouse\nground\n")
    refuse(prepare, source, r"classes.txt:3: names 'ground' a second time")
    for content, said in ((b"", "is empty; write one"), (b"gr\xfcn\n", "UTF-8 text; save it as UTF-8")):
        (source / "classes.txt").write_bytes(content)
        refuse(prepare, source, rf"classes\.txt: .*{said}")
    (source / "classes.txt").write_text("ground\nhouse\n")
    with pytest.raises(DataError, match=r"label\[2\] is 2, classes are 0 to 1 by the lines of classes.txt"):
        prepare(source, tmp_path / "set")
    (source / "classes.txt").unlink()
    write(source / "train" / "a.txt", table(0))
    refuse(prepare, source, r"holds scan_0.txt beside the folder train")
    (source / "scans").mkdir()
    refuse(prepare, source, "holds the folder scans")
    prepare(write_folder(tmp_path / "good"), tmp_path / "set")
    with pytest.raises(DataError, match=r"holds no normals; set data.normals=false"):
        SceneFolder(split="train", root=str(tmp_path / "set"), normals=True)


def test_scenes_in_two_units_are_reported(tmp_path: Path) -> None:
    for number in range(5):
        rows = table(number)
        rows[:, :3] *= 100 if number == 2 else 1
        write(tmp_path / "in" / f"{number}.npz", rows)
    notes = prepare(tmp_path / "in", tmp_path / "set")["differences"]
    assert len(notes) == 1
    assert re.match(r"units may be mixed: 1 of 5 scenes, first \w+/2\.npz, reach about", notes[0])


# --- Scenes measured from their lowest corner: the differences of float64, rounded once ---


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_points_are_measured_from_their_lowest_corner(dtype: str) -> None:
    far = np.array([5e5, -4e6, 120.0])
    points = (far + np.random.default_rng(0).uniform(0, 30, (500, 3))).astype(dtype)
    moved, corner = from_lowest_corner(points, scale=0.25)
    exact = points.astype(np.float64)
    assert np.array_equal(corner, exact.min(axis=0))
    assert moved.dtype == np.float32
    assert np.array_equal(moved, ((exact - exact.min(axis=0)) * 0.25).astype(np.float32))
    assert moved.min(axis=0).tolist() == [0, 0, 0]
    assert from_lowest_corner(np.array([[0.0, 0, 0], [1e300, 1, 1]]))[0][1].tolist() == [np.inf, 1, 1]


# --- Scenes of other tools: aerial scans, label maps, files of labels ---


def write_las(path: Path, *, labels: tuple[int, ...] = (2, 6), highest: int = 65535) -> np.ndarray:
    """An aerial scan with colours of 16 bits (N, 3), which are returned; the first is the highest."""
    cloud = laspy.LasData(laspy.LasHeader(version="1.4", point_format=7))
    generator = np.random.default_rng(0)
    cloud.x, cloud.y, cloud.z = generator.uniform(0, 40, (3, 30))
    colours = generator.integers(0, highest + 1, (30, 3))
    colours[0] = highest
    cloud.red, cloud.green, cloud.blue = colours.T
    cloud.classification = np.resize(labels, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    cloud.write(path)
    return colours


def test_colours_of_16_bits_are_told_by_the_format(tmp_path: Path) -> None:
    deep = write_las(tmp_path / "in" / "train" / "a.laz")
    shallow = write_las(tmp_path / "in" / "test" / "b.las", highest=250)
    manifest = prepare(tmp_path / "in", tmp_path / "set", label="classification")
    assert [note.partition(" (")[0] for note in list_other_notes(manifest)] == [
        "labels of the files are 2, 6; predictions number these classes from 0 to 1, so that class_2 is 0; to keep the "
        "numbers of the files, name all of them: names=[...]",
        "colours of 16 bits are read as 0 to 65535",
        "colours of 16 bits are read as 0 to 255",
    ]
    for split, name, colours in (("train", "a.laz", deep / 65535), ("test", "b.las", shallow / 255)):
        scene = SceneFolder(split=split, root=str(tmp_path / "set"), colours=True)
        expected = np.rint(colours * 255).astype("f4") / np.float32(255)
        assert np.array_equal(scene[SampleKey(0, 0, 0)]["colours"].numpy(), expected)
        assert np.array_equal(read_sample(tmp_path / "in" / split / name, scene.info).fields["colours"], expected)
    prepare(tmp_path / "in", tmp_path / "stated", label="classification", colour_max=65535)
    dark = SceneFolder(split="test", root=str(tmp_path / "stated"), colours=True)[SampleKey(0, 0, 0)]
    assert dark["colours"].max() <= 1 / 255


def test_labels_that_occur_are_the_classes(tmp_path: Path) -> None:
    write_las(tmp_path / "in" / "train" / "a.las", labels=(2, 6))
    write_las(tmp_path / "in" / "test" / "b.las", labels=(2, 200))
    manifest = prepare(tmp_path / "in", tmp_path / "set", label="classification")
    assert manifest["class_names"] == ["class_2", "class_6", "class_200"]
    assert manifest["class_labels"] == [2, 6, 200]
    assert manifest["differences"][:2] == [
        "classes without a point in a part: class_6 (test), class_200 (train)",
        "labels of the files are 2, 6, 200; predictions number these classes from 0 to 2, so that class_2 is 0; to "
        "keep the numbers of the files, name all of them: names=[...]",
    ]
    scene = SceneFolder(split="test", root=str(tmp_path / "set"))[SampleKey(0, 0, 0)]
    assert scene["label"].tolist() == [0, 2] * 15


@pytest.mark.parametrize("suffix", [".labels", ".label"])
def test_labels_in_a_file_beside_the_scene(tmp_path: Path, suffix: str) -> None:
    """As Semantic3D (text) and SemanticKITTI (32 bits, the lower half of which is the label) have them."""
    for number in range(6):
        rows = table(number)
        path = _made(tmp_path / "in") / f"scan_{number}.npy"
        np.save(path, rows[:, :6])
        labels = 1 + rows[:, 6].astype(int)
        if suffix == ".labels":
            path.with_suffix(suffix).write_text("".join(f"{label}\n" for label in labels))
        else:
            path.with_suffix(suffix).write_bytes((labels | 7 << 16).astype("<u4").tobytes())
    options = {"columns": ("x", "y", "z", "r", "g", "b"), "unlabelled": 4}
    manifest = prepare(tmp_path / "in", tmp_path / "set", **options)
    assert manifest["class_names"] == ["class_1", "class_2", "class_3"]
    assert [line.partition(";")[0] for line in manifest["differences"]] == ["labels of the files are 1, 2, 3"]
    sample = by_name(tmp_path / "set", colours=True)["scan_3.npy"]
    assert sample["label"].tolist() == [255 if label == 3 else label for label in table(3)[:, 6]]
    with pytest.raises(DataError, match=rf"scan_0\{suffix}: is beside a scene with a column 'label'; move it away"):
        prepare(tmp_path / "in", tmp_path / "set2", columns=(*options["columns"][:5], "label"))
    path.with_suffix(suffix).write_bytes(b"1\n" * 7)
    refuse(prepare, tmp_path / "in", r"scan_5\.labels?: has", **options)
    for other in (".labels", ".label"):
        path.with_suffix(other).touch()
    with pytest.raises(DataError, match=r"scan_5\.labels: is beside scan_5\.label, both with labels of scan_5\.npy"):
        prepare(tmp_path / "in", tmp_path / "set2", **options)


@pytest.mark.parametrize(
    ("metres", "unit", "words"),
    [
        (5, "mm", "extend over 0.006 m or less, read as unit=mm; unit=m would make that 6 m"),
        (5000, "m", "extend over 6e+03 m or more, read as unit=m; unit=cm would make that 60 m, unit=mm would make"),
        (5, "m", ""),
        (500, "cm", ""),
    ],
)
def test_scenes_of_5_mm_or_5_km_are_reported(tmp_path: Path, metres: float, unit: str, words: str) -> None:
    for number in range(4):
        rows = table(number)
        corners = np.array([[0.0, 0, 0], [1, 1, 1]])
        rows[:, :3] = np.vstack([corners, np.full((len(rows) - 2, 3), 0.5)]) * 1.2 * metres
        write(tmp_path / "in" / f"{number}.npz", rows)
    notes = prepare(tmp_path / "in", tmp_path / "set", unit=unit)["differences"]
    assert [words in note for note in notes] == ([True] if words else [])


def test_a_tenth_of_the_scenes_is_held_out_where_the_files_have_no_validation_part(tmp_path: Path) -> None:
    """Whole scenes: with repeats every scene has several samples, which stay on one side."""
    for number in range(21):
        write(tmp_path / "in" / ("test" if number == 20 else "train") / f"{number}.npz", table(number))
    prepare(tmp_path / "in", tmp_path / "set")
    config = read_config(
        Path("configs/segment/own_rooms.yaml"), overrides=[f"data.root={tmp_path / 'set'}", "data.repeats=3"]
    )
    data = build_data(config)
    held_out = {int(index) for index in data.selection.indices}
    assert len(held_out) == 2
    assert len(data.train.indices) == 3 * 18
    assert not {int(index) % 20 for index in data.train.indices} & held_out


def test_the_config_of_two_scenes_trains(tmp_path: Path) -> None:
    """One to train on leaves none to hold out: the config says by what the checkpoint is chosen."""
    for split in ("train", "test"):
        write(tmp_path / "in" / split / "scan.txt", table(0 if split == "train" else 1))
    words = ("scene_folder", "--from", tmp_path / "in", "--to", tmp_path / "set", "up_axis=z", "unit=m")
    told = succeed("data", "prepare", *words, "--config", tmp_path / "own.yaml").err
    assert "too few samples of training to hold some out for validation: it has evaluate.select=test" in told
    assert read_config(tmp_path / "own.yaml").evaluate.select == "test"
    succeed("view", tmp_path / "own.yaml", "--num", 1, "--out", tmp_path / "seen")
    for number in range(30):
        write(tmp_path / "many" / f"{number}.txt", table(number))
    words = ("scene_folder", "--from", tmp_path / "many", "--to", tmp_path / "of_many", "up_axis=z", "unit=m")
    succeed("data", "prepare", *words, "--config", tmp_path / "many.yaml")
    assert read_config(tmp_path / "many.yaml").evaluate.select == "validation"
