"""Sets as a plugin writes them, a row and a plan, or with a `prepare` and a `card` of their own."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds
from sightline.contract.errors import DataError
from sightline.store.prepared.prepared_data import PreparedData
from sightline.store.prepared.splits import deal_by_hash
from tests.command import refuse, succeed
from tests.data.clouds.cloud_writers import write_folder
from tests.data.preparing import expect_progress
from tests.test_plugins import _own_parts  # noqa: F401

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "my_clouds.py"
RECIPE = ROOT / "configs" / "classify" / "cloud_folder_pointnet.yaml"
PLUGIN = '''"""Whole numbers, one a line."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import sightline
from sightline.store.prepared.prepared_writer import Progress


def _read_row(path: Path, number: int, text: str, factor: int) -> sightline.SampleRow:
    return sightline.SampleRow(f"line {number}", f"{path}:{number}", {"value": int(text) * factor})


@sightline.register.data("my_numbers")
class MyNumbers(sightline.PreparedData):
    """The numbers of a file. Source: the user's."""

    spec = sightline.SetSpec(
        name="my_numbers",
        what="numbers (numbers.txt)",
        marks=("numbers.txt",),
        inner=("release",),
        entries=lambda: {"home": "https://example.org", "options": "factor=2"},
    )

    def __init__(self, *, split: str, root: str | None = None) -> None:
        self.values = self.open_root(root).array(split, "value")
        self.info = sightline.DataInfo({}, {}, {split: len(self.values)})

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Any:
        return {}

    @classmethod
    def plan(
        cls, root: Path, *, target: Path, factor: int = 1, split: Literal["train", "test"] = "train"
    ) -> sightline.PreparationPlan:
        """Plan to store the numbers, multiplied by `factor`."""
        path = root / "numbers.txt"
        lines = list(enumerate(path.read_text().splitlines(), start=1))
        rows = lambda: (_read_row(path, number, text, factor) for number, text in lines)
        shard = sightline.Shard(split, split, len(lines), (path,), rows)
        about = {"beside": target.name}
        columns = {"value": sightline.ColumnSpec((), "int64")}
        options = {"factor": factor}
        return sightline.PreparationPlan("my_numbers", "lines", root, columns, (shard,), about, lambda _: {}, options)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "numbers_plugin.py"
    path.write_text(PLUGIN)
    (tmp_path / "in" / "release").mkdir(parents=True)
    (tmp_path / "in" / "release" / "numbers.txt").write_text("3\n-4\n")
    return path


def test_a_row_and_a_plan_are_a_set_of_the_command_line(plugin: Path, tmp_path: Path) -> None:
    words = ("data", "prepare", "my_numbers", "--plugin", plugin)
    succeed(*words, "--from", tmp_path / "in", "--to", tmp_path / "out", "factor=10", "split=test")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["set"], manifest["options"], manifest["beside"]) == ("my_numbers", {"factor": 10}, "out")
    assert manifest["source"]["path"] == str(tmp_path / "in" / "release")

    from sightline.contract import registry

    opened = registry.data.get_entry("my_numbers").builder(split="test", root=str(tmp_path / "out"))
    assert opened.values.tolist() == [30, -40]
    assert registry.data.get_entry("my_numbers").builder.verify(tmp_path / "out") == 1

    written = succeed("data", "info", "my_numbers", "--json", tmp_path / "card.json").out
    assert "home: https://example.org" in written
    card = json.loads((tmp_path / "card.json").read_text())
    assert list(card) == ["set", "home", "prepare"]
    assert card["prepare"] == "sightline data prepare my_numbers --from PATH --to DIR factor=2"


def test_the_example_is_prepared_and_trained(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in {"train": 8, "test": 2}.items():
        (tmp_path / "in" / split).mkdir(parents=True)
        for name in ("cup", "spoon"):
            for number in range(count):
                np.savez(tmp_path / "in" / split / f"{name}_{number}.npz", xyz=generator.normal(size=(64, 3)))
    plugin = ("--plugin", EXAMPLE)
    prepared = tmp_path / "prepared"
    succeed("data", "prepare", "my_clouds", *plugin, "--from", tmp_path / "in", "--to", prepared, "up_axis=y")
    assert "up_axis: y" in succeed("data", "info", prepared, *plugin).out
    data = ("data.name=my_clouds", f"data.root={prepared}", "transforms.train.0.num_points=32")
    words = (*data, "transforms.evaluate.0.num_points=32", "train.steps=1", "train.batch_size=4")
    succeed("train", RECIPE, *plugin, *words, "--no-check", "--out", tmp_path / "run")

    (tmp_path / "in" / "test" / "cup_9.npz").write_bytes(b"nothing")
    words = ("data", "prepare", "my_clouds", *plugin, "--from", tmp_path / "in", "--to", tmp_path / "other")
    assert "cup_9.npz: xyz cannot be read" in refuse(*words)


def test_help_lists_the_options_of_a_plan(plugin: Path) -> None:
    listed = " ".join(succeed("data", "prepare", "my_numbers", "--plugin", plugin, "--help").out.split())
    assert "Options of my_numbers, as KEY=VALUE" in listed
    assert "factor=VALUE" in listed
    assert "target=VALUE" not in listed


def test_faults_of_options_and_sources_are_one_line(plugin: Path, tmp_path: Path) -> None:
    words = ("data", "prepare", "my_numbers", "--plugin", plugin, "--to", tmp_path / "out")
    assert "factr: is not an option; did you mean 'factor'" in refuse(*words, "--from", tmp_path / "in", "factr=2")
    (tmp_path / "else").mkdir()
    assert "which is not numbers (numbers.txt); looked for numbers.txt" in refuse(*words, "--from", tmp_path / "else")
    advice = "give the folder with numbers (numbers.txt)"
    assert f"{plugin}: is not a folder (looked at {plugin}); {advice}" in refuse(*words, "--from", plugin)
    succeed(*words, "--from", tmp_path / "in")
    assert f"out: is prepared already; {advice}" in refuse(*words, "--from", tmp_path / "out")


def test_a_class_without_a_plan_is_not_prepared() -> None:
    class Opened(LabelledClouds):
        set_name = "opened"
        readable_sets = ("cloud_folder",)

    assert Opened.prepare is None
    assert Opened.card is None


def test_a_derived_set_is_prepared_and_opened_under_its_name(tmp_path: Path) -> None:
    class Derived(CloudFolder):
        set_name = "derived"

    source, options = write_folder(tmp_path / "in", per_class=3), {"up_axis": "z", "num_points": 2}
    made = Derived.prepare(source=source, target=tmp_path / "out", name="derived", progress=expect_progress, **options)
    assert made["set"] == "derived"
    assert len(Derived(split="train", root=str(tmp_path / "out"))) == 3


def test_a_plan_that_is_not_a_class_method_is_named() -> None:
    with pytest.raises(AssertionError, match=r"^Wrong\.plan: a class method is needed$"):

        class Wrong(PreparedData):
            def plan(self, root: Path) -> None:
                pass


def test_names_are_dealt_by_hash() -> None:
    """As many as their shares, the same in any order, and hardly others when names are added."""
    names = [f"cloud {number}" for number in range(40)]
    deal = partial(deal_by_hash, test_share=0.2, validation_share=0.1, seed=3, where="here: 40", advice="stop")
    splits = dict(zip(names, deal(names), strict=True))
    assert Counter(splits.values()) == {"train": 28, "test": 8, "validation": 4}
    assert dict(zip(names[::-1], deal(names[::-1]), strict=True)) == splits
    more = dict(zip([*names, "one more"], deal([*names, "one more"]), strict=True))
    assert sum(more[name] != split for name, split in splits.items()) <= 2
    assert deal_by_hash(names[:2], test_share=0.5, validation_share=0.0, seed=0, where="", advice="").count("test") == 1
    with pytest.raises(DataError, match=r"^here: 40, too few for 1 to test, 1 to validate and one to train .* stop$"):
        deal(names[:2])
