"""Small sets of images with boxes, written byte by byte as their tools export them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.store.boxes.labelled_images import LabelledImages


def quiet(done: int, total: int, message: str) -> None:
    """Progress that nobody watches."""


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colours of which no two pixels are likely equal: (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path: Path, pixels: np.ndarray | Image.Image, *, orientation: int = 1) -> Path:
    """An image file with an EXIF orientation; PNG keeps every bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, **({"exif": exif} if orientation > 1 else {}))
    return path


def write_coco(
    path: Path, images: Sequence[tuple[Any, ...]], annotations: Sequence[dict[str, Any]], /, **changed: Any
) -> Path:
    """A JSON file of instances: images as (id, name, width, height); categories 3 person, 7 car and 90 hat."""
    keys = ("id", "file_name", "width", "height")
    names = {7: "car", 3: "person", 90: "hat"}
    document = {
        "images": [dict(zip(keys, each, strict=True)) for each in images],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        **changed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def digest_of(images: LabelledImages) -> str:
    """SHA-256 of the boxes, classes, areas and flags of all images."""
    digest = hashlib.sha256()
    for index in range(len(images)):
        record = images.record(index)
        for array in (record.boxes, record.scored, record.label, record.is_ignored, record.area):
            digest.update(array.tobytes())
    return digest.hexdigest()
