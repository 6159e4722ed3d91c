"""Run directories whose files were changed by hand, or are links out of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import CheckpointError, PluginError, UserError
from sightline.plugins import check_recorded
from sightline.runs.checkpoint import resolve
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.runs.run_directory import assert_own_files, load_document, read_facts

LINEAGE = {
    "from": "runs/a",
    "checkpoint": "step_1",
    "sha256": "0" * 64,
    "modules": None,
    "match": {"matched": 2, "total": 2, "filled": None},
    "source": {"model": "pointnet", "task": "classify", "data": {"name": "modelnet40"}},
    "lineage": None,
}
CONVERTED = {"file": "a.pth", "layout": "x", "sha256": "0" * 64}


@pytest.mark.parametrize("sound", [LINEAGE, CONVERTED, {**LINEAGE, "lineage": CONVERTED}])
def test_a_sound_lineage_is_described(tmp_path: Path, sound: dict[str, Any]) -> None:
    (tmp_path / "lineage.json").write_text(json.dumps(sound))
    assert describe_lineage(read_lineage(tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"sha256": 3}, {"match": []}, {"match": {}}, {"source": {"model": "a"}}, {"lineage": []}, {"lineage": {}}],
)
def test_a_forged_lineage_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "lineage.json").write_text(json.dumps(LINEAGE | change))
    with pytest.raises(UserError, match=r"lineage\.json: is not a lineage as runs write it"):
        read_lineage(tmp_path)


@pytest.mark.parametrize("count", [3.5, "3", -1, True, 2**40, [3], None])
def test_a_count_of_nothing_among_the_facts_is_one_line(tmp_path: Path, count: Any) -> None:
    (tmp_path / "facts.json").write_text(json.dumps({"num_classes": count}))
    with pytest.raises(UserError, match=r"facts\.json: num_classes is .*, a count is needed"):
        read_facts(tmp_path)


PLUGIN = {"name": "a.py", "path": "/a.py", "sha256": "0"}


@pytest.mark.parametrize("listed", [3.5, {"a": 1}, ["a"], [[]], [{**PLUGIN, "name": []}], [{"name": "a.py"}]])
def test_a_forged_list_of_plugins_is_one_line(tmp_path: Path, listed: Any) -> None:
    with pytest.raises(PluginError, match=r"environment\.json lists plugins in another form"):
        check_recorded(listed, (), run=tmp_path)


@pytest.mark.parametrize("key", ["name", "path"])
def test_a_plugin_of_a_name_too_long_for_a_disk_is_one_line(tmp_path: Path, key: str) -> None:
    with pytest.raises(PluginError, match="was made with the plugin "):
        check_recorded([{**PLUGIN, key: "x" * 5000}], (), run=tmp_path)


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deep_json_is_one_line(tmp_path: Path, depth: int) -> None:
    (tmp_path / "final.json").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(UserError, match=r"final\.json: cannot be read: .* nested more than 200 deep") as caught:
        load_document(tmp_path / "final.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["facts.json", "checkpoints", "checkpoints/step_1"])
def test_a_link_out_of_a_run_is_refused(tmp_path: Path, place: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / place).parent.mkdir(parents=True)
    (run / place).symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"{place}: is a link to .*elsewhere, out of the run directory"):
        assert_own_files(run)


def test_a_run_may_be_a_link_and_its_last_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/step_1").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last").symlink_to("step_1")
    (tmp_path / "link").symlink_to("run")
    assert_own_files(tmp_path / "link")


def test_the_last_checkpoint_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", tmp_path / "run/checkpoints/last")
    with pytest.raises(CheckpointError, match=r"points to '.*elsewhere', out of"):
        resolve(tmp_path / "run")


def test_escape_codes_in_names_are_shown_escaped(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_document(tmp_path / "a\x1b[31m.json")
    assert "\\x1b[31m" in str(caught.value)
    assert str(caught.value).isprintable()
