"""Sources of published weights: one file, a second one for images, or a folder with a file for each part."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import CheckpointError, UserError
from sightline.models.published.published_crosspoint import IMAGE_PREFIX, POINT_PREFIX
from sightline.models.published.published_darknet import DARKNET_FILES, read_darknet
from sightline.models.published.published_files import PublishedFile, read_parts, read_published
from sightline.models.published.published_model import PublishedModel
from sightline.models.published.published_models import MODELS

__all__ = ["read_source"]


def read_source(file: Path, images: Path | None, layout: str, published: PublishedModel) -> PublishedFile:
    """Read the weights of a source; several files become one state, as in their authors' training.

    Raises UserError for a second file that is missing or not needed, CheckpointError for unreadable files and for a
    folder with a part that the layout would leave out.
    """
    if published.has_image_file and images is None:
        raise UserError(f"--layout {layout}: its image branch is in a file of its own; give it by --images FILE")
    if images is not None and not published.has_image_file:
        with_one = [name for name, model in MODELS.items() if model.has_image_file]
        raise UserError(f"--images {images}: the layout '{layout}' has no second file; {', '.join(with_one)} have")
    if published.parts and file.is_dir():
        _assert_whole(file, layout, published)
        return read_parts(file, published.parts)
    if layout in DARKNET_FILES:
        return read_darknet(file, layout)
    source = read_published(file)
    if images is None:
        return source
    image_file = read_published(images)
    state = {f"{POINT_PREFIX}{name}": value for name, value in source.state.items()}
    state |= {f"{IMAGE_PREFIX}{name}": value for name, value in image_file.state.items()}
    return PublishedFile(state, source.containers, source.others)


def _assert_whole(folder: Path, layout: str, published: PublishedModel) -> None:
    part_names = {name for model in MODELS.values() for name in model.parts}
    unexpected = sorted(name for name in part_names - published.parts.keys() if (folder / name).exists())
    if unexpected:
        raise CheckpointError(
            f"{folder}: holds {', '.join(unexpected)}, which the layout '{layout}' does not have; take --layout "
            f"{layout}_crf"
        )
