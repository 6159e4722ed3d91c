"""Images at their stages: the pixels of the sample, its plain labels, and nothing where points would be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sightline.contract.types import DataInfo, Field
from sightline.draw.pictures import Picture
from sightline.parts.tasks.supervised import Supervised
from sightline.view.image_stages import ImageStages, takes_score, target_stages
from sightline.view.page import encode_page
from sightline.view.sheet import make_tiles
from sightline.view.stages import ViewedSample

INFO = DataInfo({}, {"image": Field("1 4 6", "float32"), "angle": Field("", "float32", "rad")})


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_drawn_from_its_lowest_to_its_highest_value(channels: int) -> None:
    image = torch.arange(24.0).view(1, 4, 6).repeat(channels, 1, 1) - 7
    stages = ImageStages({"image": image, "angle": torch.tensor(0.5)}, INFO, {})
    cloud = stages.raw_stage({"image": image})
    assert stages.whole == {"angle": "0.5 rad"}
    assert cloud.lines() == ["6 x 4 pixels, -7 to 16"]
    expected = np.round(np.arange(24).reshape(4, 6) / 23 * 255)
    assert np.array_equal(cloud.panels[0].pixels, np.stack([expected] * 3, axis=2).astype(np.uint8))


def test_a_constant_image_is_dark_and_its_stage_is_one_tile() -> None:
    image = torch.full((1, 4, 6), 3.0)
    stages = ImageStages({"image": image}, INFO, {})
    cloud = stages.raw_stage({"image": image})
    assert not cloud.panels[0].pixels.any()
    subject = ViewedSample("one", (cloud,), stages.frame)
    assert [tile.panel for tile in make_tiles(subject)] == list(cloud.panels)
    assert "6 x 4 pixels" in encode_page([subject], title="images")


PHOTO = DataInfo({}, {"image": Field("height width 3", "uint8", low=0, high=255)})


def photo(low: int, high: int, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high + 1, (5, 7, 3)).astype(np.uint8))


def test_photos_share_a_scale_and_a_stage_in_another_unit_is_drawn_in_its_own() -> None:
    """Twice as bright is twice as bright; of a normalised image the lowest value is black, the highest white."""
    image = photo(10, 120)
    stages = ImageStages({"image": image}, PHOTO, {})
    assert np.array_equal(stages.raw_stage({"image": image}).panels[0].pixels, image.numpy())
    (brighter,) = stages.after_transform("brighter", {"image": image}, {"image": image.float() * 2})
    assert np.array_equal(brighter.panels[0].pixels, image.numpy() * 2)
    for other in (image.float() / 255, (image.float() - 100) / 50, image.float() * 1e3):
        (drawn,) = stages.after_transform("other", {"image": image}, {"image": other})
        assert (drawn.panels[0].pixels.min(), drawn.panels[0].pixels.max()) == (0, 255)


def test_a_task_draws_on_the_pixels_that_are_shown_and_by_the_score_that_is_given() -> None:
    """By names: a task that takes neither is called as before."""
    image = photo(90, 120)
    stages = ImageStages({"image": image}, PHOTO, {})
    stages.raw_stage({"image": image})
    given: dict[str, Any] = {}

    class Drawing(Supervised):
        def __init__(self) -> None: ...

        def show(self, batch: Any, predictions: Any, *, pixels: Any = None, score: float = 0.3) -> list[Picture]:
            given.update(pixels=pixels, score=score)
            return [Picture("one", pixels, "")]

        def show_targets(self, batch: Any, *, pixels: Any = None, is_trained: bool = False) -> dict[str, Any]:
            given.update(is_trained=is_trained)
            return {"targets": ([Picture("two", pixels, "in short; at length")], {})}

    class Older(Supervised):
        def __init__(self) -> None: ...

        def show(self, batch: Any, predictions: Any) -> list[Picture]:
            return [Picture("one", image.numpy(), "older")]

    predictor: Any = SimpleNamespace(task=Drawing(), score=0.7)
    cloud, _ = stages.prediction_stages([], {}, {}, predictor)
    assert np.array_equal(cloud.panels[0].pixels, image.numpy())
    assert given["score"] == 0.7
    assert (
        stages.prediction_stages([], {}, {}, cast(Any, SimpleNamespace(task=Older(), score=0.7)))[0].description
        == "older"
    )
    (targets,) = target_stages(cast(Any, Drawing()), {}, pixels=stages.pixels, all_stages=True, is_trained=True)
    assert np.array_equal(targets.panels[0].pixels, image.numpy())
    assert (targets.panels[0].text, targets.description) == ("two: in short", "two: in short; at length")
    assert given["is_trained"]
    assert takes_score(cast(Any, Drawing()))
    assert not takes_score(cast(Any, Older()))
