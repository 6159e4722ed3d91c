"""Boxes go where their pixels go: a painted rectangle is found again where its box says, in every quadrant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.data.loading.batch_reader import BatchReader, NamedTransform
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError
from sightline.geometry.boxes.priors import warp_boxes
from sightline.transforms.combined_images import CutImage, FitImage, ScaleSteps, TurnImage
from sightline.transforms.images import FlipImage, ResizeImage
from sightline.types import DataInfo, Field, SampleKey
from tests.cases import run_each

HEIGHT, WIDTH = 96, 144
QUADRANTS = [(20, 10), (90, 14), (24, 60), (100, 66)]
"""Left and top of a box of 30 x 20 pixels in each quadrant."""


def painted(left: float, top: float, width: int = 30, height: int = 20) -> dict[str, Tensor]:
    """A sample whose only box is a white rectangle on black."""
    image = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    image[:, int(top) : int(top) + height, int(left) : int(left) + width] = 255
    return {
        "image": image,
        "boxes": torch.tensor([[[left, top, left + width, top + height]]], dtype=torch.float32),
        "to_canvas": torch.eye(3, dtype=torch.float64)[None, :2],
        "label": torch.zeros(1, 1, dtype=torch.int64),
        "is_ignored": torch.zeros(1, 1, dtype=torch.bool),
    }


def seen_box(image: Tensor) -> np.ndarray:
    """The box about what is at least half white."""
    rows, columns = (image[0].float().mean(-1) > 127).nonzero(as_tuple=True)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)


def drawn(transform: Any, sample: dict[str, Tensor], index: int, step: int = 0) -> dict[str, Tensor]:
    names = [name for name in sample if name in transform.__call__.__annotations__]
    draws = Draws.for_samples([SampleKey(index, 0, 5, step)]).stream("it")
    return {**sample, **transform(draws, **{name: sample[name] for name in names})}


TRANSFORMS = {
    "letterbox": FitImage(height=128, width=128, fill=0),
    "stretch": FitImage(height=192, width=96, mode="stretch", fill=0),
    "short_side": FitImage(height=160, width=240, mode="short_side", short_px=150, long_px=210, fill=0),
    "flip": FlipImage(probability=1.0),
    "scale_steps": ScaleSteps(low=0.8, high=1.6, multiple=16),
    "cut": CutImage(probability=1.0, low=0.6, clip=True),
    "turn": TurnImage(scale=0.2, shift=0.1, fill=0),
    "turn and shear": TurnImage(degrees=20.0, shear_degrees=10.0, scale=0.2, shift=0.05, fill=0),
}


@pytest.mark.parametrize("corner", QUADRANTS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_painted_box_is_found_where_its_box_went(name: str, corner: tuple[int, int]) -> None:
    transform, sample, met = TRANSFORMS[name], painted(*corner), 0
    for index in range(8):
        changed = drawn(transform, sample, index, step=index)
        if not changed["boxes"].shape[1] or bool(changed["is_ignored"].any()):
            continue
        # Sloping edges reach half white up to a pixel inside the corner.
        slack = 2.5 if "shear" in name else 1.01
        np.testing.assert_allclose(changed["boxes"][0, 0].numpy(), seen_box(changed["image"]), atol=slack)
        met += 1
    assert met >= 3, "the box must be seen in most draws"


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ("cut", "turn", "turn and shear")])
def test_the_way_from_the_file_leads_to_the_box(name: str) -> None:
    """`to_canvas` is what predictions are brought back by: chained, and exact to rounding."""
    sample = painted(24, 60)
    changed = drawn(FlipImage(probability=1.0), drawn(TRANSFORMS[name], sample, 1), 1)
    found = warp_boxes(sample["boxes"].double(), changed["to_canvas"][0])
    torch.testing.assert_close(found, changed["boxes"].double(), rtol=0, atol=2e-5)


def test_letterbox_by_hand() -> None:
    """96 x 144 onto 128 x 128: the factor is 128 / 144, rows 85.33 -> 85; the rest of the canvas keeps the fill."""
    changed = drawn(FitImage(height=128, width=128, fill=7), painted(0, 0, WIDTH, HEIGHT), 0)
    assert changed["image"].shape == (1, 128, 128, 3)
    assert changed["image"].dtype == torch.uint8
    assert changed["boxes"].tolist() == [[[0.0, 0.0, 128.0, 85.0]]]
    assert bool((changed["image"][0, :85] == 255).all())
    assert bool((changed["image"][0, 85:] == 7).all())
    colours = drawn(FitImage(height=128, width=128, fill=(124, 116, 104)), painted(0, 0, WIDTH, HEIGHT), 0)["image"]
    assert colours.dtype == torch.uint8
    assert torch.equal(colours[0, :85], changed["image"][0, :85])
    assert colours[0, 85:].unique(dim=0).unique(dim=1).tolist() == [[[124, 116, 104]]]


@run_each(
    "box, min_visible, clip, expected",
    [
        ([100, 10, 140, 20], 0.1, True, ([100, 10, 140, 20], False)),
        ([134, 10, 154, 20], 0.1, True, ([134, 10, 144, 20], False)),  # half is left
        ([140, 10, 180, 20], 0.1, True, ([140, 10, 144, 20], False)),  # a tenth, which is not less than a tenth
        ([140, 10, 181, 20], 0.1, True, ([140, 10, 144, 20], True)),
        ([140, 10, 181, 20], 0.1, False, ([140, 10, 181, 20], True)),
        ([144, 10, 181, 20], 0.1, False, None),  # touches the border from outside
        ([-30, -30, 5, 5], 0.0, True, ([0, 0, 5, 5], False)),
    ],
)
def test_what_little_is_left_of_a_box_is_ignored(box: Any, min_visible: float, clip: bool, expected: Any) -> None:
    kept = CutImage(min_visible=min_visible, clip=clip).clip_boxes(
        torch.tensor([[box]], dtype=torch.float32),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1, dtype=torch.bool),
        height=HEIGHT,
        width=WIDTH,
    )
    if expected is None:
        assert kept["boxes"].shape == (1, 0, 4)
        assert kept["label"].shape == kept["is_ignored"].shape == (1, 0)
    else:
        assert (kept["boxes"][0, 0].tolist(), bool(kept["is_ignored"])) == expected


def test_an_ignored_box_stays_ignored_and_no_box_is_no_fault() -> None:
    sample = painted(60, 40) | {"is_ignored": torch.ones(1, 1, dtype=torch.bool)}
    nothing = {
        name: value[:, :0] if name in ("boxes", "label", "is_ignored") else value for name, value in sample.items()
    }
    for transform in TRANSFORMS.values():
        assert bool(drawn(transform, sample, 0)["is_ignored"].all())
        assert drawn(transform, nothing, 0)["boxes"].shape == (1, 0, 4)


def test_the_images_of_a_step_have_one_size_whatever_the_sample() -> None:
    shapes = {step: {drawn(ScaleSteps(), painted(0, 0), i, step)["image"].shape for i in range(4)} for step in range(9)}
    assert all(len(each) == 1 for each in shapes.values())
    assert len({shape for each in shapes.values() for shape in each}) > 1


def test_images_that_the_canvas_does_not_hold_are_refused() -> None:
    fit = FitImage(height=160, width=160, mode="short_side", short_px=150, long_px=300)
    with pytest.raises(DataError, match="96 x 144 pixels becomes 150 x 225, the canvas is 160 x 160; enlarge"):
        drawn(fit, painted(0, 0), 0)
    with pytest.raises(ConfigError, match="mode short_side takes short_px and long_px"):
        FitImage(height=8, width=8, mode="short_side")


class _Boxed:
    """A data set of one painted image."""

    info = DataInfo(
        facts={},
        fields={
            "image": Field("height width 3", "uint8"),
            "boxes": Field("boxes 4", "float32", "px", frame="image", collate="concatenate", offsets="box_offsets"),
        },
    )

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        return {name: painted(20, 10)[name][0] for name in ("image", "boxes")}


def test_a_transform_that_leaves_boxes_behind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'resize_image' moves pixels but not 'boxes' of the data set"):
        BatchReader(_Boxed(), [NamedTransform("resize_image", ResizeImage(size_px=32))])
    batch = BatchReader(_Boxed(), [NamedTransform("flip_image", FlipImage(probability=1.0))])([SampleKey(0, 0, 0)])
    assert batch["boxes"].tolist() == [[WIDTH - 50, 10, WIDTH - 20, 30]]
    assert batch["box_offsets"].tolist() == [0, 1]
