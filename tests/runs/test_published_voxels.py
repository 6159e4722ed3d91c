"""Configs with published settings of networks on sparse voxels: the numbers of the settings, and that they run."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sightline.config import read_config
from sightline.contract.errors import ConfigError
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.parts.tasks.segment import Segment
from tests.cases import run_each
from tests.processes import ROOT

CONFIGS = ROOT / "configs" / "segment"
# name -> epochs, batch, optimiser, rate, decay, share and divisors of the schedule, side, share of mixed scenes, views
SGD, ADAMW = "sgd", "adamw"
SETTINGS: dict[str, tuple[Any, ...]] = {
    "scannet_spunet": (800, 12, SGD, 0.05, 1e-4, (0.05, 10, 1e4), 0.02, 0.8, "scannet"),
    "scannet200_spunet": (800, 12, SGD, 0.05, 1e-4, (0.05, 10, 1e4), 0.02, 0.8, "scannet"),
    "scannet_minkunet34c": (600, 12, SGD, 0.05, 1e-4, (0.05, 10, 1e4), 0.02, 0.8, "scannet"),
    "s3dis_spunet": (3000, 12, SGD, 0.1, 1e-4, 0.9, 0.05, 0.8, "scales"),
    "nuscenes_lidarseg_spunet": (50, 12, ADAMW, 0.002, 0.005, (0.04, 10, 100), 0.05, 0.0, "scales"),
    "semantic_kitti_spunet": (50, 12, ADAMW, 0.002, 0.005, (0.04, 10, 100), 0.05, 0.8, "turns"),
    "semantic_kitti_minkunet": (15, 2, SGD, 0.24, 1e-4, None, 0.05, 0.0, ""),
    "scannet_ptv3": (800, 12, ADAMW, 0.006, 0.05, (0.05, 10, 1e3), 0.02, 0.8, "scannet"),
    "s3dis_ptv3": (3000, 12, ADAMW, 0.006, 0.05, (0.05, 10, 1e3), 0.02, 0.8, "scales"),
    "nuscenes_lidarseg_ptv3": (50, 12, ADAMW, 0.002, 0.005, (0.04, 10, 100), 0.05, 0.8, "scales"),
}
CROPS = {"scannet_ptv3": 102_400, "s3dis_ptv3": 204_800}
COUNTS = {
    "scannet_spunet": (20, 9, 39_157_844),
    "scannet_minkunet34c": (20, 9, 37_880_052),  # 24,000 more than with coordinates alone: 6 x 125 x 32 weights
    "nuscenes_lidarseg_spunet": (16, 4, 39_149_456),
    "semantic_kitti_minkunet": (19, 4, 21_723_315),
    "scannet_ptv3": (20, 9, 46_167_572),
    "nuscenes_lidarseg_ptv3": (16, 4, 46_159_312),
}
NUM_VIEWS = {"scannet": 13, "scales": 10, "turns": 4, "": 1}


@run_each("name", SETTINGS)
def test_settings_are_the_published_ones(name: str) -> None:
    epochs, batch_size, optimizer, rate, decay, schedule, side, share, views = SETTINGS[name]
    config = read_config(CONFIGS / f"{name}.yaml")
    assert (config.train.epochs, config.train.batch_size) == (epochs, batch_size)
    assert (config.optimizer.name, config.optimizer.arguments["lr"]) == (optimizer, rate)
    assert config.optimizer.arguments["weight_decay"] == decay
    if optimizer == SGD:
        assert (config.optimizer.arguments["nesterov"], config.optimizer.arguments["momentum"]) == (True, 0.9)
    else:
        assert config.optimizer.arguments["decay"] == "all"
    arguments = config.schedule.arguments
    match schedule:
        case None:
            assert (config.schedule.name, {k: v for k, v in arguments.items() if "warmup" in k and v}) in [
                ("cosine", {}),
                ("cosine", {"warmup_min_steps": 100}),
            ]
        case float(power):
            assert (config.schedule.name, arguments["power"]) == ("polynomial", power)
        case _:
            found = (arguments["rise"], arguments["start_divisor"], arguments["final_divisor"])
            assert (config.schedule.name, found, [*arguments["momentum"]]) == ("one_cycle", schedule, [0.95, 0.85])
    assert config.model.arguments["grid_m"] == side
    steps = {each.name: each.arguments for each in config.transforms.train}
    assert steps.get("mix_scenes", {"probability": 0.0})["probability"] == share
    if "voxel_sample" in steps:
        assert steps["voxel_sample"]["size_m"] == side
    assert [each.arguments["views"] for each in config.transforms.vote if each.name == "views"] == [views] * bool(views)
    if name.startswith(("scannet", "s3dis")):
        assert steps["crop_points"]["max_points"] == CROPS.get(name, 100_000)
        assert ("elastic" in steps) == name.startswith("scannet")
        turns = [each.arguments for each in config.transforms.train if each.name == "rotate"]
        assert [(turn["axis"], turn["probability"], round(turn["max_angle_rad"], 6)) for turn in turns] == [
            ("up", 0.5, 3.141593),
            ("x", 0.5, 0.049087),
            ("y", 0.5, 0.049087),
        ]
    of_attention = name.endswith("ptv3")
    assert [each.name for each in config.losses] == ["cross_entropy", *["lovasz_softmax"] * of_attention]
    groups = config.optimizer.arguments.get("groups", ())
    assert {(group["modules"], group["lr_factor"]) for group in groups} == (
        {("encoder", 0.1), ("decoder", 0.1)} if of_attention else set()
    )


def test_what_learns_at_a_tenth_is_what_the_authors_call_blocks() -> None:
    """45.70 of 46.17 million parameters have `block` in the authors' names."""
    from sightline.parts.models.ptv3 import PTv3
    from sightline.published.translation import published_name

    with torch.device("meta"):
        model = PTv3(in_channels=9, num_classes=20, inputs="features")
    slow = {name: value for name, value in model.named_parameters() if name.startswith(("encoder.", "decoder."))}
    assert round(sum(value.numel() for value in slow.values()) / 1e6, 2) == 45.70
    assert {name for name, _ in model.named_parameters() if "block" in published_name(name, "pointcept_ptv3")} == {
        *slow
    }


@run_each("name", COUNTS)
def test_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    from sightline.contract import registry

    classes, channels, count = COUNTS[name]
    block = read_config(CONFIGS / f"{name}.yaml").model
    with torch.device("meta"):
        network = registry.models.build(block, facts={"num_classes": classes, "in_channels": channels})
    assert sum(parameter.numel() for parameter in network.parameters()) == count


_ROOMS = "data={name: synthetic_rooms, train_size: 4, test_size: 2, points_per_m2: 15}"
_SCANS = "data={name: synthetic_lidar, train_size: 4, test_size: 2, count_classes: true, num_columns: 64}"
_BLOCKS = {"encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
_NARROW = {"stem_width": 4, "encoder_widths": [8, 8], "decoder_widths": [8, 8], **_BLOCKS}


def build_small(name: str, folder: Path, *overrides: str) -> TrainingSetup:
    """The config with its losses and transforms on few procedural rooms or scans, and a narrow network."""
    stand_in = _SCANS if "kitti" in name or "nuscenes" in name else _ROOMS
    small = folder / f"{name}.yaml"
    small.write_text(yaml.safe_dump({"base": str(CONFIGS / f"{name}.yaml"), "model": _NARROW}))
    few = ("train.batch_size=2", "train.epochs=1", "loader.workers=0", "evaluate.select=test")
    losses = "losses=[{name: cross_entropy}]"
    return build(read_config(small, (stand_in, losses, *few, *overrides)), World())


@pytest.mark.parametrize("name", ["scannet_spunet", "s3dis_spunet", "semantic_kitti_spunet", "semantic_kitti_minkunet"])
def test_they_train_and_their_tests_name_their_protocol(name: str, tmp_path: Path) -> None:
    *_, views = SETTINGS[name]
    votes = min(3, NUM_VIEWS[views])
    built = build_small(name, tmp_path, f"evaluate.votes={votes}", "task.fragments_m=0.2", "model.grid_m=0.2")
    train(built.job, World(), lambda record, stop: False)
    assert built.job.step == 2
    evaluation = built.test_evaluator(built.job.model, World())
    assert evaluation.protocol == ("fragments + views" if views else "fragments")
    suffix = f"_vote{votes}" if views else ""
    assert 0 <= evaluation.metrics[f"miou{suffix}"] <= 1
    assert evaluation.metrics[f"miou_absent_zero{suffix}"] <= evaluation.metrics[f"miou{suffix}"] + 1e-12
    whole = dataclasses.replace(built.test_evaluator, votes=1, voting_reader=None)
    whole.task.windows = None  # type: ignore[attr-defined]
    single = whole(built.job.model, World())
    assert single.protocol == "voxel"
    assert json.loads(json.dumps(single.describe("miou")))["protocol"] == "voxel"


def test_more_passes_than_views_and_views_in_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'views' has 13 passes, evaluate.votes are 14; set evaluate.votes=13"):
        build_small("scannet_spunet", tmp_path, "evaluate.votes=14")
    with pytest.raises(
        ConfigError, match=r"varies the passes of evaluate.votes one by one; it belongs in transforms.v"
    ):
        build_small("scannet_spunet", tmp_path, "transforms.evaluate=[{name: views}]")


def test_passes_are_computed_one_by_one(tmp_path: Path) -> None:
    """The task asks for the next pass when it is done with the one before, so that two are there at most."""
    built = build_small("scannet_spunet", tmp_path, "evaluate.votes=5", "model.grid_m=0.2")
    task, alive = built.test_evaluator.task, []
    predict = task.predict

    def count_alive(model: torch.nn.Module, batch: Any) -> dict[str, Any]:
        predictions = predict(model, batch)
        gc.collect()
        alive.append(weakref.ref(predictions["probabilities"]))
        return {**predictions}

    task.predict = count_alive  # type: ignore[method-assign]
    most = []
    original = Segment.vote

    def vote(passes: Any) -> dict[str, Any]:
        def note() -> Any:
            for each in passes:
                most.append(sum(reference() is not None for reference in alive))
                yield each

        return original(task, note())  # type: ignore[arg-type]

    task.vote = vote
    built.test_evaluator(built.job.model, World())
    assert len(most) == 5 * len(built.test_evaluator.indices)
    assert max(most) <= 2
