"""Transforms of images with boxes: Pillow's numbers, boxes go where their pixels go, the same bits in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from sightline.areas.detect.transforms import CutImage, FitImage, ScaleSteps, TurnImage
from sightline.contract.dataset import Dataset
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.registry import transforms
from sightline.contract.types import ComponentConfig, DataInfo, Field, SampleKey
from sightline.ops.points.affine_maps import warp_boxes
from sightline.parts.transforms import images
from sightline.parts.transforms.images import ColorJitter, FlipImage, NormalizeImage, ResizeImage
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.cases import run_each
from tests.transforms.scenes import draws_of

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


class _Boxed(Dataset):
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


# --- transforms of images ---------------------------------------------------------------------------------------------


ALL = {
    "resize_image": ResizeImage(size_px=17),
    "flip_image": FlipImage(),
    "color_jitter": ColorJitter(),
    "normalize_image": NormalizeImage(),
}


def pictures(count: int, height: int = 23, width: int = 31, *, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8).to(dtype)


@run_each("name", ALL)
@run_each("dtype", [torch.uint8, torch.float32])
def test_an_image_has_the_same_bits_alone_and_in_a_batch(name: str, dtype: torch.dtype) -> None:
    given = pictures(9, dtype=dtype)
    before = given.clone()
    together = ALL[name](draws_of(9), image=given)["image"]
    assert torch.equal(given, before)
    for place in range(9):
        alone = ALL[name](draws_of(first=place), image=given[place : place + 1])["image"]
        assert torch.equal(together[place], alone[0])


@pytest.mark.parametrize("name", ALL)
def test_each_is_registered_and_gives_new_tensors(name: str) -> None:
    built: Any = transforms.build(ComponentConfig(name), facts={})
    given = pictures(2, 224, 224)
    assert built(draws_of(2), image=given)["image"].data_ptr() != given.data_ptr()


@pytest.mark.parametrize("name", sorted({*ALL} - {"flip_image"}))
def test_normalised_images_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"batches of \(height, width, 3\) are needed, found \(2, 3, 8, 8\)"):
        ALL[name](draws_of(2), image=torch.zeros(2, 3, 8, 8))


def test_normalised_images_are_flipped_as_others_are() -> None:
    """A vote comes after `normalize_image`."""
    given, normalize = pictures(3), NormalizeImage()
    before = normalize(draws_of(3), image=FlipImage()(draws_of(3), image=given)["image"])["image"]
    after = FlipImage()(draws_of(3), image=normalize(draws_of(3), image=given)["image"])["image"]
    assert torch.equal(before, after)


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [5, 23, 31, 40, 224])
def test_sizes_are_changed_as_pillow_does(size_px: int) -> None:
    given = pictures(1)
    found = ResizeImage(size_px=size_px)(draws_of(), image=given)["image"][0]
    picture = Image.fromarray(given[0].numpy()).resize((size_px, size_px), Image.Resampling.BILINEAR)
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy().astype(int) - np.asarray(picture)).max() <= 1  # both round after each of two passes
    exact = ResizeImage(size_px=size_px)(draws_of(), image=given.float())["image"][0]
    # Two passes rounded by half a level each, the first one's error averaged by the second.
    assert (exact - found.float()).abs().max() <= 1.01


# --- mirror ----------------------------------------------------------------------------------------------------------


def test_images_are_mirrored_left_to_right() -> None:
    given = pictures(3)
    found = FlipImage(probability=1.0)(draws_of(3), image=given)["image"]
    assert np.array_equal(found.numpy(), given.numpy()[:, :, ::-1])
    assert torch.equal(FlipImage(probability=0.0)(draws_of(3), image=given)["image"], given)


def test_half_of_the_images_are_mirrored() -> None:
    ramp = torch.arange(2, dtype=torch.uint8)[None, None, :, None].expand(4000, 1, 2, 3)
    flipped = FlipImage()(draws_of(4000), image=ramp)["image"][:, 0, 0, 0].float().mean()
    assert abs(flipped - 0.5) < 4 * 0.5 / np.sqrt(4000)


# --- colours ---------------------------------------------------------------------------------------------------------


class Fixed:
    """Draws that are given: factors as shares of their range, and an order."""

    def __init__(self, shares: list[float], order: list[int]) -> None:
        self.shares, self.order = torch.tensor([shares]), torch.tensor([order])

    def uniform(self, *shape: int) -> Tensor:
        return self.shares

    def permutation(self, length: int) -> Tensor:
        return self.order


@run_each("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
@run_each("shares", [[0.0, 0.25, 1.0], [1.0, 0.9, 0.1], [0.5, 0.5, 0.5]])
def test_colours_change_as_pillow_changes_them(order: list[int], shares: list[float]) -> None:
    given = pictures(1)
    found = ColorJitter()(Fixed(shares, order), image=given)["image"][0]  # type: ignore[arg-type]
    picture = Image.fromarray(given[0].numpy())
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in order:
        picture = enhancers[which](picture).enhance(0.6 + 0.8 * shares[which])
    # Pillow rounds down after each of three steps, and the grey and its mean to whole levels; each error then grows by
    # a factor of up to 1.4: 1.4^2 + 1.4 + 1 of 1.5 levels.
    assert np.abs(found.numpy() - np.asarray(picture).astype(float)).max() < 1.5 * (1.96 + 1.4 + 1)


def test_colours_worked_by_hand() -> None:
    """Brightness by 1.4, then contrast by 0.6, then saturation by 1.4, of a red pixel beside a black one."""
    given = torch.tensor([[200.0, 0, 0], [0, 0, 0]]).view(1, 1, 2, 3)
    found = ColorJitter()(Fixed([1.0, 0.0, 1.0], [0, 1, 2]), image=given)["image"].view(2, 3)  # type: ignore[arg-type]
    bright = np.array([[255.0, 0, 0], [0, 0, 0]])  # 280, clipped
    flat = 0.6 * bright + 0.4 * 0.299 * 255 / 2
    luma = flat @ [0.299, 0.587, 0.114]
    expected = np.clip(1.4 * flat - 0.4 * luma[:, None], 0, 255)
    assert np.abs(found.numpy() - expected).max() < 1e-3


def test_nothing_changes_where_nothing_may() -> None:
    given = pictures(4)
    found = ColorJitter(brightness=0, contrast=0, saturation=0)(draws_of(4), image=given)["image"]
    assert found.dtype == torch.float32
    assert torch.equal(found, given.float())


def test_factors_and_orders_differ_between_images() -> None:
    given = pictures(1).expand(6, -1, -1, -1)
    found = ColorJitter()(draws_of(6), image=given)["image"]
    assert len({each.numpy().tobytes() for each in found}) == 6


def test_grey_is_averaged_over_any_number_of_pixels() -> None:
    """Sums by halves against float64, for odd and even numbers of pixels."""
    for height, width in ((1, 1), (3, 5), (7, 8), (96, 96)):
        grey = pictures(2, height, width, dtype=torch.float32)[..., :1]
        expected = grey.double().sum(dim=(1, 2, 3))
        found = images._sum_of_pixels(grey).flatten().double()
        assert ((found - expected).abs() <= expected * 2**-24 * 15).all()  # a rounding for each halving


# --- the end ---------------------------------------------------------------------------------------------------------


def test_normalised_as_numpy_does_it() -> None:
    given = pictures(2)
    found = NormalizeImage()(draws_of(2), image=given)["image"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((given.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert np.abs(found.numpy() - expected).max() < 4 * 2**-24 * 3  # three roundings of numbers up to 3


def test_mean_and_deviation_may_be_others() -> None:
    given = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    found = NormalizeImage(mean=(0.5, 0.0, 1.0), std=(0.5, 2.0, 1.0))(draws_of(), image=given)["image"]
    assert found.flatten().tolist() == [1.0, 0.5, 0.0]
