"""Prepared sets whose manifest was changed and sealed again, or whose files are links out of the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.data.clouds.modelnet import ModelNet40
from sightline.data.store.prepared_set import add_digest, read_manifest, verify
from sightline.errors import DataError
from tests.data.clouds.modelnet_writers import prepare, write_text


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged")
    prepare(write_text(folder / "release"), folder / "set")
    return folder / "set"


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    target = tmp_path / "set"
    target.mkdir()
    for path in sound.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def forge(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(add_digest(manifest)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m.update(set=[]), "its 'set' is not a name"),
        (lambda m: m.update(files=[]), "its 'files' is a list"),
        (lambda m: m["files"]["train.label.npy"].pop("bytes"), "'bytes' of 'train.label.npy'"),
        (lambda m: m["splits"]["train"].pop("num_rows"), "'num_rows' of 'train'"),
        (lambda m: m["splits"]["train"].update(num_rows=-1), "'num_rows' of 'train'"),
        (lambda m: m["splits"]["train"].update(class_counts=[1]), "'class_counts' of 'train'"),
        (lambda m: m["columns"]["points"].update(shape=[2**70]), "'shape' of 'points'"),
        (lambda m: m["columns"]["points"].update(dtype="O"), "'dtype' of 'points'"),
        (lambda m: m["columns"].update({"../points": m["columns"]["points"]}), "not in its own folder"),
        (lambda m: m.update(class_names=3), "its 'class_names'"),
        (lambda m: m.update(num_elements={"train": "many"}), "its 'num_elements'"),
        (lambda m: m.update(listed={}), "its 'listed' has no 'root'"),
        (lambda m: m.update(preparation=[1]), "its 'preparation' is a list, and must be a dict"),
        (lambda m: m.update(source="here"), "its 'source' is a str, and must be a dict"),
        (lambda m: m.update(unit=["m"]), "its 'unit' is a list, and must be a str"),
        (lambda m: m["ranges"].update(points="wide"), "its 'ranges' have no two ends of 'points'"),
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
    with pytest.raises(DataError, match=r"label of row 1 of 'train' is 4119, there are 40 classes"):
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
