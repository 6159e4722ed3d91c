"""Pixels of photographs: EXIF's eight orientations by hand, and what is not an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sightline.data.files.image_files import check_image, read_header, read_image
from sightline.errors import DataError

STORED = [[1, 2, 3], [4, 5, 6]]
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}
"""By Exif's words: in 6 the first row stored is the right side, and the first column the top."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientations_are_those_of_exif(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.array(STORED, dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    header = read_header(tmp_path / "a.png")
    assert header == (2, 3, "L", orientation)
    found = read_image(tmp_path / "a.png", orientation=orientation)
    assert found[..., 0].tolist() == UPRIGHT[orientation]
    assert found.shape[:2] == header.size_px(upright=True)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(found[..., 0], np.asarray(ImageOps.exif_transpose(image)))
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == STORED


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_files_that_are_cut_short_are_found_and_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    check_image(path)
    content = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        for read in (check_image, read_image):
            with pytest.raises(DataError, match=rf"a\.{suffix}: cannot be decoded"):
                read(path)


def test_what_has_no_colours_to_show_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="pixels of the kind F"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(np.full((2, 3), 2**20, dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match="its values run from 1048576 to 1048576, beyond 16 bits"):
        read_image(tmp_path / "b.tif")
    (tmp_path / "c.jpg").mkdir()
    with pytest.raises(DataError, match="is not a regular file"):
        read_image(tmp_path / "c.jpg")
