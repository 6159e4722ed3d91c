"""Every broken ShapeNetPart is refused in one line that names the file and the line; nothing appears at the target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from sightline.data.clouds.shapenet_part import ShapeNetPart
from sightline.errors import DataError
from tests.data.clouds.modelnet_writers import write_hdf5 as write_modelnet
from tests.data.clouds.shapenet_part_writers import NUM_POINTS, prepare, shape_of, write_hdf5, write_text

ONE_OF_TWO_FLAT = np.stack([np.ones((NUM_POINTS, 3)), np.eye(NUM_POINTS, 3)]).astype(np.float32)


def refused(source: Path, message: str) -> None:
    target = source.parent / "target"
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, target)
    assert "\n" not in str(caught.value)
    assert str(source.parent) in str(caught.value)
    assert not target.exists()


# --- what is no layout ------------------------------------------------------------------------------------------------


def test_places_without_a_layout(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: there is no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty: holds nothing, .* looked for: shapenet_part_seg_hdf5_data \(ply_data_train0")
    both = write_text(tmp_path / "both")
    (both / "ply_data_train0.h5").touch()
    refused(both, r"both: holds 2 layouts, give the folder of one: .*both \(hdf5\), .*both \(text\)")
    prepare(write_hdf5(tmp_path / "in"), tmp_path / "set")
    refused(tmp_path / "set", "set: is prepared already")


# --- the text benchmark: shapes ---------------------------------------------------------------------------------------


def with_line(line: int, text: str | None) -> Callable[[Path], None]:
    """Replace a line of a file, the first being 1, or cut the file in front of it."""

    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[: line - 1] if text is None else [*lines[: line - 1], text, *lines[line:]]))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_line(3, "0.1 0.2 0.3 0 0 1"), r"04225987/b\.txt:3: 6 columns, 7 are needed; found '0\.1 0\.2 0\.3"),
        (with_line(3, "0.1 0.2 0.3 0 0 1 44 44"), r"04225987/b\.txt:3: 8 columns, 7 are needed"),
        (with_line(8, "0.1 0.2 0,3 0 0 1 44"), r"04225987/b\.txt:8: '0,3' is not a number"),
        (with_line(2, "0.1 0.2 nan 0 0 1 44"), r"04225987/b\.txt:2: nan is not a finite number"),
        (with_line(2, "0.1 0.2 0.3 0 0 inf 44"), r"04225987/b\.txt:2: inf is not a finite number"),
        (
            with_line(4, "1e200 0.2 0.3 0 0 1 44"),
            r"04225987/b\.txt: a coordinate is 1e\+200; the file is damaged or in another format",
        ),
        (with_line(6, "0.1 0.2 0.3 0 1e200 1 44"), r"04225987/b\.txt:6: the normal is too long to be one"),
        (with_line(5, ""), r"04225987/b\.txt:5: 0 columns, 7 are needed"),
        (
            with_line(20, "0 0 0 0 0 1 43.000000"),
            r"04225987/b\.txt:20: part 43 is none of skateboard's \(44 to 46\); download the file again",
        ),
        (with_line(1, "0 0 0 0 0 1 -1"), r"04225987/b\.txt:1: part -1 is none of skateboard's"),
        (with_line(1, "0 0 0 0 0 1 50"), r"04225987/b\.txt:1: part 50 is none of skateboard's"),
        (with_line(7, "0 0 0 0 0 1 44.5"), r"04225987/b\.txt:7: part 44\.5 is none of skateboard's"),
        (with_line(1, None), r"04225987/b\.txt: holds no rows, 7 columns are needed"),
        (with_line(2, None), r"04225987/b\.txt: all 1 points coincide"),
        (Path.unlink, r"shuffled_train_file_list\.json:1: lists .*04225987/b\.txt, which is missing, as are 1 of 64"),
    ],
)
def test_broken_shapes(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    root = write_text(tmp_path / "in")
    change(root / "04225987/b.txt")
    refused(root, message)


def test_the_category_comes_from_the_synset_not_from_the_first_label(tmp_path: Path) -> None:
    """A mug's file that starts with the parts of a table is no table: it is wrong, and said to be."""
    root = write_text(tmp_path / "in")
    shape = shape_of("Table", "a")
    np.savetxt(root / "03797390/a.txt", np.column_stack([shape.points, shape.normals, shape.parts]))
    refused(root, r"03797390/a\.txt:1: part 4\d is none of mug's \(36 to 37\)")


# --- the text benchmark: lists ----------------------------------------------------------------------------------------


def with_entries(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """Change the entries of a list that is written with one entry a line, the first in line 2."""

    def rewrite(path: Path) -> None:
        entries = sorted(json.loads(path.read_text()))
        change(entries)
        path.write_text(json.dumps(entries, indent=1))

    return rewrite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"shuffled_val_file_list\.json: is missing, it lists the shapes of the validation split"),
        (
            lambda path: path.write_text('["shape_data/02691156/c",\n"sha'),
            r"val_file_list\.json:2: is not JSON \(Unterm",
        ),
        (lambda path: path.write_text("[" * 10**5), r"val_file_list\.json: cannot be read \(lists and mappings"),
        (lambda path: path.write_text("[]"), r"val_file_list\.json:1: is not a list of texts"),
        (lambda path: path.write_text('{"a": 1}'), r"val_file_list\.json:1: is not a list of texts"),
        (lambda path: path.write_text("[1, 2]"), r"val_file_list\.json:1: is not a list of texts"),
        (lambda path: path.write_bytes(b"\xff\xfe["), r"val_file_list\.json: cannot be read \('utf-8' codec"),
        (with_entries(lambda x: x.insert(3, "02691156/c")), r"json:5: '02691156/c' is not shape_data/<synset>/<id>"),
        (with_entries(lambda x: x.insert(3, "shape_data/../c")), r"json:5: 'shape_data/\.\./c' is not shape_data/"),
        (
            with_entries(lambda x: x.insert(2, "shape_data/02691157/c")),
            r"json:4: shape_data/02691157/c is of the synset 02691157, which synsetoffset2category\.txt does not name",
        ),
        (
            with_entries(lambda x: x.insert(2, x[0])),
            r"json:4: 02691156/c is listed twice, before at .*val_file_list\.json:2; download the lists again",
        ),
        (
            with_entries(lambda x: x.append("shape_data/02691156/a")),
            r"val_file_list\.json:18: 02691156/a is listed in the splits train and validation, before at .*train_file",
        ),
        (
            with_entries(lambda x: x.append("shape_data/02691156/lost")),
            r"val_file_list\.json:18: lists .*02691156/lost\.txt, which is missing, as are 1 of 65 files",
        ),
    ],
)
def test_broken_lists(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    root = write_text(tmp_path / "in")
    change(root / "train_test_split/shuffled_val_file_list.json")
    refused(root, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"synsetoffset2category\.txt: is missing, it names the categories"),
        (with_line(3, "Cap"), r"synsetoffset2category\.txt:3: 'Cap' is not a name and a synset"),
        (
            with_line(5, "Chairs\t03001627"),
            r"category\.txt:5: 'Chairs' is not one of the 16 categories; did you mean 'chair",
        ),
        (with_line(5, "Chair\t03001628"), r"category\.txt:5: gives 03001628 for Chair, it is 03001627"),
        (with_line(5, "Cap\t02954340"), r"category\.txt:5: names Cap a second time"),
        (with_line(16, None), r"list\.json:1: shape_data/04379243/. is of the synset 04379243, which synsetoff"),
    ],
)
def test_broken_names_of_categories(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    root = write_text(tmp_path / "in")
    change(root / "synsetoffset2category.txt")
    refused(root, message)


def test_a_missing_folder_of_lists(tmp_path: Path) -> None:
    root = write_text(tmp_path / "in")
    (root / "train_test_split").rename(root / "elsewhere")
    refused(root, r"shuffled_train_file_list\.json: is missing")


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def without(key: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(key)


def with_key(key: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = value

    return change


def with_value(key: str, place: tuple[int, ...], value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[key][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("data"),
            r"ply_data_train10\.h5: has no key 'data', it has label, pid; is it a file of ShapeNetPart\?",
        ),
        (without("pid"), r"ply_data_train10\.h5: has no key 'pid'"),
        (
            with_key("data", np.zeros((2, NUM_POINTS, 6), np.float32)),
            r"'data' is float32 \(2, 24, 6\), floats \(shapes",
        ),
        (with_key("data", np.zeros((0, NUM_POINTS, 3), np.float32)), r"'data' is float32 \(0, 24, 3\)"),
        (with_key("label", np.zeros((5, 1), np.uint8)), r"'label' is uint8 \(5, 1\), integers \(2, 1\) are needed"),
        (with_key("label", np.zeros((2, 1), np.float32)), r"'label' is float32"),
        (with_key("pid", np.zeros((2, 9), np.uint8)), r"'pid' is uint8 \(2, 9\), integers \(2, 24\) are needed"),
        (with_value("label", (1, 0), 16), r"train10\.h5: label\[1\] is 16, there are 16 categories \(0 to 15\)"),
        (with_value("pid", (1, 7), 50), r"train10\.h5: pid\[1, 7\]: part 50 is none of table's \(47 to 49\)"),
        (with_value("pid", (0, 3), 0), r"train10\.h5: pid\[0, 3\]: part 0 is none of skateboard's \(44 to 46\)"),
        (with_value("data", (1, 5, 2), np.nan), r"train10\.h5: shape 1: data\[5, 2\] is nan"),
        (with_key("data", ONE_OF_TWO_FLAT), r"train10\.h5: shape 0: all 24 points coincide"),
    ],
)
def test_broken_hdf5(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    root = write_hdf5(tmp_path / "in")
    with h5py.File(root / "ply_data_train10.h5", "r+") as file:
        change(file)
    refused(root, message)


def test_cut_and_missing_hdf5_files(tmp_path: Path) -> None:
    root = write_hdf5(tmp_path / "in")
    path = root / "ply_data_train3.h5"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    refused(root, r"ply_data_train3\.h5: is not a sound HDF5 file \(.*truncated file")
    path.unlink()
    refused(root, r"ply_data_train3\.h5: is missing, there are ply_data_train0\.h5, ")
    path.write_bytes(raw)
    (root / "ply_data_val0.h5").unlink()
    refused(root, r"in: holds no \*val\*\.h5, the validation split")


def test_files_of_modelnet_are_told_apart(tmp_path: Path) -> None:
    root = write_modelnet(tmp_path / "in")
    (root / "ply_data_val0.h5").write_bytes((root / "ply_data_test0.h5").read_bytes())
    refused(root, r"ply_data_train0\.h5: has no key 'pid', it has data, faceId, label")


def test_another_prepared_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none: there is no such folder; .*; to make it: sightline data prepare shapenet_"
    ):
        ShapeNetPart(split="train", root=str(tmp_path / "none"))
