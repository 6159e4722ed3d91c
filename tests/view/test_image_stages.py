"""Images at their stages: the pixels of the sample, its plain labels, and nothing where points would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.types import DataInfo, Field
from sightline.view.clouds import Subject
from sightline.view.image_stages import ImageStages
from sightline.view.page import encode_page
from sightline.view.sheet import tiles_of

INFO = DataInfo({}, {"image": Field("1 4 6", "float32"), "angle": Field("", "float32", "rad")})


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_drawn_from_its_lowest_to_its_highest_value(channels: int) -> None:
    image = torch.arange(24.0).view(1, 4, 6).repeat(channels, 1, 1) - 7
    stages = ImageStages({"image": image, "angle": torch.tensor(0.5)}, INFO, {})
    cloud = stages.raw({"image": image})
    assert stages.whole == {"angle": "0.5 rad"}
    assert cloud.lines() == ["6 x 4 pixels, -7 to 16"]
    expected = np.round(np.arange(24).reshape(4, 6) / 23 * 255)
    assert np.array_equal(cloud.panels[0].pixels, np.stack([expected] * 3, axis=2).astype(np.uint8))


def test_a_constant_image_is_dark_and_its_stage_is_one_tile() -> None:
    image = torch.full((1, 4, 6), 3.0)
    stages = ImageStages({"image": image}, INFO, {})
    cloud = stages.raw({"image": image})
    assert not cloud.panels[0].pixels.any()
    subject = Subject("one", (cloud,), stages.frame)
    assert [tile.panel for tile in tiles_of(subject)] == list(cloud.panels)
    assert "6 x 4 pixels" in encode_page([subject], title="images", hidden=(), most=10)
