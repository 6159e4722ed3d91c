"""Which recorded trainings count as published figures reached: the letter E of tests/test_mission.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mission.published import assert_reached, list_missing

WHOLE = {
    "job": "training modelnet40_pointnet",
    "figures": {"last_epoch": 200, "last_overall_accuracy": 0.889, "words": "train.precision=tf32 evaluate.every=4"},
    "commit": "a842aa54",
    "card": "NVIDIA H100 80GB HBM3",
}
CROWD = {
    "job": "training crowdhuman_retinanet",
    "figures": {"last_epoch": 50, "last_crowd_ap": 0.81, "last_mr2": 0.6},
    "commit": "a842aa54",
    "card": "NVIDIA H200",
}


def write(file: Path, *lines: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_whole_training_near_the_published_figure_counts(tmp_path: Path) -> None:
    file = write(tmp_path / "results.jsonl", WHOLE | {"figures": {"last_epoch": 3}}, WHOLE, CROWD)
    assert list_missing("modelnet40", file) == list_missing("crowdhuman", file) == []
    assert_reached("modelnet40", "s3dis", at_least=1, file=file)
    with pytest.raises(AssertionError, match=r"s3dis: no line of a training in results\.jsonl"):
        assert_reached("modelnet40", "s3dis", file=file)


@pytest.mark.parametrize(
    ("changes", "figures", "reason"),
    [
        ({}, {"last_epoch": 160}, "ended after epoch 160 of 200"),
        ({}, {"last_overall_accuracy": 0.87}, "overall_accuracy 0.87, published 0.892"),
        ({}, {"last_overall_accuracy": None, "best_overall_accuracy": 0.9}, "overall_accuracy None"),
        ({}, {"words": "train.epochs=200"}, "its length is another"),
        ({"error": "RunError: stopped"}, {}, "RunError: stopped"),
        ({"card": "cpu"}, {}, "on cpu"),
        ({"commit": "a842aa54-changed"}, {}, "a842aa54-changed"),
    ],
)
def test_what_is_missing_is_told(changes: dict[str, Any], figures: dict[str, Any], reason: str, tmp_path: Path) -> None:
    line = WHOLE | changes | {"figures": WHOLE["figures"] | figures}  # type: ignore[operator]
    (told,) = list_missing("modelnet40", write(tmp_path / "results.jsonl", line))
    assert reason in told
    assert told.startswith("modelnet40_pointnet at a842aa54")


def test_a_lower_miss_rate_is_the_better_one(tmp_path: Path) -> None:
    worse = CROWD | {"figures": {"last_epoch": 50, "last_mr2": 0.7}}
    assert list_missing("crowdhuman", write(tmp_path / "results.jsonl", worse)) != []
