"""Transforms of colours: the reference code's numbers for its own draws, the standard library's HSV, and symmetries."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.registry import transforms
from sightline.transforms.images import (
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    DropColour,
    HueSaturation,
    hsv_from_rgb,
    rgb_from_hsv,
    stretch_contrast,
    turn_hue,
)
from sightline.types import ComponentConfig
from tests.golden_parity import load_golden
from tests.transforms.scenes import Given, draws_of, make_scene

EPS = torch.finfo(torch.float32).eps
ALL = {
    "chromatic_auto_contrast": ChromaticAutoContrast(probability=1.0),
    "chromatic_translation": ChromaticTranslation(probability=1.0),
    "chromatic_jitter": ChromaticJitter(probability=1.0),
    "hue_saturation": HueSaturation(),
    "drop_colour": DropColour(probability=1.0),
}


def golden_case(shared: Path, case: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Colours in and out (1, N, 3), 0 to 1, and the draws in order."""
    arrays = load_golden(shared, "fn_augment").arrays
    before, after = (torch.from_numpy(arrays[f"{case}.{key}"])[None, :, 3:] / 255 for key in ("input", "output"))
    draws = [torch.from_numpy(np.asarray(arrays[f"{case}.draw{i}"])) for i in range(3) if f"{case}.draw{i}" in arrays]
    return before, after, draws


def test_contrast_is_that_of_the_reference_code(shared: Path) -> None:
    before, after, (_, blend, *_) = golden_case(shared, "korea_contrast")
    given = Given(torch.zeros(1, 1, 1), blend.view(1, 1, 1))  # its gate was open
    assert (ChromaticAutoContrast()(given, colours=before)["colours"] - after).abs().max() < 1e-12


def test_shift_is_that_of_the_reference_code(shared: Path) -> None:
    before, after, (gate, unit, *_) = golden_case(shared, "korea_colour_shift")
    # it draws u in 0..1 and shifts by (u - 1/2) * 2 * 0.05 of the range
    given = Given(gate.view(1, 1, 1), ((unit - 0.5) * 0.1)[None])
    assert (ChromaticTranslation()(given, colours=before)["colours"] - after).abs().max() < 1e-12


def test_noise_is_that_of_the_reference_code(shared: Path) -> None:
    before, after, (gate, normal, *_) = golden_case(shared, "korea_colour_jitter")
    given = Given(gate.view(1, 1, 1), normal[None])
    assert (ChromaticJitter()(given, colours=before)["colours"] - after).abs().max() < 1e-12


def test_hue_and_saturation_are_those_of_the_reference_code(shared: Path) -> None:
    before, after, (hue, saturation, *_) = golden_case(shared, "korea_hue_sat")
    # it draws u in 0..1: a turn of (u - 1/2) * 2 * 0.5, a factor of 1 + (u - 1/2) * 2 * 0.2
    given = Given((hue - 0.5).view(1, 1), (1 + (saturation - 0.5) * 0.4).view(1, 1))
    ours = HueSaturation()(given, colours=before)["colours"]
    assert torch.equal((ours * 255).floor(), (after * 255).round()), "it rounds down to 8 bits"


def test_hsv_is_that_of_the_standard_library() -> None:
    colours = torch.cat(
        (make_scene(200)["colours"][0].double(), torch.cartesian_prod(*[torch.tensor([0, 0.5, 1])] * 3))
    )
    expected = torch.tensor([colorsys.rgb_to_hsv(*each) for each in colours.tolist()], dtype=torch.float64)
    assert (hsv_from_rgb(colours) - expected).abs().max() < 1e-12
    back = torch.tensor([colorsys.hsv_to_rgb(*each) for each in expected.tolist()], dtype=torch.float64)
    assert (rgb_from_hsv(expected) - back).abs().max() < 1e-12
    assert (rgb_from_hsv(hsv_from_rgb(colours)) - colours).abs().max() < 1e-12


def test_a_turn_of_a_third_exchanges_the_channels() -> None:
    colours = make_scene(200)["colours"].double()
    third, one = torch.full((1, 1), 1 / 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert (turn_hue(colours, third, one) - colours.roll(1, dims=-1)).abs().max() < 1e-12
    assert (turn_hue(colours, one, one) - colours).abs().max() < 1e-12


def test_grey_has_no_hue_and_black_no_saturation() -> None:
    grey = torch.linspace(0, 1, 7)[None, :, None].expand(1, 7, 3)
    assert torch.equal(HueSaturation()(draws_of(), colours=grey)["colours"], grey)


@pytest.mark.parametrize("name", ALL)
def test_a_cloud_gets_the_same_bits_alone_and_in_any_batch(name: str) -> None:
    scene = make_scene(300, 4)["colours"]
    before = scene.clone()
    together = ALL[name](draws_of(4), colours=scene)["colours"]
    assert torch.equal(scene, before)
    assert together.dtype == scene.dtype
    assert together.min() >= 0
    assert together.max() <= 1 + 2 * EPS
    assert not torch.equal(together, scene)
    for row in range(4):
        alone = ALL[name](draws_of(1, first=row), colours=scene[row : row + 1])["colours"]
        assert torch.equal(alone[0], together[row])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    if name != "chromatic_jitter":  # whose noise belongs to a place in the list
        assert torch.equal(ALL[name](draws_of(4), colours=scene[:, order])["colours"], together[:, order])
    together.zero_()
    assert torch.equal(scene, before)


@pytest.mark.parametrize("name", [name for name in ALL if name != "hue_saturation"])
def test_as_many_clouds_change_as_asked(name: str) -> None:
    colours = make_scene(5, 4000)["colours"]
    changed = transforms.build(ComponentConfig(name, {"probability": 0.3}), facts={})(draws_of(4000), colours=colours)
    share = (changed["colours"] != colours).flatten(1).any(dim=1).double().mean()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    never = transforms.build(ComponentConfig(name, {"probability": 0.0}), facts={})(draws_of(4000), colours=colours)
    assert torch.equal(never["colours"], colours)


def test_shifts_and_noise_have_the_asked_size() -> None:
    grey = torch.full((2000, 50, 3), 0.5)
    shift = (ChromaticTranslation(max_shift=0.05, probability=1.0)(draws_of(2000), colours=grey)["colours"] - grey)[
        :, 0
    ]
    assert shift.abs().max() <= 0.05 + EPS
    assert abs(shift.double().std() - 0.05 / math.sqrt(3)) < 5 * 0.05 / math.sqrt(6000), "uniform: its width / sqrt 12"
    noise = (ChromaticJitter(std=0.01, probability=1.0)(draws_of(2000), colours=grey)["colours"] - grey).double()
    assert abs(noise.std() / 0.01 - 1) < 5 / math.sqrt(2 * noise.numel()) + 8 * EPS / 0.01


def test_contrast_of_a_channel_without_any_stays() -> None:
    flat = torch.full((1, 10, 3), 0.25)
    assert torch.equal(stretch_contrast(flat, torch.full((1, 1, 1), 0.7)), flat)
    full = stretch_contrast(make_scene(50)["colours"], torch.ones(1, 1, 1))
    assert torch.equal(full.amin(1), torch.zeros(1, 3))
    assert torch.equal(full.amax(1), torch.ones(1, 3))
