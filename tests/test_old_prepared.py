"""Prepared folders as users have them, `tests/old_prepared`: opened by a config, they give the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.contract.registry import data
from tests.command import run_here
from tests.old_prepared.make import HERE, RECORD, SETS, VIEWS, describe, unpack
from tests.old_runs.test_old_runs import assert_close


@pytest.mark.parametrize("name", SETS)
def test_an_old_folder_gives_its_samples(name: str, tmp_path: Path) -> None:
    root = unpack(name, tmp_path)
    expected = json.loads(RECORD.read_text())[name]
    assert_close(describe(name, root, tmp_path / "config.yaml"), expected, name)
    done = run_here("data", "verify", root)
    assert done.code == 0, done.err
    assert run_here("data", "info", root).code == 0


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    root = unpack("psb19", tmp_path)
    content = bytearray((root / "train.points.npy").read_bytes())
    content[-1] ^= 1
    (root / "train.points.npy").write_bytes(content)
    expected = json.loads(RECORD.read_text())["psb19"]
    changed = describe("psb19", root, tmp_path / "config.yaml")
    assert run_here("data", "verify", root).code == 2
    assert changed.keys() == expected.keys()


def test_every_kind_of_set_that_is_prepared_is_kept() -> None:
    younger = {"depth_folder"}  # than the folders that are kept
    prepared = {name for name in data.names() if hasattr(data.get_entry(name).builder, "prepare")}
    assert prepared - younger == set(SETS) - {VIEWS}
    assert {path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz")} == set(SETS)
