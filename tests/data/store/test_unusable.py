"""Files that cannot be used are all named at once; sets that were changed and sealed again are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.areas.pose.sets.hand_sets import Hands2017, MsraHands
from sightline.contract.errors import DataError
from sightline.store.prepared.prepared_set import add_digest, read_manifest, verify
from tests.command import run_here
from tests.data.clouds import scanobjectnn_writers
from tests.data.clouds.cloud_writers import prepare_folder, write_folder
from tests.data.clouds.modelnet_writers import prepare, write_text
from tests.data.depth.depth_trees import no_progress, write_hands2017, write_msra
from tests.data.preparing import cut


def prepare_by_command(source: Path, target: Path) -> tuple[int, list[str]]:
    done = run_here("data", "prepare", "cloud_folder", "--from", source, "--to", target, "up_axis=z", "num_points=64")
    return done.code, done.err.partition("error: ")[2].splitlines()


def test_a_few_are_all_printed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", suffix=".npy")
    files = sorted(source.rglob("*.npy"))
    for place in (0, 3, 12, 29):
        cut(files[place])
    np.save(files[14], np.full((20, 3), np.nan))
    np.save(files[15], np.zeros((20, 3)))  # no extent: found after reading
    code, lines = prepare_by_command(source, tmp_path / "set")
    assert code == 2
    assert lines[0] == "6 of 30 samples cannot be used; mend their files, or leave them out:"
    faulty = [str(files[place]) for place in (0, 3, 12, 29)]
    assert len(lines) == 7
    assert all(any(f"  {name}: " in line for line in lines) for name in [*faulty, str(files[14]), str(files[15])])
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_many_are_ten_lines_and_a_file_with_all(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", suffix=".npy")
    files = sorted(source.rglob("*.npy"))
    sound = {path: path.read_bytes() for path in files}
    for path in files[::2]:
        cut(path)
    code, lines = prepare_by_command(source, tmp_path / "set")
    report = tmp_path / "set.unusable.txt"
    assert (code, len(lines)) == (2, 10)
    assert lines[-1] == f"  and 7 more; all are in {report}"
    listed = report.read_text().splitlines()
    assert len(listed) == 15
    assert {line.split(": ")[0] for line in listed} == set(map(str, files[::2]))
    for path, content in sound.items():
        path.write_bytes(content)
    assert prepare_by_command(source, tmp_path / "set")[0] == 0
    assert not report.exists()


@pytest.mark.parametrize("repair", ["mended", "left out", "other option"])
def test_after_the_repair_no_folder_is_in_the_way(tmp_path: Path, repair: str) -> None:
    source = write_folder(tmp_path / "in", suffix=".npy")
    faulty = sorted(source.rglob("*.npy"))[-1]
    sound = faulty.read_bytes()
    cut(faulty)
    with pytest.raises(DataError):
        prepare_folder(source, tmp_path / "set")
    assert not (tmp_path / "set.partial").exists()
    faulty.unlink() if repair == "left out" else faulty.write_bytes(sound)
    options = {"num_points": 32} if repair == "other option" else {}
    manifest = prepare_folder(source, tmp_path / "set", **options)
    assert manifest["outcome"] == "prepared"
    assert not (tmp_path / "set.partial").exists()
    assert manifest["files"] == prepare_folder(source, tmp_path / "whole", **options)["files"]


def lines_of(caught: pytest.ExceptionInfo[DataError]) -> list[str]:
    return str(caught.value).split("\n  ")


def test_every_depth_image_of_a_list_is_named(tmp_path: Path) -> None:
    """Frames are read by the thousand; the first that is cut short does not hide the others."""
    write_msra(tmp_path / "hands", {"P0/1": 5, "P1/5": 1})
    write_hands2017(tmp_path / "source")
    images = sorted((tmp_path / "source/training/images").iterdir())
    windows = sorted((tmp_path / "hands/P0/1").glob("*.bin"))
    for path in (images[0], images[2], windows[1], windows[4]):
        cut(path)
    for kind, source, faulty in ((MsraHands, "hands", windows[1::3]), (Hands2017, "source", images[0:3:2])):
        with pytest.raises(DataError, match=r"^2 of \d+ samples cannot be used") as caught:
            kind.prepare(source=tmp_path / source, target=tmp_path / "set", name=kind.set_name, progress=no_progress)
        assert [line.split(": ")[0] for line in lines_of(caught)[1:]] == list(map(str, faulty))


def test_every_shape_of_an_array_is_named(tmp_path: Path) -> None:
    source = scanobjectnn_writers.write_variant(tmp_path / "h5_files", "obj_bg")
    path = source / "main_split/training_objectdataset.h5"
    with h5py.File(path, "r+") as file:
        file["data"][3] = 0.0
        file["data"][7, 2, 1] = np.nan
    with pytest.raises(DataError, match=r"^2 of 46 samples") as caught:
        scanobjectnn_writers.prepare(source, tmp_path / "set")
    assert re.findall(r"\n  .*\.h5: (object \d+)", str(caught.value)) == ["object 3", "object 7"]


def test_a_part_that_cannot_be_begun_does_not_hide_the_others(tmp_path: Path) -> None:
    """Labels of one gesture that are no numbers, and an image of another."""
    write_msra(tmp_path / "hands", {"P0/1": 2, "P1/5": 2})
    (tmp_path / "hands/P0/1/joint.txt").write_text("2\n1 2\n1 2\n")
    cut(tmp_path / "hands/P1/5/000001_depth.bin")
    with pytest.raises(DataError, match=r"^2 of 4 samples") as caught:
        MsraHands.prepare(source=tmp_path / "hands", target=tmp_path / "set", name="msra_hands", progress=no_progress)
    assert "joint.txt:2: 2 columns, 63 are needed" in lines_of(caught)[1]


# --- sets that were changed and sealed again --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged")
    prepare(write_text(folder / "release"), folder / "set")
    return folder / "set"


@pytest.fixture
def root(prepared_set: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(prepared_set, tmp_path / "set"))


def forge(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(add_digest(manifest)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m.update(set=[]), "its 'set' is wrong"),
        (lambda m: m.update(files=[]), "its 'files' is wrong"),
        (lambda m: m["files"]["train.label.npy"].pop("bytes"), "its 'files.train.label.npy.bytes' is wrong"),
        (lambda m: m["splits"]["train"].update(num_rows=-1), "its 'splits.train.num_rows' is wrong"),
        (lambda m: m["splits"]["train"].update(class_counts=[-1]), "its 'splits.train.class_counts.0' is wrong"),
        (lambda m: m["columns"]["points"].update(shape=[2**70]), "its 'columns.points.shape.0' is wrong"),
        (lambda m: m["columns"]["points"].update(dtype="O"), "its 'columns.points.dtype' is wrong"),
        (lambda m: m["names"]["train"].pop(), "its 'names' are not those of the .* rows of its splits"),
        (lambda m: m.update(class_names=3), "its 'class_names'"),
        (lambda m: m.update(num_elements={"train": "many"}), "its 'num_elements.train' is wrong"),
        (lambda m: m.update(listed={}), "its 'listed.root' is wrong: Field required"),
        (lambda m: m.update(preparation=[1]), "its 'preparation' is wrong: Input should be a valid dictionary"),
        (lambda m: m.update(source="here"), "its 'source' is wrong"),
        (lambda m: m.update(unit=["m"]), "its 'unit' is wrong: Input should be a valid string"),
        (lambda m: m["ranges"].update(points="wide"), "its 'ranges.points' is wrong"),
    ],
)
def test_a_forged_manifest_is_one_line(root: Path, change: Callable[[dict[str, Any]], object], word: str) -> None:
    forge(root, change)
    with pytest.raises(DataError, match=word) as caught:
        read_manifest(root)
    assert str(root / "manifest.json") in str(caught.value)


def test_a_missing_entry_is_named(root: Path) -> None:
    """Whatever a set of some kind needs beyond what all have."""
    forge(root, lambda manifest: manifest.pop("layout"))
    with pytest.raises(DataError, match=r"its entries format, set, .*, \.\.\. lack 'layout'; prepare the set again"):
        _ = ModelNet40(root=str(root), split="train").info


def test_a_label_without_a_class_is_named(root: Path) -> None:
    labels = np.load(root / "train.label.npy")
    labels[1] = 4119
    np.save(root / "train.label.npy", labels)
    message = "label 1 of 'train' is 4119, there are 40 classes (0 to 39); prepare the set again"
    with pytest.raises(DataError, match=re.escape(message)):
        ModelNet40(root=str(root), split="train")


def test_a_header_of_a_gigabyte_is_not_waited_for(root: Path) -> None:
    path = root / "train.label.npy"
    content = path.read_bytes()
    path.write_bytes(b"\x93NUMPY\x02\x00" + (2**30).to_bytes(4, "little") + content[12:])
    with pytest.raises(DataError, match=r"train\.label\.npy"):
        ModelNet40(root=str(root), split="train")


@pytest.mark.parametrize("name", ["manifest.json", "train.points.npy"])
def test_a_link_out_of_the_folder_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    os.rename(root / name, tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{name}: is a link to .*elsewhere, out of the prepared folder"):
        verify(root)


def test_the_folder_and_links_within_it_may_be_links(root: Path, tmp_path: Path) -> None:
    os.rename(root / "train.points.npy", root / "kept.npy")
    (root / "train.points.npy").symlink_to("kept.npy")
    (tmp_path / "other").symlink_to(root)
    assert verify(tmp_path / "other") > 0
