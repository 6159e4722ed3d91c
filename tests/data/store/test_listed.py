"""Files listed in place: contents by verify, unfinished preparations, and listings that lead elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sightline.data.scans.semantic_kitti import SemanticKitti
from sightline.data.store.prepared_set import PreparedSet, add_digest, compute_sha256, read_manifest, verify
from sightline.errors import DataError
from sightline.types import SampleKey
from tests.data.scans.lidar_writers import quiet, write_semantic_kitti


class Killed(BaseException):
    """Stands for a process that ends in the middle."""


def prepare(source: Path, target: Path, progress: Any = quiet) -> dict[str, Any]:
    return SemanticKitti.prepare(source=source, target=target, name="semantic_kitti", progress=progress)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_semantic_kitti(tmp_path / "kitti", {"00": 2, "08": 1})
    prepare(tmp_path / "kitti", tmp_path / "set")
    return tmp_path / "set"


def rewrite(prepared: Path, listing: Any, **listed: object) -> None:
    """Put another listing of sequence 00 in place, vouched for by the manifest."""
    path = prepared / "00.listed.json"
    path.write_text(json.dumps(listing))
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": compute_sha256(path)}
    manifest["listed"] |= listed
    (prepared / "manifest.json").write_text(json.dumps(add_digest(manifest)))


def test_a_byte_that_changed_in_place_is_found_by_verify_alone(prepared: Path, tmp_path: Path) -> None:
    assert verify(prepared) == len(read_manifest(prepared)["files"]) + 6
    path = tmp_path / "kitti/sequences/08/velodyne/000000.bin"
    times, content = path.stat(), bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    SemanticKitti(split="test", root=str(prepared))[SampleKey(0, 0, 0)]
    with pytest.raises(DataError, match=r"08/velodyne/000000\.bin: differs from what it held when .* \(SHA-256\)"):
        verify(prepared)


def test_a_killed_preparation_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    write_semantic_kitti(tmp_path / "kitti", {"00": 2, "01": 2, "08": 1})
    prepare(tmp_path / "kitti", tmp_path / "whole")

    def die(done: int, total: int, message: str) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        prepare(tmp_path / "kitti", tmp_path / "set", die)
    messages: list[str] = []
    prepare(tmp_path / "kitti", tmp_path / "set", lambda done, total, message: messages.append(message))
    assert messages[0] == "00/000000 to 00/000001: kept from the run before"
    assert {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "..", "a\0b"])
def test_a_listing_that_leads_out_of_its_folder_is_refused(prepared: Path, path: str) -> None:
    rows = json.loads((prepared / "00.listed.json").read_text())
    rows[1][0][0] = path
    rewrite(prepared, rows)
    for read in (verify, lambda root: SemanticKitti(split="train", root=str(root))[SampleKey(0, 0, 0)]):
        with pytest.raises(DataError, match=r"00\.listed\.json: lists '.*', which is not below .*kitti"):
            read(prepared)


@pytest.mark.parametrize("listing", [[], {"a": 1}, 3, [[["x"]], [["y"]]], [[[1, 2, 3, 4]], []], [1, 2]])
def test_a_listing_of_another_form_is_refused(prepared: Path, listing: object) -> None:
    rewrite(prepared, listing)
    with pytest.raises(DataError, match=r"00\.listed\.json: (is not a list of files|lists \d+ rows of 2)"):
        PreparedSet(prepared, read_manifest(prepared)).listing("00")


def test_the_listed_folder_is_named_in_full(prepared: Path) -> None:
    rewrite(prepared, json.loads((prepared / "00.listed.json").read_text()), root="../kitti")
    with pytest.raises(DataError, match=r"lists files below '\.\./kitti', no absolute path"):
        read_manifest(prepared)
