"""Several sets as one: every sample is its own set's, and sets that do not fit together are refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline import registry
from sightline.config import read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.errors import ConfigError
from sightline.types import ComponentConfig, SampleKey
from tests.runs.small import ROOT

ONE = {"name": "synthetic_shapes", "num_points": 16, "train_size": 12, "test_size": 6}
OTHER = {**ONE, "train_size": 20, "data_seed": 3}


def built(*sets: dict[str, Any], split: str = "train") -> Any:
    return registry.data.build(ComponentConfig("concat", {"sets": list(sets)}), facts={"split": split})


def alone(of: dict[str, Any], split: str = "train") -> Any:
    return registry.data.build(
        ComponentConfig(of["name"], {k: v for k, v in of.items() if k != "name"}), facts={"split": split}
    )


def test_samples_are_those_of_the_sets_one_after_another() -> None:
    both, first, second = built(ONE, OTHER), alone(ONE), alone(OTHER)
    assert len(both) == 32
    assert both.info.split_sizes == {"train": 32, "test": 12}
    for index, whose, place in ((0, first, 0), (11, first, 11), (12, second, 0), (31, second, 19)):
        ours, theirs = both[SampleKey(index, 2, 5)], whose[SampleKey(place, 2, 5)]
        assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in theirs)
    assert both.strata.tolist() == [*first.strata, *second.strata]
    assert both.sample_name(12) == "2/train_00000"
    for index in (-1, 32):
        with pytest.raises(IndexError, match="concat: sample"):
            both[SampleKey(index, 0, 0)]


def test_counts_of_classes_add_up() -> None:
    counts = [each.info.facts["class_counts"] for each in (alone(ONE), alone(OTHER), built(ONE, OTHER))]
    assert [a + b for a, b in zip(*counts[:2], strict=True)] == list(counts[2])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**ONE, "target": "parts"}, "sets: fields must agree; 'category' is Field.* in set 2 and nothing in set 1"),
        ({"name": "synthetic_rooms"}, "sets: fields must agree; '.*' is .* in set 2 and .* in set 1"),
    ],
)
def test_sets_that_do_not_fit_are_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(ONE, other)
    assert re.search(message, str(error.value)), error.value


def test_a_run_trains_on_several_sets(tmp_path: Path) -> None:
    config = tmp_path / "concat.yaml"

    def run(sets: str) -> TrainingSetup:
        recipe = (
            f"base: {ROOT}/configs/classify/synthetic_shapes_pointnet.yaml\ndata: {{name: concat, sets: [{sets}]}}\n"
        )
        config.write_text(recipe)
        return build(read_config(config, ["model={name: pointnet}"]), World())

    small = "{name: synthetic_shapes, num_points: 64, train_size: 30, test_size: 20"
    data = run(f"{small}}}, {small}, data_seed: 1}}").data
    assert len(data.train.indices) + len(data.selection.indices) == 60
    assert len(data.test.indices) == 40
    with pytest.raises(ConfigError, match=r"concat.yaml:2: data.sets.0.num_pionts: .*no such argument"):
        run("{name: synthetic_shapes, num_pionts: 64}")
    with pytest.raises(ConfigError, match=r"concat.yaml:2: data.sets: is empty"):
        run("")
