"""A photo becomes the same whole numbers in training, evaluation, prediction and before an exported file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.areas.detect.combined_images import Mosaic
from sightline.areas.detect.transforms import FitImage
from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey
from sightline.engine.run_loading import TrainedRun, open_trained
from sightline.parts.transforms.images import ResizeImage, resize_images
from sightline.store.files.image_files import describe_photo_reading, read_header, read_image
from sightline.store.loading.sample_stream import transform_samples
from sightline.workbench.export.graph import split_transforms
from sightline.workbench.predict.prediction import build_predictor
from tests.trained import copy_run

KEY = SampleKey(0, 0, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return open_trained(copy_run("detect", tmp_path_factory.mktemp("detect")))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG that lies on its side, of other sides than the canvas."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).resize((610, 400)).save(path, exif=exif)
    return path


def test_a_photo_stays_whole_numbers_up_to_the_network(run: TrainedRun, photo: Path) -> None:
    predictor = build_predictor(run)
    sample = predictor.read(photo).sample
    info = run.files.inputs
    outside = split_transforms(run.transforms, run.model).outside  # what is done before an exported file
    before_file = transform_samples([sample], [KEY], outside, info)["image"]
    assert before_file.dtype == torch.uint8
    network = transform_samples([sample], [KEY], run.transforms, info)["image"]
    assert torch.equal(network, run.transforms[-1].apply(None, image=before_file.permute(0, 2, 3, 1))["image"])
    upright = Image.open(photo).transpose(Image.Transpose.ROTATE_270)
    assert upright.size == (400, 610)
    scale = min(192 / 610, 256 / 400)
    size = (round(400 * scale), round(610 * scale))
    by_pillow = np.asarray(upright.resize(size, Image.Resampling.BILINEAR)).astype(int)
    found = before_file[0].permute(1, 2, 0)[: size[1], : size[0]].numpy().astype(int)
    assert np.abs(found - by_pillow).max() <= 1  # both round after each of two passes


def test_training_fits_photos_to_the_same_numbers(photo: Path) -> None:
    """A mosaic without others holds the numbers of `fit_image` in its middle."""
    image = torch.from_numpy(read_image(photo, orientation=read_header(photo).orientation))[None]
    boxes = {"boxes": torch.zeros(1, 0, 4), "to_canvas": torch.eye(3, dtype=torch.float64)[None, :2]}
    labels = {"label": torch.zeros(1, 0, dtype=torch.int64), "is_ignored": torch.zeros(1, 0, dtype=torch.bool)}
    fitted = FitImage(height=96, width=128)(Draws.from_seed(0), image=image, **boxes)["image"]
    joined = Mosaic(height=96, width=128)(Draws.from_seed(0), None, image=image, **boxes, **labels)["image"]
    width = round(400 * 96 / 610)
    left = 128 - width // 2
    assert joined.dtype == fitted.dtype == torch.uint8
    assert torch.equal(joined[:, 48:144, left : left + width], fitted[:, :, :width])


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (7, 5), (30, 41), (64, 1)])
@pytest.mark.parametrize("given", [(1, 1), (2, 1), (1, 7), (30, 41), (97, 13)])
def test_photos_of_any_shape_are_resized_as_pillow_does(given: tuple[int, int], size: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*given, 3), dtype=np.uint8))
    planes = [
        Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR)
        for plane in image.permute(2, 0, 1).float().numpy()
    ]
    expected = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    exact = resize_images(image.float(), size=size).numpy()
    assert np.abs(exact - expected).max() < 255 * 2**-20 * 10  # sums of at most 97 terms in float32
    assert np.abs(resize_images(image, size=size).numpy() - expected).max() <= 1.01  # rounded after each pass
    assert ResizeImage(size_px=3)(Draws.from_seed(0), image=image[None])["image"].dtype == torch.uint8


def test_reading_by_rows_changes_no_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 1501, 3), dtype=np.uint8)  # several pieces of rows
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("recorded", ["as here", "otherwise", None])
def test_a_run_states_how_its_photos_were_read(
    recorded: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copy_run("detect", tmp_path / "copy")
    environment = json.loads((path / "environment.json").read_text())
    assert environment["photos"] == describe_photo_reading()
    environment["photos"] = {"as here": describe_photo_reading(), "otherwise": "RGB; libjpeg 8"}.get(recorded or "")
    (path / "environment.json").write_text(json.dumps(environment))
    with caplog.at_level(logging.WARNING):
        open_trained(path)
    lines = [record.getMessage() for record in caplog.records]
    is_told = any("photos-read-otherwise" in line and "RGB; libjpeg 8" in line for line in lines)
    assert is_told == (recorded == "otherwise"), lines
