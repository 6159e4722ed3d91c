"""HDF5 files: the numbers that were written, or an error naming file and key; never zeros, never another file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.files.hdf5_files import TEXT, open_hdf5, read_hdf5_arrays
from tests.cases import run_each
from tests.data.clouds.modelnet_writers import write_hdf5 as write_modelnet
from tests.data.clouds.scanobjectnn_writers import write_variant
from tests.data.clouds.shapenet_part_writers import write_hdf5 as write_parts
from tests.data.depth.depth_trees import write_itop
from tests.data.files.refusals import refused

POINTS = np.random.default_rng(0).normal(size=(40, 3))
OTHER = "other"


def never_written(file: h5py.File, key: str, values: np.ndarray) -> None:
    file.create_dataset(key, values.shape, values.dtype)


def no_chunk_written(file: h5py.File, key: str, values: np.ndarray) -> None:
    file.create_dataset(key, values.shape, values.dtype, chunks=(1, *values.shape[1:]), compression="gzip")


def a_chunk_missing(file: h5py.File, key: str, values: np.ndarray) -> None:
    no_chunk_written(file, key, values)
    file[key][1:] = values[1:]


def beyond_all_sizes(file: h5py.File, key: str, values: np.ndarray) -> None:
    file.create_dataset(key, (2**40, *values.shape[1:]), values.dtype, chunks=(1, *values.shape[1:]))


def raw_storage(file: h5py.File, key: str, values: np.ndarray) -> None:
    path = Path(file.filename).with_name(f"{OTHER}.bin")
    path.write_bytes(values.tobytes())
    file.create_dataset(key, values.shape, values.dtype, external=[(str(path), 0, values.nbytes)])


def other_file(file: h5py.File, key: str, values: np.ndarray) -> str:
    path = Path(file.filename).with_name(f"{OTHER}.hdf5")
    with h5py.File(path, "w") as other:
        other[key] = values
    return str(path)


def external_link(file: h5py.File, key: str, values: np.ndarray) -> None:
    file[key] = h5py.ExternalLink(other_file(file, key, values), key)


def soft_link_outward(file: h5py.File, key: str, values: np.ndarray) -> None:
    file["far"] = h5py.ExternalLink(other_file(file, key, values), "/")
    file[key] = h5py.SoftLink(f"/far/{key}")


def virtual(file: h5py.File, key: str, values: np.ndarray) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(other_file(file, key, values), key, values.shape)
    file.create_virtual_dataset(key, layout)


def link_to_a_pipe(file: h5py.File, key: str, values: np.ndarray) -> None:
    """Opening it would wait for a writer for ever."""
    os.mkfifo(Path(file.filename).with_name(OTHER))
    file[key] = h5py.ExternalLink(OTHER, key)


def group(file: h5py.File, key: str, values: np.ndarray) -> None:
    file.create_group(key)["inner"] = values


def unknown_filter(file: h5py.File, key: str, values: np.ndarray) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(values.shape)
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    space, kind = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(values.dtype)
    h5py.h5d.create(file.id, key.encode(), kind, space, plan).write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def bomb(file: h5py.File, key: str, values: np.ndarray) -> None:
    file.create_dataset(key, data=np.zeros((2**20, 3)), compression="gzip")


def bomb_of_one_chunk(file: h5py.File, key: str, values: np.ndarray) -> None:
    """Forty rows, in a chunk of a million that is unpacked whole."""
    made = file.create_dataset(key, (2**20, 3), maxshape=(None, 3), chunks=(2**20, 3), compression="gzip", dtype="f8")
    made[:40] = values[:40]
    made.resize((40, 3))


def objects_of(kind: np.dtype) -> Callable[[h5py.File, str, np.ndarray], object]:
    return lambda file, key, values: file.create_dataset(key, (4,), kind)


BROKEN: dict[Callable[[h5py.File, str, np.ndarray], object], str] = {
    never_written: r"960 bytes, and 0 are stored .* was not written to the end",
    no_chunk_written: r"960 bytes, and 0 are stored .* was not written to the end",
    a_chunk_missing: r"was not written to the end",
    beyond_all_sizes: r"claims to be float64 \(1099511627776, 3\)",
    raw_storage: r"is stored in other files",
    external_link: r"is a link, which may lead to any file",
    soft_link_outward: r"is a link, which may lead to any file",
    link_to_a_pipe: r"is a link, which may lead to any file",
    virtual: r"is stored in other files",
    group: r"is a group, an array is needed",
    unknown_filter: r"is compressed by the HDF5 filter 32015, which is not installed",
    bomb: r"which no cloud or image does",
    bomb_of_one_chunk: r"which no cloud or image does",
    lambda file, key, values: file.__setitem__(key, h5py.SoftLink("/nothing")): r"is a link",
    lambda file, key, values: file.__setitem__(key, h5py.SoftLink(f"/{key}")): r"is a link",
    lambda file, key, values: file.__setitem__(key, np.dtype("f8")): r"is a type, an array is needed",
    lambda file, key, values: file.__setitem__(key, h5py.Empty("f8")): r"not an array of numbers",
    lambda file, key, values: file.__setitem__(key, values + 1j): r"is complex128, not an array of numbers",
    lambda file, key, values: file.__setitem__(key, np.zeros(4, [("x", "f4")])): r"not an array of numbers",
    objects_of(h5py.string_dtype()): r"is object, not an array of numbers",
    objects_of(h5py.vlen_dtype("f4")): r"is object, not an array of numbers",
    objects_of(h5py.ref_dtype): r"is object, not an array of numbers",
}


def read_points(path: Path) -> None:
    with open_hdf5(path, what="a set") as opened:
        opened.array("points")


@run_each("make", BROKEN)
def test_refused_in_one_line_naming_file_and_key(
    make: Callable[..., object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("h5") / "a.h5"
    with h5py.File(path, "w") as file:
        make(file, "points", POINTS)
    refused(path, "a.h5: points", BROKEN[make], read=read_points)


def test_a_key_that_is_missing_and_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["ring"] = POINTS
    refused(path, r"has no key 'points', it has ring; is it a set\?$", read=read_points)
    path.write_bytes(path.read_bytes().replace(b"ring\0", b"r\xc0ng\0"))
    refused(path, "not a sound HDF5 file", read=read_hdf5_arrays)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, r"is not a sound HDF5 file \(.*truncated", read=read_hdf5_arrays)


@run_each(
    "options",
    [
        {},
        {"chunks": (7, 2)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "maxshape": (None, 3), "chunks": (64, 3)},
    ],
)
def test_whatever_was_written_is_read(options: dict[str, object], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("points", data=POINTS, **options)
        file["number"], file["none"] = 3, np.zeros((0, 3), dtype="f4")
        file["mask"] = np.ones(0, dtype="i1")
    found = read_hdf5_arrays(tmp_path / "a.h5")
    np.testing.assert_array_equal(found["points"], POINTS)
    assert found["number"] == 3
    assert (found["none"].shape, set(found)) == ((0, 3), {"points", "number", "none", "mask"})


def test_a_mask_of_one_number_is_no_bomb(tmp_path: Path) -> None:
    """ScanObjectNN's mask without background: 2,048 equal numbers for each of 11,416 objects, 94 MB."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("mask", data=np.full(2**23, -1, dtype="i4"), compression="gzip")
    assert (tmp_path / "a.h5").stat().st_size * 100 < 2**25
    assert read_hdf5_arrays(tmp_path / "a.h5")["mask"].shape == (2**23,)


def test_text_where_text_is_asked_for(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["fixed"], file["any"] = np.array([b"ab", b"c"]), ["d", "ef"]
        file["numbers"], file["lists"] = POINTS, np.zeros(0, dtype=h5py.ref_dtype)
    with open_hdf5(tmp_path / "a.h5") as opened:
        assert opened.array("fixed", kinds=TEXT)[...].tolist() == [b"ab", b"c"]
        assert opened.array("any", kinds=TEXT)[...].tolist() == [b"d", b"ef"]
        for key in ("numbers", "lists"):
            with pytest.raises(DataError, match=f"{key} is .*, not an array of text"):
                opened.array(key, kinds=TEXT)


SETS: dict[str, tuple[Callable[[Path], object], str, dict[str, str]]] = {
    "modelnet40": (write_modelnet, "ply_data_train10.h5", {}),
    "shapenet_part": (write_parts, "ply_data_train10.h5", {}),
    "scanobjectnn": (
        lambda root: write_variant(root, "obj_bg"),
        "main_split/training_objectdataset.h5",
        {"variant": "obj_bg"},
    ),
    "itop": (
        lambda root: write_itop(root, {"train": ["00_00000", "01_00001"], "test": ["02_00000"]}),
        "ITOP_side_train_depth_map.h5",
        {},
    ),
}


@run_each("name", SETS)
def test_no_set_is_prepared_of_what_its_files_do_not_hold(name: str, tmp_path: Path) -> None:
    """Lacking chunks would be shapes of zeros; so would rows that were never written, which count as stored."""
    write, file_name, options = SETS[name]
    write(tmp_path / name)
    prepare = partial(registry.data.get_entry(name).builder.prepare, name=name, progress=lambda *told: None, **options)
    path = tmp_path / name / file_name
    whole = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["data"][-1] = 0
    if name != "itop":
        with pytest.raises(DataError, match=rf"{file_name}: (shape|object) \d+: all \d+ points coincide"):
            prepare(source=tmp_path / name, target=tmp_path / f"set_{name}")
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        a_chunk_missing(file, "data", file.pop("data")[...])
    with pytest.raises(DataError, match=rf"{file_name}: data claims"):
        prepare(source=tmp_path / name, target=tmp_path / f"other_{name}")
    assert not (tmp_path / f"other_{name}").exists()
