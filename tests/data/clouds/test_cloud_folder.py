"""A user's own clouds, from folders and lists: parts, labels, bits, what is reported and what is refused."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.commands.data import PrepareOptions
from sightline.contract.errors import ConfigError, DataError, UserError
from sightline.contract.types import SampleKey
from sightline.ops.points.normals import estimate_normals
from sightline.store.cloud_preparation import prepare_cloud
from sightline.store.files.cloud_files import read_cloud
from sightline.store.prepared.prepared_set import verify
from sightline.verbs.data import prepare as prepare_verb
from sightline.workbench.predict.file_samples import read_sample
from tests.command import run_here
from tests.conftest import ROOT
from tests.data.clouds.cloud_writers import CLASSES, prepare_folder, solid, write_folder, write_ply
from tests.data.preparing import refuse


def everything(dataset: CloudFolder) -> dict[str, Any]:
    return dataset.get_batch([SampleKey(index, 0, 0) for index in range(len(dataset))])


def names_of(root: Path, split: str) -> list[str]:
    dataset = CloudFolder(split=split, root=str(root))
    return [dataset.sample_name(index) for index in range(len(dataset))]


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 PLY files in three classes."""
    return write_folder(tmp_path_factory.mktemp("own") / "clouds")


@pytest.fixture(scope="module")
def prepared(clouds: Path) -> Path:
    prepare_folder(clouds, clouds.parent / "prepared")
    return clouds.parent / "prepared"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_parts_are_stratified_and_stated(clouds: Path, prepared: Path) -> None:
    manifest = prepare_folder(clouds, prepared)  # again: nothing is done
    assert manifest["outcome"] == "already there"
    assert manifest["class_names"] == list(CLASSES)
    assert {split: facts["class_counts"] for split, facts in manifest["splits"].items()} == {
        "train": [7, 7, 7],
        "validation": [1, 1, 1],
        "test": [2, 2, 2],
    }
    assert "hash of seed 0" in manifest["split"]
    everyone = [name for split in manifest["splits"] for name in names_of(prepared, split)]
    assert sorted(everyone) == sorted(f"{kind}/{kind}_{n:02d}.ply" for kind in CLASSES for n in range(10))
    assert verify(prepared) == len(manifest["files"])


def test_the_split_depends_on_names_and_seed_alone(clouds: Path, prepared: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(clouds, moved)
    prepare_folder(moved, tmp_path / "same")
    prepare_folder(moved, tmp_path / "other", seed=1)
    assert names_of(tmp_path / "same", "test") == names_of(prepared, "test")
    assert names_of(tmp_path / "other", "test") != names_of(prepared, "test")
    for split in ("train", "test"):
        one, two = (CloudFolder(split=split, root=str(root)) for root in (prepared, tmp_path / "same"))
        assert torch.equal(everything(one)["points"], everything(two)["points"])


def test_shares_are_rounded_and_leave_something_everywhere(clouds: Path, tmp_path: Path) -> None:
    manifest = prepare_folder(clouds, tmp_path / "set", test_share=0.34, validation_share=0.01)
    assert manifest["splits"]["test"]["class_counts"] == [3, 3, 3]
    assert manifest["splits"]["validation"]["class_counts"] == [1, 1, 1]
    refuse(prepare_folder, clouds, "class 'ball' has 10 clouds, too few for 9 to test, 1 to validate", test_share=0.9)


def test_given_parts_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        write_folder(tmp_path / "in" / split, per_class=count)
    manifest = prepare_folder(tmp_path / "in", tmp_path / "set")
    assert (manifest["layout"], manifest["split"]) == ("split_folders", "as given")
    assert {split: facts["num_rows"] for split, facts in manifest["splits"].items()} == {"train": 9, "test": 6}
    assert names_of(tmp_path / "set", "test") == [
        f"test/{kind}/{kind}_{n:02d}.ply" for kind in CLASSES for n in range(2)
    ]
    told = manifest["differences"]  # the same numbers were written to both parts
    assert len(told) == 1
    assert told[0].startswith("6 of 6 samples of test (100.0%) are in train, too: test is not one of unseen samples")


def test_classes_with_one_training_cloud_are_told(tmp_path: Path) -> None:
    counts = {("train", "ball"): 1, ("train", "rod"): 2, ("test", "ball"): 2, ("test", "rod"): 1}
    for seed, ((split, kind), count) in enumerate(counts.items()):
        for number in range(count):
            path = tmp_path / "in" / split / kind / f"{split}_{number}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_ply(path, dict(zip("xyz", solid(kind, 10 * seed + number).T, strict=True)))
    [note] = prepare_folder(tmp_path / "in", tmp_path / "set", num_points=100)["differences"]
    assert note.startswith("1 of 2 classes have at most one training cloud, too few to learn from: ball; add some")


def test_a_list_in_csv(clouds: Path, tmp_path: Path) -> None:
    labels = dict(zip(CLASSES, "cab", strict=True))
    rows = [f"{clouds}/{kind}/{kind}_{n:02d}.ply,{label}" for kind, label in labels.items() for n in range(4)]
    (tmp_path / "plain.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    manifest = prepare_folder(tmp_path / "plain.csv", tmp_path / "plain")
    assert manifest["class_names"] == ["a", "b", "c"]
    assert manifest["splits"]["train"]["class_counts"] == [2, 2, 2]
    parts = ["train", "train", "validation", "test"] * 3
    lines = [f" {row} , {part}" for row, part in zip(rows, parts, strict=True)]
    (tmp_path / "split.csv").write_text("\ufeffPath,Label,Split\r\n" + "\r\n".join(lines))
    manifest = prepare_folder(tmp_path / "split.csv", tmp_path / "split")
    assert manifest["split"] == "as given"
    dataset = CloudFolder(split="validation", root=str(tmp_path / "split"))
    assert [dataset.sample_name(i) for i in range(3)] == ["a/plate_02.ply", "b/rod_02.ply", "c/ball_02.ply"]
    assert dataset.strata.tolist() == [0, 1, 2]


# --- samples ----------------------------------------------------------------------------------------------------------


def test_facts_and_fields(prepared: Path) -> None:
    dataset = CloudFolder(split="train", root=str(prepared), num_points=16)
    assert dataset.info.facts == {
        "num_classes": 3,
        "class_names": CLASSES,
        "class_counts": (7, 7, 7),
        "in_channels": 3,
        "up_axis": "z",
    }
    assert dataset.info.split_sizes == {"train": 21, "validation": 3, "test": 6}
    batch = everything(dataset)
    assert batch["points"].shape == (21, 16, 3)
    assert torch.equal(everything(CloudFolder(split="train", root=str(prepared)))["points"][:, :16], batch["points"])


@pytest.mark.parametrize("normals", ["none", "file", "estimated"])
@pytest.mark.parametrize("channels", [(), ("ring",), ("ring", "light")])
def test_a_file_is_prepared_as_its_set_was(tmp_path: Path, normals: str, channels: tuple[str, ...]) -> None:
    """Each sample has the bits that `predict` makes of the file, whatever is asked for, in units too."""

    def table(kind: str, number: int) -> np.ndarray:
        points, up = solid(kind, number, 100), np.tile([0.0, 0.0, 2.0], (100, 1))
        return np.column_stack([up, points, np.arange(100), points[:, 0] ** 2])

    write_folder(tmp_path / "in", per_class=3, suffix=".npy", make=table)
    columns = ("nx", "ny", "nz", "x", "y", "z", "light", "ring")
    options = {"columns": columns, "normalisation": "none", "unit": "mm", "choice": "farthest"}
    prepare_folder(tmp_path / "in", tmp_path / "set", **options)
    dataset = CloudFolder(
        split="train",
        root=str(tmp_path / "set"),
        num_points=48,
        normals=normals,
        channels=channels,  # type: ignore[arg-type]
    )
    assert dataset.info.facts["in_channels"] == 3 + 3 * (normals != "none") + len(channels)
    assert dataset.info.fields["points"].unit == "mm"
    batch = everything(dataset)
    for index in range(len(dataset)):
        sample = read_sample(tmp_path / "in" / dataset.sample_name(index), dataset.info)
        assert set(sample.fields) == {"points", *dataset.info.features}
        for name, values in sample.fields.items():
            np.testing.assert_array_equal(values, batch[name][index].numpy())
    if normals == "file":
        assert (batch["normals"] == torch.tensor([0.0, 0.0, 1.0])).all()
    if channels == ("ring", "light"):
        file = read_cloud(tmp_path / "in" / dataset.sample_name(0), columns=columns)
        expected = prepare_cloud(file, num_points=48, choice="farthest", channels=["ring", "light"])["channels"]
        np.testing.assert_array_equal(batch["channels"][0].numpy(), expected)


@pytest.mark.parametrize("choice", ["random", "farthest"])
def test_a_file_needs_no_column_that_the_run_does_not_read(tmp_path: Path, choice: str) -> None:
    """Which points are chosen does not change by it: the bits are those of the file with every column."""

    def table(kind: str, number: int) -> np.ndarray:
        further = np.tile([0.0, 0, 1], (100, 1)), np.arange(100), np.arange(100)
        return np.column_stack([solid(kind, number, 100), *further])

    write_folder(tmp_path / "in", per_class=3, suffix=".npy", make=table)
    columns = ("x", "y", "z", "nx", "ny", "nz", "intensity", "_")
    prepare_folder(tmp_path / "in", tmp_path / "set", columns=columns, choice=choice)
    file = tmp_path / "in" / "ball" / "ball_00.npy"
    named = dict(zip(columns[:6], np.load(file).T[:6], strict=True))
    bare = write_ply(tmp_path / "bare.ply", {name: named[name] for name in "xyz"}, dtype="<f8")
    some = write_ply(tmp_path / "some.ply", named, dtype="<f8")
    for normals, other in (("none", bare), ("estimated", bare), ("file", some)):
        info = CloudFolder(split="train", root=str(tmp_path / "set"), normals=normals).info  # type: ignore[arg-type]
        whole = read_sample(file, info).fields
        for name, values in read_sample(other, info).fields.items():
            np.testing.assert_array_equal(values, whole[name])
    info = CloudFolder(split="train", root=str(tmp_path / "set"), normals="file", channels=("intensity",)).info
    for columns in (None, ("x", "y", "z")):
        with pytest.raises(DataError, match=r"has no (nx|normals).*--columns") as refused:
            read_sample(bare, info, columns=columns)
        assert "data.normals" not in str(refused.value)


def test_fewer_points_than_any_cloud_of_the_set_are_refused(clouds: Path, tmp_path: Path) -> None:
    prepare_folder(clouds, tmp_path / "set", num_points=1024)
    info = CloudFolder(split="train", root=str(tmp_path / "set")).info
    assert info.clouds is not None
    assert info.clouds.fewest_points == 300
    whole = read_sample(clouds / "ball" / "ball_00.ply", info)
    assert whole.treatment == "300 points, repeated to 1024, prepared as the set was"
    two = write_ply(tmp_path / "two.ply", dict(zip("xyz", np.eye(2, 3).T, strict=True)))
    again = write_ply(tmp_path / "again.ply", dict(zip("xyz", np.tile(np.eye(2, 3), (900, 1)).T, strict=True)))
    for path in (two, again):
        with pytest.raises(DataError, match="holds 2 points that differ, every cloud of the run's set at least 300"):
            read_sample(path, info)
    older = dataclasses.replace(info, clouds=dataclasses.replace(info.clouds, fewest_points=None))
    assert read_sample(two, older).treatment == "2 points, repeated to 1024, prepared as the set was"


@pytest.mark.parametrize(
    ("factor", "words"), [(1e3, "times larger; bring the file to m"), (0.1, "times smaller; bring")]
)
def test_another_unit_is_refused_where_size_means_something(
    clouds: Path, tmp_path: Path, factor: float, words: str
) -> None:
    prepare_folder(clouds, tmp_path / "set", normalisation="none", unit="m")
    info = CloudFolder(split="train", root=str(tmp_path / "set")).info
    file = clouds / "ball" / "ball_00.ply"
    assert info.clouds is not None
    assert info.clouds.radii is not None
    points = read_cloud(file).points
    far = write_ply(tmp_path / "far.ply", dict(zip("xyz", (points * factor).T, strict=True)))
    with pytest.raises(DataError, match=words) as refused:
        read_sample(far, info)
    ratio = float(str(refused.value).partition("about ")[2].split()[0])
    reach = np.linalg.norm(points - points.mean(axis=0), axis=1).max()  # of all 300; 64 of them reach a little less
    expected = factor * reach / np.sqrt(np.prod(info.clouds.radii))
    assert ratio == pytest.approx(max(expected, 1 / expected), rel=0.1)
    assert read_sample(far, info, any_scale=True).num_points == 64
    assert read_sample(file, info).num_points == 64


def test_a_cloud_in_two_classes_is_told_where_their_names_have_slashes(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for kind in ("ball", "rod"):
        for number, split in enumerate(("train", "test")):
            cloud = solid("ball", 0) if split == "train" else solid(kind, 1)
            write_ply(tmp_path / f"{kind}_{number}.ply", dict(zip("xyz", cloud.T, strict=True)))
            rows.append(f"{kind}_{number}.ply,toys/{kind},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    single, note, _ = prepare_folder(tmp_path / "list.csv", tmp_path / "set", num_points=100)["differences"]
    assert note.startswith("the same sample in the classes toys/ball, toys/rod: at most one label is right")
    assert "toys/rod/rod_0.ply" in note
    assert single.startswith("2 of 2 classes have at most one training cloud")


def test_files_of_one_name_in_several_folders_are_all_counted(tmp_path: Path) -> None:
    """A list may name scan_0/cloud.ply and scan_1/cloud.ply of one class, of which the first is the smallest."""
    rows = ["path,label"]
    for kind in ("ball", "rod"):
        for number in range(4):
            (tmp_path / kind / f"scan_{number}").mkdir(parents=True)
            cloud = solid(kind, number, num_points=50 if number == 0 else 200)
            write_ply(tmp_path / kind / f"scan_{number}" / "cloud.ply", dict(zip("xyz", cloud.T, strict=True)))
            rows.append(f"{kind}/scan_{number}/cloud.ply,{kind}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    manifest = prepare_folder(tmp_path / "list.csv", tmp_path / "set", num_points=120)
    assert manifest["fewest_points"] == 50
    names = names_of(tmp_path / "set", "train") + names_of(tmp_path / "set", "test")
    assert {*names} <= {f"{kind}/scan_{number}/cloud.ply" for kind in ("ball", "rod") for number in range(4)}
    assert len({*names}) == len(names)
    told = "2 of 8 clouds have fewer different points than num_points=120, the smallest 50: points are"
    assert manifest["differences"][0].startswith(told)
    assert prepare_folder(tmp_path / "list.csv", tmp_path / "other", num_points=50)["differences"] == []


def test_clouds_in_two_units_are_reported_where_size_means_something(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", per_class=4, make=lambda kind, n: (1000 if n < 1 else 1) * solid(kind, n))
    notes = prepare_folder(tmp_path / "in", tmp_path / "set", normalisation="none", unit="m")["differences"]
    assert [note.partition(",")[0] for note in notes] == ["units may be mixed: 3 of 12 clouds"]
    words = (f"data.root={tmp_path / 'set'}", "train.batch_size=4", "--budget", "0.5", "--device", "cpu")
    said = run_here("check", ROOT / "configs/classify/cloud_folder_pointnet.yaml", *words).err
    assert "[prepared-doubts note data.normalisation] units may be mixed: 3 of 12 clouds, first " in said
    assert prepare_folder(tmp_path / "in", tmp_path / "scaled")["differences"] == []


def test_scaling_is_refused_where_size_means_something(clouds: Path, tmp_path: Path) -> None:
    prepare_folder(clouds, tmp_path / "set", normalisation="none", unit="m")
    info = CloudFolder(split="train", root=str(tmp_path / "set")).info
    with pytest.raises(ConfigError, match=r"--unit-sphere: .* leave it out"):
        read_sample(clouds / "ball" / "ball_00.ply", info, to_sphere=True)


def test_estimated_normals_are_those_of_the_geometry_and_of_each_cloud_alone(prepared: Path) -> None:
    dataset = CloudFolder(split="train", root=str(prepared), normals="estimated")
    batch = everything(dataset)
    again = CloudFolder(split="train", root=str(prepared), normals="estimated")
    for index in (20, 3):
        sample = again[SampleKey(index, 5, 7)]
        assert torch.equal(sample["normals"], batch["normals"][index])
        assert torch.equal(sample["normals"], estimate_normals(sample["points"][None], num_neighbours=16)[0])
    lengths = batch["normals"].norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    batch["normals"].zero_()  # what is given out is a copy
    assert torch.equal(dataset[SampleKey(20, 0, 0)]["normals"], again[SampleKey(20, 0, 0)]["normals"])


def test_normals_are_estimated_where_points_come_twice(tmp_path: Path) -> None:
    """Clouds of fewer points than are stored hold some of them again, and again."""
    prepare_folder(write_folder(tmp_path / "in", per_class=3), tmp_path / "set", num_points=1024)
    dataset = CloudFolder(split="train", root=str(tmp_path / "set"), normals="estimated")
    points, normals = (everything(dataset)[name] for name in ("points", "normals"))
    distinct, place = np.unique(points[0].numpy(), axis=0, return_inverse=True)
    assert len(distinct) == 300
    expected = estimate_normals(torch.from_numpy(distinct)[None], num_neighbours=16)[0]
    assert torch.equal(normals[0], expected[place])


def test_normals_that_no_file_has(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"holds no normals .*set normals: estimated or none"):
        CloudFolder(split="train", root=str(prepared), normals="file")


def test_channels_that_are_not_stored(prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"channels: 'ring' is not stored; .* holds none"):
        CloudFolder(split="train", root=str(prepared), channels=("ring",))


def test_a_fraction_is_stratified_nested_and_of_the_training_part_alone(prepared: Path) -> None:
    def rows(fraction: float, seed: int = 0, split: str = "train") -> set[str]:
        dataset = CloudFolder(split=split, root=str(prepared), fraction=fraction, fraction_seed=seed)
        assert dataset.info.facts["class_counts"] == tuple(np.bincount(dataset.strata, minlength=3).tolist())
        assert dataset.info.split_sizes[split] == len(dataset)
        return {dataset.sample_name(index) for index in range(len(dataset))}

    sizes = {fraction: len(rows(fraction)) for fraction in (0.001, 0.3, 0.5, 1.0)}
    assert sizes == {0.001: 3, 0.3: 6, 0.5: 12, 1.0: 21}  # of seven: 1, 2, 4 (halves to even), 7
    assert rows(0.001) < rows(0.3) < rows(0.5) < rows(1.0)
    assert {Counter(name.split("/")[0] for name in rows(0.5))[kind] for kind in CLASSES} == {4}
    assert rows(0.5) == rows(0.5)
    whole, half = (CloudFolder(split="train", root=str(prepared), fraction=fraction) for fraction in (1.0, 0.5))
    clouds = {whole.sample_name(index): points for index, points in enumerate(everything(whole)["points"])}
    for index, points in enumerate(everything(half)["points"]):
        assert torch.equal(points, clouds[half.sample_name(index)])
    assert rows(0.5, seed=1) != rows(0.5)
    assert len(rows(0.1, split="test")) == 6
    assert len(rows(0.1, split="validation")) == 3


def test_meshes_are_drawn_and_have_normals(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    for number, kind in enumerate(("flat", "tall")):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for n in range(3):
            table = corners * [1, 1, 1 + 3 * number] + n
            write_ply(
                tmp_path / "in" / kind / f"{n}.ply",
                dict(zip("xyz", table.T, strict=True)),
                faces=[(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)],
                form="ascii",
            )
    prepare_folder(tmp_path / "in", tmp_path / "set")
    dataset = CloudFolder(split="train", root=str(tmp_path / "set"), normals="file")
    assert dataset.info.facts["in_channels"] == 6
    batch = everything(dataset)
    assert len(torch.unique(batch["points"][0], dim=0)) == 64
    torch.testing.assert_close(batch["normals"].norm(dim=2), torch.ones(2, 64))


# --- Folders and lists of a user's own clouds: what is reported of them, what is refused, and where ---


def test_another_preparation_is_not_taken_for_this_one(clouds: Path, prepared: Path) -> None:
    with pytest.raises(DataError, match="was prepared with num_points = 64, now it is 32; delete it"):
        prepare_folder(clouds, prepared, num_points=32)
    with pytest.raises(DataError, match="was prepared with up_axis = z, now it is y"):
        prepare_folder(clouds, prepared, up_axis="y")


def test_named_columns_are_no_other_preparation(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", suffix=".npy")
    columns = ("x", "y", "z")
    prepare_folder(tmp_path / "in", tmp_path / "set", columns=columns)
    assert prepare_folder(tmp_path / "in", tmp_path / "set", columns=columns)["outcome"] == "already there"


def test_an_edited_list_is_not_taken_for_the_old_one(clouds: Path, tmp_path: Path) -> None:
    """The label of one file changes, and no size of any file does."""
    rows = [f"{clouds}/{kind}/{kind}_{n:02d}.ply,{kind[:3]}" for kind in ("ball", "rod") for n in range(4)]
    path = tmp_path / "list.csv"
    path.write_text("path,label\n" + "\n".join(rows))
    prepare_folder(path, tmp_path / "set")
    path.write_text("path,label\n" + "\n".join([rows[0].replace(",bal", ",rod"), *rows[1:]]))
    with pytest.raises(DataError, match="was prepared with clouds = "):
        prepare_folder(path, tmp_path / "set")


def test_a_unit_is_asked_for_where_it_matters(clouds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^normalisation: .*unit=m, cm, mm, ft, us_ft, or a number"):
        prepare_folder(clouds, tmp_path / "set", normalisation="none")


def touch(path: Path, text: str = "1 2 3\n4 5 6\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "an empty folder": ({}, r"holds nothing; lay it out as CLASS/FILE"),
    "one class": ({f"ball/{n}.txt": "1 2 3\n4 5 6\n" for n in range(4)}, "holds one class, ball, at least two"),
    "an empty class": ({"ball/0.txt": "1 2 3", "rod/readme.md": ""}, "rod: is taken for a class and holds no cloud"),
    "a folder in a class": ({"ball/0.txt": "1 2 3", "rod/raw/0.txt": "1 2 3"}, "rod: .*holds the folder raw"),
    "a stray cloud": ({"ball/0.txt": "1 2 3", "0.txt": "1 2 3"}, "0.txt is not in the folder of a class"),
    "parts among classes": ({"train/a/0.txt": "1 2 3", "ball/0.txt": "1 2 3"}, "the part 'train' and 'ball'"),
    "no part to test": ({"train/a/0.txt": "1 2 3", "train/b/0.txt": "1 2 3"}, "the parts train, train and test are"),
    "a class that is not tested": (
        {"train/a/0.txt": "1 2 3", "train/b/0.txt": "1 2 3", "test/a/0.txt": "1 2 3"},
        "in/train/b: class 'b' has no cloud in the test part",
    ),
    "a class of two": (
        {f"{kind}/{n}.txt": "1 2 3\n4 5 6\n" for kind, count in (("a", 3), ("b", 2)) for n in range(count)},
        "class 'b' has 2 clouds, too few",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_no_set(tmp_path: Path, case: str) -> None:
    files, words = FOLDERS[case]
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        touch(tmp_path / "in" / name, text)
    refuse(prepare_folder, tmp_path / "in", words)


LISTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", ":1: names the columns ''"),
    "other columns": (b"file,class\na.txt,b\n", ":1: names the columns 'file,class'; path,label"),
    "no text": (b"path,label\na.txt,b\nb.txt,\xff\xfe\n", ":3: is not UTF-8 text"),
    "a missing file": (b"path,label\na.txt,b\nc.txt,b\n", ":3: there is no file c.txt"),
    "a name too long for a disk": (b"path,label\na.txt,b\n" + b"c" * 5000 + b",b\n", ":3: there is no file ccc"),
    "an empty label": (b"path,label\na.txt,b\nb.txt, \n", ":3: 'b.txt, ' is not a row of path,label"),
    "a row too long": (b"path,label\na.txt,b,train\n", ":2: .* is not a row of path,label"),
    "an unknown part": (b"path,label,split\na.txt,b,train\nb.txt,b,tset\n", ":3: 'tset' is not a part"),
    "a file twice": (b"path,label\na.txt,b\n./a.txt,c\n", ":3: a.txt is listed on line 2 already"),
    "a file of another kind": (b"path,label\na.gltf,b\n", ":2: a.gltf is not a cloud file"),
    "a NUL": (b"path,label\na.txt,b\nb\0.txt,b\n", r":3: 'b\\x00.txt,b' has a character NUL; mend the line"),
    "an open quote": (b'path,label\na.txt,b\n"b.txt,b\n', ":3: does not read as CSV"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_no_set(tmp_path: Path, case: str) -> None:
    content, words = LISTS[case]
    for name in ("a.txt", "b.txt", "a.gltf"):
        touch(tmp_path / name)
    (tmp_path / "list.csv").write_bytes(content)
    refuse(prepare_folder, tmp_path / "list.csv", f"list.csv{words}")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ball_00.ply", "(?s)29 of 30 samples cannot be used.*has no normals; leave those of the other files out"),
        ("ball_07.ply", "ball_07.ply: has normals or faces, which the first file has not; .*'columns="),
    ],
)
def test_some_files_with_normals_are_told(clouds: Path, tmp_path: Path, place: str, words: str) -> None:
    """Whether the first file is among them or not; and what is said can be pasted, and works at once."""
    shutil.copytree(clouds, tmp_path / "in")
    points = solid("ball", 0)
    names = ("x", "y", "z", "nx", "ny", "nz")
    write_ply(tmp_path / "in" / "ball" / place, dict(zip(names, np.hstack([points, points]).T, strict=True)))
    with pytest.raises(DataError, match=words):
        prepare_folder(tmp_path / "in", tmp_path / "set")
    assert "normals" not in prepare_folder(tmp_path / "in", tmp_path / "set", columns=("x", "y", "z"))["columns"]


def test_files_of_other_kinds_are_told(clouds: Path, tmp_path: Path) -> None:
    shutil.copytree(clouds, tmp_path / "in")
    for name in ("a.pdf", "b.pdf", "c.pdf"):
        touch(tmp_path / "in" / "rod" / name)
    told = prepare_folder(tmp_path / "in", tmp_path / "set")["differences"]
    assert told == ["3 files of other kinds passed over: rod/a.pdf, rod/b.pdf, rod/c.pdf"]


def test_the_command_in_the_refusal_of_an_unprepared_folder_works_as_it_is(
    clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacked `up_axis`, which is required; what that is, is said."""
    monkeypatch.chdir(tmp_path)
    words = (f"data.root={clouds}", "--no-check", "--out", tmp_path / "run")
    said = run_here("train", ROOT / "configs/classify/cloud_folder_pointnet.yaml", *words)
    assert said.code == 2
    assert "up_axis is the axis of the coordinates that points up: `z` in most scans" in said.err
    command = shlex.split(said.err.strip().rpartition("sightline ")[2])
    assert command[-1] == "up_axis=z"
    assert run_here(*command).code == 0
    assert (tmp_path / f"{clouds.name}_prepared" / "manifest.json").is_file()


# --- the command line's options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cloud_folder", [], r"up_axis=VALUE, the axis .* points up: `z` in .* \(one of 'x', 'y', 'z'\)"),
        ("cloud_folder", ["up_axis=up"], "up_axis: found .*'x', 'y', 'z'"),
        ("cloud_folder", ["up_axis=z", "num_ponts=3"], "num_ponts: is not an option; did you mean 'num_points'"),
        ("cloud_folder", ["up_axis=z", "num_points=many"], "num_points: found .*a whole number"),
        ("cloud_folder", ["up_axis=z", "up_axis=y"], "up_axis: is given twice"),
        ("cloud_folder", ["up_axis=z", "columns=[x, 3]"], "columns.1: "),
        ("cloud_folder", ["z"], "is not an option key=value; 'cloud_folder' takes up_axis, num_points"),
        ("modelnet40", ["num_points=3"], "num_points: is not an option; 'modelnet40' takes shared"),
    ],
)
def test_options_are_checked_before_any_file_is_read(tmp_path: Path, name: str, options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare_verb(
            PrepareOptions(dataset=name, options=tuple(options), source=tmp_path / "absent", target=tmp_path / "set")
        )
