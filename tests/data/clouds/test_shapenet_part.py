"""ShapeNetPart as it was written, from either layout: facts, splits and options as published, and what is refused."""

from __future__ import annotations

import functools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.shapenet_part import ShapeNetPart
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.loading.collation import collate
from tests.command import succeed
from tests.data.clouds.shapenet_part_writers import (
    CATEGORIES,
    LAYOUTS,
    NAMES,
    NUM_POINTS,
    SPLITS,
    prepare,
    shape_of,
    write_hdf5,
    write_layout,
    write_text,
)
from tests.data.preparing import Damage, cut, put, refuse, replace_line, set_key

OURS = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prepared(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(layout)
    prepare(write_layout(layout, folder / "in"), folder / "set")
    return folder / "set"


@pytest.fixture(scope="module")
def text_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_set")
    prepare(write_layout("text", folder / "in"), folder / "set")
    return folder / "set"


def opened(root: Path, split: str = "train", **options: object) -> ShapeNetPart:
    return ShapeNetPart(split=split, root=str(root), **options)  # type: ignore[arg-type]


def expected_order(layout: str, split: str) -> list[tuple[str, str]]:
    """Text: by category, then by name; HDF5: as the files hold them."""
    keys = SPLITS[split]
    if layout == "text":
        return [(name, key) for name in NAMES for key in keys]
    return [(name, key) for key in keys for name in NAMES]


@pytest.mark.parametrize("split", SPLITS)
def test_every_shape_is_read_as_it_was_written(prepared: Path, layout: str, split: str) -> None:
    shapes = opened(prepared, OURS[split])
    order = expected_order(layout, split)
    assert len(shapes) == len(order)
    for index, (name, key) in enumerate(order):
        expected = shape_of(name, key, None if layout == "text" else NUM_POINTS)
        sample = shapes[SampleKey(index, 0, 0)]
        # Written to nine digits, or in float32 of numbers up to 3; and normalising again moves the mean by as much.
        np.testing.assert_allclose(sample["points"].numpy(), expected.points, atol=2e-6)
        assert sample["label"].tolist() == expected.parts.tolist()
        assert sample["category"] == NAMES.index(name)
        assert {value.dtype for key, value in sample.items() if key != "points"} == {torch.int64}
    assert shapes.strata.tolist() == [NAMES.index(name) for name, _ in order]


def test_facts_are_those_of_the_publication(prepared: Path) -> None:
    shapes = opened(prepared)
    facts = shapes.info.facts
    assert (facts["num_classes"], facts["num_categories"], facts["in_channels"]) == (50, 16, 3)
    assert facts["category_names"] == tuple(name.lower() for name in NAMES)
    assert facts["parts_of_category"] == tuple(tuple(range(a, b + 1)) for _, a, b in CATEGORIES.values())
    assert facts["class_names"][30:36] == tuple(f"motorbike_{place}" for place in range(6))
    labels = torch.cat([shapes[SampleKey(index, 0, 0)]["label"] for index in range(len(shapes))])
    assert facts["class_counts"] == tuple(torch.bincount(labels, minlength=50).tolist())
    assert shapes.info.split_sizes == {"train": 32, "validation": 16, "test": 16}


def test_a_promise_is_what_info_states(text_set: Path) -> None:
    for normals in ("none", "file", "estimated"):
        info, promised = opened(text_set, normals=normals).info, ShapeNetPart.expected_info(normals=normals)  # type: ignore[arg-type]
        assert (promised.fields, promised.features, promised.clouds) == (info.fields, info.features, info.clouds)
        assert {**promised.facts, "class_counts": info.facts["class_counts"]} == info.facts


def test_batches_concatenate_with_offsets(prepared: Path) -> None:
    shapes = opened(prepared, "test")
    keys = [SampleKey(index, 0, 0) for index in (5, 0, 2)]
    samples = [shapes[key] for key in keys]
    batch = collate(samples, keys, shapes.info.fields)
    assert batch["offsets"].tolist() == [0, *np.cumsum([len(sample["label"]) for sample in samples])]
    assert batch["points"].shape == (batch["offsets"][-1], 3)
    assert batch["category"].tolist() == [5, 0, 2]
    assert batch["label"].shape == (batch["offsets"][-1],)


def test_samples_are_fresh_and_a_copy_of_the_set_gives_the_same(prepared: Path) -> None:
    shapes = opened(prepared)
    key = SampleKey(7, 0, 0)
    shapes[key]["points"].zero_()
    shapes[key]["label"].zero_()
    again = pickle.loads(pickle.dumps(shapes))[key]
    for name, value in shapes[key].items():
        assert torch.equal(value, again[name])
    assert again["points"].any()
    with pytest.raises(IndexError, match="samples 0 to 31, asked for 32"):
        shapes[SampleKey(32, 0, 0)]


def test_normals_of_the_file_have_length_one(text_set: Path) -> None:
    shapes = opened(text_set, "validation", normals="file")
    assert (shapes.info.features, shapes.info.facts["in_channels"]) == (("normals",), 6)
    np.testing.assert_allclose(shapes[SampleKey(4, 0, 0)]["normals"], shape_of("Chair", "c").normals, atol=1e-6)


def test_estimated_normals_are_those_of_the_points(prepared: Path) -> None:
    normals = opened(prepared, normals="estimated")[SampleKey(0, 0, 0)]["normals"]
    assert normals.shape[1:] == (3,)
    assert abs(normals.norm(dim=1) - 1).max() < 1e-5


def test_the_hdf5_release_has_no_normals(tmp_path: Path) -> None:
    prepare(write_layout("hdf5", tmp_path / "in"), tmp_path / "set")
    with pytest.raises(DataError, match=r"holds no normals \(layout hdf5\); set normals: estimated or none, or prep"):
        opened(tmp_path / "set", normals="file")


def test_trainval_trains_on_both_and_keeps_no_validation(text_set: Path) -> None:
    joined = opened(text_set, training="trainval")
    assert joined.info.split_sizes == {"train": 48, "test": 16}
    validation = opened(text_set, "validation")
    for index in range(16):
        assert torch.equal(joined[SampleKey(32 + index, 0, 0)]["points"], validation[SampleKey(index, 0, 0)]["points"])
    with pytest.raises(DataError, match=r"no split 'validation' with training: trainval; it has train \(48\), test"):
        opened(text_set, "validation", training="trainval")
    test = opened(text_set, "test", training="trainval")
    assert torch.equal(test[SampleKey(1, 0, 0)]["label"], opened(text_set, "test")[SampleKey(1, 0, 0)]["label"])


def test_a_fraction_takes_of_every_category(text_set: Path) -> None:
    half = opened(text_set, fraction=0.5)
    assert np.bincount(half.strata).tolist() == [1] * 16
    assert sum(half.info.facts["class_counts"]) < sum(opened(text_set).info.facts["class_counts"])
    assert len(opened(text_set, "test", fraction=0.5)) == 16


def test_shapes_keep_the_names_of_the_release(prepared: Path, layout: str) -> None:
    expected = "02691156/b" if layout == "text" else "ply_data_train0/0001"
    assert opened(prepared).sample_name(1) == expected


# --- preparing --------------------------------------------------------------------------------------------------------


def test_a_hand_read_point(text_set: Path) -> None:
    """The fourth point of the first guitar, worked from its file with the standard library alone."""
    lines = (text_set.parent / "in/03467517/a.txt").read_text().splitlines()
    rows = [[float(token) for token in line.split(" ")] for line in lines]
    mean = [sum(row[axis] for row in rows) / len(rows) for axis in range(3)]
    radius = max(sum((row[axis] - mean[axis]) ** 2 for axis in range(3)) ** 0.5 for row in rows)
    sample = opened(text_set)[SampleKey(2 * NAMES.index("Guitar"), 0, 0)]
    expected = [(rows[3][axis] - mean[axis]) / radius for axis in range(3)]
    assert sample["points"][3].tolist() == pytest.approx(expected, abs=1e-7)
    assert sample["label"][3] == rows[3][6]


def test_differences_from_the_publication_are_told(text_set: Path) -> None:
    differences = ShapeNetPart.describe(text_set)["differences"]
    assert differences[:3] == [
        "train: 32 shapes, published 12137",
        "validation: 16 shapes, published 1870",
        "test: 16 shapes, published 2874",
    ]
    assert "bag: 4 shapes, published 76" in differences
    assert "test/bag: 1 shapes, published 14" in differences


def test_the_published_sizes_agree_with_each_other() -> None:
    card = ShapeNetPart.card()
    assert sum(card["splits"].values()) == sum(card["shapes"].values()) == 16881
    assert sum(card["parts"].values()) == 50
    assert [card["parts"][name.lower()] for name in NAMES] == [b - a + 1 for _, a, b in CATEGORIES.values()]


def test_an_outer_folder_names_of_old_and_read_only_media_do(tmp_path: Path) -> None:
    text = write_text(tmp_path / "download/shapenetcore_partanno_segmentation_benchmark_v0_normal")
    names = text / "synsetoffset2category.txt"
    names.write_text(names.read_text().replace("Motorbike", "motor").replace("Mug", "mug"))
    lists = text / "train_test_split/shuffled_test_file_list.json"
    lists.write_text(lists.read_text().replace(", ", ",\n  "))
    assert prepare(tmp_path / "download", tmp_path / "set")["layout"] == "text"
    arrays = write_layout("hdf5", tmp_path / "in/hdf5_data")
    for path in arrays.iterdir():
        os.chmod(path, 0o444)
    assert prepare(tmp_path / "in", tmp_path / "other")["layout"] == "hdf5"


def test_shapes_that_change_their_split_are_seen(tmp_path: Path) -> None:
    """Names of equal length change places: no file changes its size."""
    source = write_text(tmp_path / "in")
    prepare(source, tmp_path / "set")
    assert prepare(source, tmp_path / "set")["outcome"] == "already there"
    lists = [source / f"train_test_split/shuffled_{name}_file_list.json" for name in ("train", "test")]
    train, test = (path.read_text() for path in lists)
    lists[0].write_text(train.replace("02691156/a", "02691156/d"))
    lists[1].write_text(test.replace("02691156/d", "02691156/a"))
    with pytest.raises(DataError, match=r"set: was prepared with lists = \w+, now it is \w+; delete it to prepare it"):
        prepare(source, tmp_path / "set")


def test_files_in_no_list_are_told_and_left_out(tmp_path: Path) -> None:
    source = write_text(tmp_path / "in")
    (source / "02691156/z.txt").write_text("not even numbers\n")
    report = prepare(source, tmp_path / "set")
    assert report["differences"][-1] == "note: 1 files are in no list and left out (02691156/z.txt, ...)"
    assert report["splits"]["train"]["num_rows"] == 32


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_prepares_and_tells(tmp_path: Path) -> None:
    source, target = write_text(tmp_path / "in"), tmp_path / "set"
    words = ("data", "prepare", "shapenet_part", "--from", source, "--to", target)
    assert "  train: airplane 2, bag 2, " in succeed(*words).out
    assert "already there" in succeed(*words).out
    assert "  test: airplane_0 " in succeed("data", "info", target, "--json", tmp_path / "info.json").out
    info = json.loads((tmp_path / "info.json").read_text())
    labels = np.load(target / "test.label.npy")
    assert list(info["part_points"]["test"].values()) == np.bincount(labels, minlength=50).tolist()
    assert info["counts"]["test"] == {name.lower(): 1 for name in NAMES}
    assert "shuffled_{train,val,test}_file_list.json" in succeed("data", "info", "shapenet_part").out
    assert ShapeNetPart.verify(target) == 3 * 5  # points, normals, label, category and offsets of each split


# --- broken releases --------------------------------------------------------------------------------------------------


ONE_OF_TWO_FLAT = np.stack([np.ones((NUM_POINTS, 3)), np.eye(NUM_POINTS, 3)]).astype(np.float32)
refused = functools.partial(refuse, prepare)


# --- what is no layout ------------------------------------------------------------------------------------------------


def test_places_without_a_layout(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: there is no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty: holds nothing, .* looked for: shapenet_part_seg_hdf5_data \(ply_data_train0")
    both = write_text(tmp_path / "both")
    (both / "ply_data_train0.h5").touch()
    refused(both, r"both: holds 2 layouts, give one: .*both \(hdf5\), .*both \(text\)")


# --- the layouts: one file of a whole release is damaged --------------------------------------------------------------


def with_entries(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """Change the entries of a list that is written with one entry a line, the first in line 2."""

    def rewrite(path: Path) -> None:
        entries = sorted(json.loads(path.read_text()))
        change(entries)
        path.write_text(json.dumps(entries, indent=1))

    return rewrite


SHAPE = "04225987/b.txt"
LIST = "train_test_split/shuffled_val_file_list.json"
KINDS = "synsetoffset2category.txt"
ARRAYS = "ply_data_train10.h5"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (
            SHAPE,
            replace_line(3, "0.1 0.2 0.3 0 0 1"),
            r"04225987/b\.txt:3: 6 columns, 7 are needed; found '0\.1 0\.2 0\.3",
        ),
        (SHAPE, replace_line(8, "0.1 0.2 0,3 0 0 1 44"), r"04225987/b\.txt:8: '0,3' is not a number"),
        (SHAPE, replace_line(2, "0.1 0.2 nan 0 0 1 44"), r"04225987/b\.txt:2: nan is not a finite number"),
        (
            SHAPE,
            replace_line(4, "1e200 0.2 0.3 0 0 1 44"),
            r"b\.txt: a coordinate is 1e\+200; the file is damaged or in another",
        ),
        (SHAPE, replace_line(6, "0.1 0.2 0.3 0 1e200 1 44"), r"04225987/b\.txt:6: the normal is too long to be one"),
        (
            SHAPE,
            replace_line(20, "0 0 0 0 0 1 43.000000"),
            r"b\.txt:20: part 43 is none of skateboard's \(44 to 46\); download",
        ),
        (SHAPE, replace_line(1, "0 0 0 0 0 1 -1"), r"04225987/b\.txt:1: part -1 is none of skateboard's"),
        (SHAPE, replace_line(1, "0 0 0 0 0 1 50"), r"04225987/b\.txt:1: part 50 is none of skateboard's"),
        (
            SHAPE,
            replace_line(1, "0 0 0 0 0 1 47"),
            r"04225987/b\.txt:1: part 47 is none of skateboard's",
        ),  # is one of a table's
        (SHAPE, replace_line(7, "0 0 0 0 0 1 44.5"), r"04225987/b\.txt:7: part 44\.5 is none of skateboard's"),
        (SHAPE, replace_line(1, None), r"04225987/b\.txt: holds no rows, 7 columns are needed"),
        (SHAPE, replace_line(2, None), r"04225987/b\.txt: all 1 points coincide"),
        (
            SHAPE,
            Path.unlink,
            r"shuffled_train_file_list\.json:1: lists .*04225987/b\.txt, which is missing, as are 1 of 64",
        ),
        (LIST, Path.unlink, r"shuffled_val_file_list\.json: is missing, it lists the shapes of the validation split"),
        (LIST, lambda path: path.write_text('["shape_data/02691156/c",\n"sha'), r"list\.json:2: is not JSON \(Unterm"),
        (LIST, lambda path: path.write_text("[" * 10**5), r"val_file_list\.json: cannot be read \(lists and mappings"),
        (LIST, lambda path: path.write_text("[]"), r"val_file_list\.json:1: is not a list of texts"),
        (LIST, lambda path: path.write_text("[1, 2]"), r"val_file_list\.json:1: is not a list of texts"),
        (LIST, lambda path: path.write_bytes(b"\xff\xfe["), r"val_file_list\.json: cannot be read \('utf-8' codec"),
        (
            LIST,
            with_entries(lambda x: x.insert(3, "02691156/c")),
            r"json:5: '02691156/c' is not shape_data/<synset>/<id>",
        ),
        (
            LIST,
            with_entries(lambda x: x.insert(3, "shape_data/../c")),
            r"json:5: 'shape_data/\.\./c' is not shape_data/",
        ),
        (
            LIST,
            with_entries(lambda x: x.insert(2, "shape_data/02691157/c")),
            r"json:4: shape_data/02691157/c is of the synset 02691157, which synsetoffset2category\.txt does not name",
        ),
        (
            LIST,
            with_entries(lambda x: x.insert(2, x[0])),
            r"json:4: 02691156/c is listed twice, before at .*val_file_list\.json:2; download the lists again",
        ),
        (
            LIST,
            with_entries(lambda x: x.append("shape_data/02691156/a")),
            r"val_file_list\.json:18: 02691156/a is listed in the splits train and validation, before at .*train_file",
        ),
        (
            LIST,
            with_entries(lambda x: x.append("shape_data/02691156/lost")),
            r"val_file_list\.json:18: lists .*02691156/lost\.txt, which is missing, as are 1 of 65 files",
        ),
        (KINDS, Path.unlink, r"synsetoffset2category\.txt: is missing, it names the categories"),
        (KINDS, replace_line(3, "Cap"), r"synsetoffset2category\.txt:3: 'Cap' is not a name and a synset"),
        (
            KINDS,
            replace_line(5, "Chairs\t03001627"),
            r"txt:5: 'Chairs' is not one of the 16 categories; did you mean 'chair",
        ),
        (KINDS, replace_line(5, "Chair\t03001628"), r"category\.txt:5: gives 03001628 for Chair, it is 03001627"),
        (KINDS, replace_line(5, "Cap\t02954340"), r"category\.txt:5: names Cap a second time"),
        (
            KINDS,
            replace_line(16, None),
            r"list\.json:1: shape_data/04379243/. is of the synset 04379243, which synsetoff",
        ),
        (ARRAYS, set_key("data"), r"train10\.h5: has no key 'data', it has label, pid; is it a file of ShapeNetPart\?"),
        (ARRAYS, set_key("pid"), r"ply_data_train10\.h5: has no key 'pid'"),
        (
            ARRAYS,
            set_key("data", np.zeros((2, NUM_POINTS, 6), np.float32)),
            r"'data' is float32 \(2, 24, 6\), floats \(shapes",
        ),
        (
            ARRAYS,
            set_key("label", np.zeros((5, 1), np.uint8)),
            r"'label' is uint8 \(5, 1\), integers \(2, 1\) are needed",
        ),
        (ARRAYS, set_key("pid", np.zeros((2, 9), np.uint8)), r"'pid' is uint8 \(2, 9\), integers \(2, 24\) are needed"),
        (
            ARRAYS,
            set_key("label", put((1, 0), 16)),
            r"train10\.h5: label\[1\] is 16, there are 16 categories \(0 to 15\)",
        ),
        (ARRAYS, set_key("pid", put((1, 7), 50)), r"train10\.h5: pid\[1, 7\]: part 50 is none of table's \(47 to 49\)"),
        (
            ARRAYS,
            set_key("pid", put((0, 3), 0)),
            r"train10\.h5: pid\[0, 3\]: part 0 is none of skateboard's \(44 to 46\)",
        ),
        (ARRAYS, set_key("data", put((1, 5, 2), np.nan)), r"train10\.h5: shape 1: data\[5, 2\] is nan"),
        (ARRAYS, set_key("data", ONE_OF_TWO_FLAT), r"train10\.h5: shape 0: all 24 points coincide"),
        (
            "ply_data_train3.h5",
            lambda path: cut(path, by=path.stat().st_size // 2),
            r"train3\.h5: is not a sound HDF5 file \(.*truncated file",
        ),
        ("ply_data_train3.h5", Path.unlink, r"ply_data_train3\.h5: is missing, there are ply_data_train0\.h5, "),
        ("ply_data_val0.h5", Path.unlink, r"in: holds no \*val\*\.h5, the validation split"),
    ],
)
def test_broken_releases(tmp_path: Path, file: str, damage: Damage, message: str) -> None:
    root = (write_hdf5 if file.endswith(".h5") else write_text)(tmp_path / "in")
    damage(root / file)
    refused(root, message)
