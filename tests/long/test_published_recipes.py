"""Published recipes on small sets in the true layouts: all that the suite leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import test_recipes as recipes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipes.prepare_detection(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipes.prepared(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(
    "config",
    [
        "crowdhuman_fcos",
        "crowdhuman_retinanet",
        "crowdhuman_retinanet_freeanchor",
        "crowdhuman_retinanet_s3",
        "crowdhuman_yolox_simota",
    ],
)
def test_a_published_detector_is_checked_and_trained(photos: Path, tmp_path: Path, config: str) -> None:
    recipes.assert_checked_and_trained(photos, tmp_path, config)


@pytest.mark.parametrize(("layout", "config"), [pair for pair in recipes.PAIRS if pair not in recipes.IN_THE_SUITE])
def test_a_recipe_for_parts_is_trained(parts: Path, layout: str, config: str) -> None:
    recipes.assert_parts_are_trained(parts, layout, config)
