"""Some of a set's joints: their coordinates, their bones, and what needs a joint that is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline import registry
from sightline.config import read_config
from sightline.data.depth.msra_hands import MsraHands
from sightline.data.depth.skeletons import BODY_15, HAND_14, HAND_16, HAND_21, HAND_21_BY_LEVEL, Skeleton
from sightline.errors import ConfigError
from sightline.types import ComponentConfig, SampleKey
from tests.command import run_here
from tests.data.depth.depth_trees import no_progress, write_msra

TIPS = ("wrist", "index_tip", "thumb_tip", "middle_mcp")


def test_bones_lead_past_the_joints_that_are_left_out() -> None:
    """By hand: from the wrist to both tips and to the knuckle; from the neck by way of the torso to both feet."""
    chosen = HAND_21.select_joints(TIPS)
    assert chosen.joint_names == TIPS
    assert sorted(chosen.bones) == [(0, 1), (0, 2), (0, 3)]
    assert chosen.facts["pck_joints"] == (0, 3)
    assert chosen.facts["centre_joint"] == 3
    body = BODY_15.select_joints(("left_foot", "neck", "torso", "right_foot"))
    assert {frozenset(bone) for bone in body.bones} == {frozenset(bone) for bone in ((1, 2), (2, 0), (2, 3))}
    assert body.sigmas == (0.089, 0.079, 0.079, 0.089)
    alone = HAND_21.select_joints(("index_tip",))
    assert (alone.bones, len(alone)) == ((), 1)
    assert {"pck_joints", "centre_joint"}.isdisjoint(alone.facts)


@pytest.mark.parametrize("skeleton", [HAND_14, HAND_16, HAND_21, HAND_21_BY_LEVEL, BODY_15])
def test_no_name_is_all_of_them_and_any_choice_is_a_tree(skeleton: Skeleton) -> None:
    assert skeleton.select_joints(()) == skeleton
    for start in range(len(skeleton)):
        names = skeleton.joint_names[start::2]
        chosen = skeleton.select_joints(names)
        reached = {0}
        for _ in names:
            reached |= {b for a, b in chosen.bones if a in reached} | {a for a, b in chosen.bones if b in reached}
        assert reached == set(range(len(names)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("index_tap",), "'index_tap' is not a joint; did you mean 'index_tip'"), (("wrist", "wrist"), "given twice")],
)
def test_a_wrong_name_is_refused(names: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        registry.data.build(ComponentConfig("synthetic_hands", {"joints": list(names)}), facts={"split": "train"})


def test_a_sample_holds_the_chosen_joints_in_their_order(tmp_path: Path) -> None:
    source = tmp_path / "source" / "cvpr15_MSRAHandGestureDB"
    made = write_msra(source, {"P0/1": 2, "P1/1": 2})
    MsraHands.prepare(source=source, target=tmp_path / "msra", name="msra_hands", progress=no_progress)
    rows = [HAND_21.joint_names.index(name) for name in TIPS]
    frames = MsraHands(split="test", root=str(tmp_path / "msra"), joints=TIPS)
    for index in range(2):
        sample = frames[SampleKey(index, 0, 0)]
        assert torch.equal(sample["joints"], torch.from_numpy(made[frames.sample_name(index)].joints[rows]).float())
        assert sample["visible"].tolist() == [True] * 4
    assert frames.info.fields["joints"].shape == "4 3"
    promised = MsraHands.expected_info(joints=TIPS)
    assert {**frames.info.facts, "reference_source": None} == {**promised.facts, "reference_source": None}
    assert promised.fields == frames.info.fields


def test_the_cube_lies_about_the_middle_joint_even_where_it_is_left_out() -> None:
    given = {"train_size": 2, "test_size": 1, "reference": {"name": "truth"}}
    every = registry.data.build(ComponentConfig("synthetic_hands", given), facts={"split": "train"})
    some = registry.data.build(
        ComponentConfig("synthetic_hands", {**given, "joints": ["thumb_tip"]}), facts={"split": "train"}
    )
    for index in range(2):
        all_of_it, sample = every[SampleKey(index, 0, 0)], some[SampleKey(index, 0, 0)]
        assert torch.equal(sample["reference"], all_of_it["reference"])
        assert torch.equal(sample["joints"][0], all_of_it["joints"][HAND_21.joint_names.index("thumb_tip")])


def test_one_joint_trains_and_a_metric_that_needs_another_is_named(tmp_path: Path) -> None:
    config = Path(__file__).parents[3] / "configs" / "pose" / "synthetic_hands_v2v_small.yaml"
    small = ("data.joints=[thumb_tip]", "data.train_size=8", "data.test_size=4", "train.steps=1", "train.batch_size=4")
    code, _, err = run_here("train", config, *small, "--device", "cpu", "--no-check", "--out", tmp_path / "a")
    assert code == 2
    assert "metric 'keypoints' needs pck_joints" in err
    assert "data.joints must have both joints whose distance is the unit of PCK" in err
    assert "take 'keypoints' out" in err
    words = (*small, "metrics=[{name: joint_error}]")
    code, out, err = run_here("train", config, *words, "--device", "cpu", "--no-check", "--out", tmp_path / "b")
    assert code == 0, err
    assert "thumb_tip" in out
    assert "index_tip" not in out
    assert read_config(tmp_path / "b" / "config.yaml").data.arguments["joints"] == ("thumb_tip",)
