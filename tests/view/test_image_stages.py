"""Images at their stages: the pixels of the sample, its plain labels, and nothing where points would be."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sightline.contract.draws import Draws
from sightline.contract.types import DataInfo, Field, SampleKey
from sightline.draw.pictures import Picture
from sightline.parts.transforms.images import NormalizeImage
from sightline.view.image_stages import ImageStages, takes_score, target_stages
from sightline.view.page import encode_page, make_tiles
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


@pytest.mark.parametrize(("low", "high"), [(90, 120), (0, 255), (7, 7)])
def test_a_photo_keeps_its_brightness_through_all_stages(low: int, high: int) -> None:
    """As bytes, as float32, and normalised as networks take it: the very pixels. Twice as bright is twice as bright."""
    image = photo(low, high)
    stages = ImageStages({"image": image}, PHOTO, {})
    draws = Draws.for_samples([SampleKey(0, 0, 0)])
    made = NormalizeImage()(draws, image=image[None].float())["image"][0]
    chain = [image, image.float(), made]
    clouds = [stages.raw_stage({"image": image})]
    for before, after in itertools.pairwise(chain):
        clouds += stages.after_transform("next", {"image": before}, {"image": after})
    for cloud in clouds:
        assert np.array_equal(cloud.panels[0].pixels, image.numpy())
    (brighter,) = stages.after_transform("brighter", {"image": image}, {"image": (image.float() * 2).clamp(0, 255)})
    assert np.array_equal(brighter.panels[0].pixels, (image.numpy().astype(int) * 2).clip(0, 255))


def test_a_stage_in_another_unit_is_drawn_in_it_and_the_next_branch_begins_anew() -> None:
    """Bytes over 255 are seen as they were; of what nobody knows a factor for, the lowest value is black."""
    image = photo(10, 200)
    stages = ImageStages({"image": image}, PHOTO, {})
    stages.raw_stage({"image": image})
    shares = image.float() / 255
    (divided,) = stages.after_transform("divided", {"image": image}, {"image": shares})
    assert np.array_equal(divided.panels[0].pixels, image.numpy())
    (cut,) = stages.after_transform("cut", {"image": shares}, {"image": shares[1:, 2:]})
    assert np.array_equal(cut.panels[0].pixels, image.numpy()[1:, 2:])
    (odd,) = stages.after_transform("odd", {"image": shares}, {"image": 1e3 * shares**3})
    assert (odd.panels[0].pixels.min(), odd.panels[0].pixels.max()) == (0, 255)
    (again,) = stages.after_transform("of the next branch", {"image": image.clone()}, {"image": image.clone()})
    assert np.array_equal(again.panels[0].pixels, image.numpy())


def test_a_task_draws_on_the_pixels_that_are_shown_and_by_the_score_that_is_given() -> None:
    """By names: a task that takes neither is called as before."""
    image = photo(90, 120)
    stages = ImageStages({"image": image}, PHOTO, {})
    stages.raw_stage({"image": image})
    given: dict[str, Any] = {}

    class Drawing:
        def show(self, batch: Any, predictions: Any, *, pixels: Any = None, score: float = 0.3) -> list[Picture]:
            given.update(pixels=pixels, score=score)
            return [Picture("one", pixels, "")]

        def show_targets(self, batch: Any, *, pixels: Any = None) -> dict[str, Any]:
            return {"targets": ([Picture("two", pixels, "")], {})}

    class Older:
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
    (targets,) = target_stages(cast(Any, Drawing()), {}, pixels=stages.pixels)
    assert np.array_equal(targets.panels[0].pixels, image.numpy())
    assert takes_score(cast(Any, Drawing()))
    assert not takes_score(cast(Any, Older()))
