"""Preparing is all or nothing, begins again after a kill, and leaves what is not its own alone; damage is found."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.areas.scans.sets.semantic_kitti import SemanticKitti
from sightline.contract.errors import DataError, RunError
from sightline.contract.types import SampleKey
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_set import add_digest, open_prepared, read_manifest, verify
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard, write_prepared_set
from tests.cases import run_each
from tests.data.clouds.modelnet_writers import prepare, write_off, write_text
from tests.data.preparing import flip_bit, kill_process, read_files
from tests.data.scans.lidar_writers import quiet, write_semantic_kitti


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A small set with normals, prepared from the text layout."""
    prepare(write_text(tmp_path / "release"), tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.processes
def test_a_killed_preparation_begins_again_and_what_is_not_its_own_is_refused(tmp_path: Path) -> None:
    source, work = write_text(tmp_path / "in"), tmp_path / "set.partial"
    prepare(source, tmp_path / "whole")
    kill_process("tests.data.clouds.modelnet_writers", 5, source, tmp_path / "set")
    assert (work / "content/train.points.npy").exists()
    (work / "unfinished").rename(tmp_path / "kept")
    with pytest.raises(DataError, match=r"set\.partial: is not unfinished work of sightline; delete it"):
        prepare(source, tmp_path / "set")
    assert (work / "content/train.points.npy").exists()
    (tmp_path / "kept").rename(work / "unfinished")
    prepare(source, tmp_path / "set")
    assert read_files(tmp_path / "set") == read_files(tmp_path / "whole")
    assert not work.exists()


def test_a_prepared_target_is_left_alone(tmp_path: Path) -> None:
    source = write_text(tmp_path / "in")
    prepare(source, tmp_path / "set")
    before = read_files(tmp_path / "set")
    calls: list[int] = []
    again = prepare(source, tmp_path / "set", progress=lambda done, total, message: calls.append(done))
    assert (again["outcome"], calls, read_files(tmp_path / "set")) == ("already there", [], before)
    with pytest.raises(DataError, match=r"holds 'modelnet40' prepared from .*in, not 'modelnet10'"):
        prepare(source, tmp_path / "set", "modelnet10")
    with pytest.raises(DataError, match=r"holds 'modelnet40' prepared from .*in, not 'modelnet40' from .*other"):
        prepare(write_off(tmp_path / "other"), tmp_path / "set")
    text = (source / "bed/bed_0001.txt").read_text()
    for changed in (text + "\n", text[:-2] + "7\n"):  # of the same size, as coordinates in another order
        (source / "bed/bed_0001.txt").write_text(changed)
        with pytest.raises(DataError, match=r"before its files changed \(size or time\); delete it to prepare it"):
            prepare(source, tmp_path / "set")
    assert read_files(tmp_path / "set") == before


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    """What was read before was stored with the sizes and times of after."""
    source = write_text(tmp_path / "in")
    with pytest.raises(DataError, match=r"in: its files changed while they were read; prepare the set again"):
        prepare(source, tmp_path / "set", progress=lambda *_: os.utime(source / "bed/bed_0001.txt"))
    assert not [*tmp_path.glob("set*")]


def test_a_clean_up_that_is_killed_leaves_a_folder_that_is_known_as_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_one_file(folder: Path) -> None:
        max(folder.rglob("*")).unlink()
        raise KeyboardInterrupt

    source = write_text(tmp_path / "in")
    text = (source / "bed/bed_0001.txt").read_text()
    (source / "bed/bed_0001.txt").write_text("none\n")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", remove_one_file)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "set")
    (source / "bed/bed_0001.txt").write_text(text)
    assert prepare(source, tmp_path / "set")["outcome"] == "prepared"
    assert not (tmp_path / "set.partial").exists()


def test_a_target_with_something_else_is_refused(tmp_path: Path) -> None:
    source = write_text(tmp_path / "in")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"set: holds thesis\.tex, which sightline did not prepare"):
        prepare(source, tmp_path / "set")
    with pytest.raises(DataError, match="is a file, which sightline did not prepare"):
        prepare(source, tmp_path / "set/thesis.tex")
    assert (tmp_path / "set/thesis.tex").read_text() == "precious"
    with pytest.raises(RunError, match=r"thesis\.tex/set\.partial: cannot write: not a directory"):
        prepare(source, tmp_path / "set/thesis.tex/set")
    (tmp_path / "empty").mkdir()
    assert prepare(source, tmp_path / "empty")["outcome"] == "prepared"


# --- damage to what was prepared --------------------------------------------------------------------------------------


def test_a_cut_missing_or_altered_file_is_found_on_opening(prepared: Path) -> None:
    path = prepared / "train.points.npy"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match=rf"points\.npy: has {len(raw) - 1} bytes, manifest\.json lists {len(raw)}"):
        ModelNet40(split="test", root=str(prepared))
    path.unlink()
    with pytest.raises(DataError, match=r"train\.points\.npy: is missing"):
        ModelNet40(split="test", root=str(prepared))
    path.write_bytes(raw)
    manifest = prepared / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"up_axis": "y"', '"up_axis": "z"'))
    with pytest.raises(DataError, match="altered after it was written"):
        ModelNet40(split="test", root=str(prepared))
    manifest.write_text("[1, 2")
    with pytest.raises(DataError, match="does not read as JSON"):
        ModelNet40(split="test", root=str(prepared))


def test_an_array_of_another_type_is_found_on_reading(prepared: Path) -> None:
    path = prepared / "train.points.npy"
    path.write_bytes(path.read_bytes().replace(b"'<f4'", b"'<i4'", 1))
    shapes = ModelNet40(split="train", root=str(prepared))
    with pytest.raises(DataError, match=r"train\.points\.npy: holds int32 .*, the manifest lists float32"):
        shapes[SampleKey(0, 0, 0)]
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match=r"train\.points\.npy: does not read as an array"):
        shapes[SampleKey(0, 0, 0)]


@pytest.mark.parametrize(
    "content",
    [
        b"PK\3\4 no archive",
        b"\x80\4 a pickle",
        b"\x93NUMPY\1\0" + (9001).to_bytes(2, "little") + b"-" * 9000 + b"\n",
        b"\x93NUMPY\1\0" + (99).to_bytes(2, "little")
        + b"{'descr':'<f4','fortran_order':False,'shape':(4611686018427387904,6,3)}".ljust(98) + b"\n",
    ],
)  # fmt: skip
def test_an_array_that_is_none_is_found_on_reading(prepared: Path, content: bytes) -> None:
    """Also where the manifest vouches for it."""
    (prepared / "train.points.npy").write_bytes(content)
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["files"]["train.points.npy"] = {"bytes": len(content), "sha256": "of no matter here"}
    (prepared / "manifest.json").write_text(json.dumps(add_digest(manifest)))
    shapes = ModelNet40(split="train", root=str(prepared))
    with pytest.raises(DataError, match=r"train\.points\.npy: does not read as an array"):
        shapes[SampleKey(0, 0, 0)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "does not read as JSON"),
        ('{"digest": ' + "1" * 5000 + "}", "does not read as JSON"),
        ('{"digest": "", "format": NaN, "set": 1, "source": 1, "columns": 1, "splits": 1, "files": 1}', "altered"),
        (
            json.dumps(add_digest({"format": 1})),
            "has format version 1, 3 is read; delete .*set and prepare the set again",
        ),
    ],
)
def test_a_manifest_that_is_none_is_one_line(prepared: Path, text: str, told: str) -> None:
    (prepared / "manifest.json").write_text(text)
    for read in (verify, read_manifest):
        with pytest.raises(DataError, match=rf"manifest\.json: .*{told}"):
            read(prepared)


@pytest.mark.parametrize("key", ["files", "splits", "columns"])
def test_a_set_has_no_files_elsewhere(prepared: Path, key: str) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    for entries in ("splits", "names", "contents") if key == "splits" else (key,):
        manifest[entries]["../../elsewhere"] = next(iter(manifest[entries].values()))
    (prepared / "manifest.json").write_text(json.dumps(add_digest(manifest)))
    with pytest.raises(DataError, match=r"names '\.\./\.\./elsewhere', which is not in its own folder"):
        verify(prepared)


@run_each(
    "column, form",
    [
        ("points", {"shape": [6, 2]}),
        ("points", {"dtype": "int64"}),
        ("normals", {"shape": []}),
        ("label", {"dtype": "float64"}),
        ("label", {"shape": [1]}),
    ],
)
def test_a_column_of_another_form_is_found_on_opening(prepared: Path, column: str, form: dict[str, Any]) -> None:
    """Also where the manifest vouches for it: two coordinates were a traceback of the first turn."""
    text = (prepared / "manifest.json").read_text()
    manifest = json.loads(text)
    manifest["columns"][column].update(form)
    (prepared / "manifest.json").write_text(json.dumps(add_digest(manifest)))
    with pytest.raises(DataError, match=rf"manifest\.json: its column '{column}' is .*, which cannot be; prepare"):
        ModelNet40(split="test", root=str(prepared))
    (prepared / "manifest.json").write_text(text)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_found_on_opening_and_never_waited_for(prepared: Path, make: Callable[[Path], None]) -> None:
    (prepared / "train.points.npy").unlink()
    make(prepared / "train.points.npy")
    for read in (verify, lambda root: ModelNet40(split="test", root=str(root))):
        with pytest.raises(DataError, match=r"train\.points\.npy: is missing"):
            read(prepared)


# --- a partial folder that is not ours alone --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["moved", "deleted", "copied"])
def test_a_partial_folder_that_is_no_longer_its_own_is_not_put_in_place(tmp_path: Path, kind: str) -> None:
    work = tmp_path / "set.partial"

    def disturb(done: int, total: int, message: str) -> None:
        if done != 5:
            return
        if kind == "deleted":
            shutil.rmtree(work)
            return
        work.rename(tmp_path / "elsewhere")
        if kind == "copied":
            shutil.copytree(tmp_path / "elsewhere", work)

    with pytest.raises(RunError, match=r"set\.partial: was moved or deleted while it was written"):
        prepare(write_text(tmp_path / "in"), tmp_path / "set", progress=disturb)
    assert not (tmp_path / "set").exists()


def test_two_processes_do_not_prepare_one_set(tmp_path: Path) -> None:
    source = write_text(tmp_path / "in")

    def again(done: int, total: int, message: str) -> None:
        with pytest.raises(RunError, match=r"set: another process writes this folder; wait for it"):
            prepare(source, tmp_path / "set")

    prepare(source, tmp_path / "set", progress=again)
    prepare(source, tmp_path / "whole")
    assert read_files(tmp_path / "set") == read_files(tmp_path / "whole")


# --- Rows without elements: kept where columns allow them, refused where they do not ---


LENGTHS = {"train": [0, 2, 0, 0, 3, 0], "test": [0, 0]}


def plan(root: Path, *, can_be_empty: bool) -> PreparationPlan:
    """Rows of these lengths that count up, in two parts a split."""
    columns = {
        "values": ColumnSpec((2,), "float64", True, can_be_empty),
        "flag": ColumnSpec((), "bool", True, can_be_empty),
    }

    def rows(split: str, lengths: Sequence[int], first: int) -> Iterator[SampleRow]:
        for number, length in enumerate(lengths, start=first):
            values = np.arange(2 * length, dtype=np.float64).reshape(length, 2) + number
            yield SampleRow(
                f"{split}{number}", f"row {number}", {"values": values, "flag": np.ones(length, dtype=bool)}
            )

    def part(split: str, first: int, last: int) -> Shard:
        chosen = LENGTHS[split][first:last]
        return Shard(split, f"{split} {first}", len(chosen), (), lambda: rows(split, chosen, first))

    halves = [part(split, *each) for split, n in (("train", 3), ("test", 1)) for each in ((0, n), (n, 2 * n))]
    return PreparationPlan("own", "made", root, columns, tuple(halves), {}, lambda _: {})


def test_empty_rows_come_back_empty(tmp_path: Path) -> None:
    write_prepared_set(plan(tmp_path, can_be_empty=True), tmp_path / "set", progress=quiet)
    prepared = open_prepared(tmp_path / "set", set_names=("own",))
    for split, lengths in LENGTHS.items():
        rows = list(prepared.rows(split, "values"))
        assert [row.shape for row in rows] == [(length, 2) for length in lengths]
        assert np.diff(prepared.offsets(split)).tolist() == lengths
    assert prepared.row("train", "values", 4).tolist() == [[4, 5], [6, 7], [8, 9]]
    assert prepared.manifest["ranges"]["values"] == [1.0, 9.0]
    verify(tmp_path / "set")


def test_empty_rows_are_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0: values has the shape \(0, 2\), .* with at least one point"):
        write_prepared_set(plan(tmp_path, can_be_empty=False), tmp_path / "set", progress=quiet)


# --- Files listed in place: contents by verify, and listings that lead elsewhere ---


def prepare_listed(source: Path, target: Path, progress: Any = quiet) -> dict[str, Any]:
    return SemanticKitti.prepare(source=source, target=target, name="semantic_kitti", progress=progress)


@pytest.fixture
def listed_set(tmp_path: Path) -> Path:
    write_semantic_kitti(tmp_path / "kitti", {"00": 2, "08": 1})
    prepare_listed(tmp_path / "kitti", tmp_path / "set")
    return tmp_path / "set"


def test_a_byte_that_changed_in_place_is_found_by_verify_alone(listed_set: Path, tmp_path: Path) -> None:
    assert verify(listed_set) == len(read_manifest(listed_set)["files"]) + 6
    path = tmp_path / "kitti/sequences/08/velodyne/000000.bin"
    times = path.stat()
    flip_bit(path, 5)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    SemanticKitti(split="test", root=str(listed_set))[SampleKey(0, 0, 0)]
    with pytest.raises(DataError, match=r"08/velodyne/000000\.bin: differs from what it held when .* \(SHA-256\)"):
        verify(listed_set)


def test_an_opened_set_stays_the_same_where_the_program_changes_its_folder(
    listed_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays are mapped on first use, also by worker processes; the advice was to prepare the set again."""
    monkeypatch.chdir(listed_set.parent)
    scans = SemanticKitti(split="test", root=listed_set.name)
    monkeypatch.chdir("/")
    expected = SemanticKitti(split="test", root=str(listed_set))[SampleKey(0, 0, 0)]
    for opened in (pickle.loads(pickle.dumps(scans)), scans):
        assert torch.equal(opened[SampleKey(0, 0, 0)]["points"], expected["points"])


LISTED = ("sequences/00/velodyne/000000.bin", 1, 1, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (lambda m, path=path: m["listed_files"]["00"][1].append([path, 1, 1, ""]), "lists '.*', which is not below")
            for path in ("../../etc/passwd", "/etc/passwd", "a/../../b", "", "..", "a\0b")
        ),
        (lambda m: m["listed_files"].update({"00": [[["x"]], [["y"]]]}), "its 'listed_files.00.0.0.1' is wrong"),
        (lambda m: m["listed_files"].update({"00": [[LISTED]]}), "its 'listed_files' are not those of the .* rows"),
        (lambda m: m["listed"].update(root="../kitti"), r"lists files below '\.\./kitti', no absolute path"),
        (lambda m: m.pop("listed"), "it has one of 'listed' and 'listed_files' alone"),
    ],
)  # fmt: skip
def test_a_forged_listing_is_refused(listed_set: Path, change: Callable[[Any], object], message: str) -> None:
    manifest = json.loads((listed_set / "manifest.json").read_text())
    change(manifest)
    (listed_set / "manifest.json").write_text(json.dumps(add_digest(manifest)))
    for read in (verify, lambda root: SemanticKitti(split="train", root=str(root))[SampleKey(0, 0, 0)]):
        with pytest.raises(DataError, match=rf"manifest\.json: {message}"):
            read(listed_set)
