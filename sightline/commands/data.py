"""Records of `sightline data`; their functions are in `sightline.verbs.data`."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Literal

from sightline.commands.fields import (
    DocumentCommand,
    PluginCommand,
    argument,
    option,
)


class PrepareOptions(
    PluginCommand,
    name="data prepare",
    run="data.prepare",
    help_rows="data.list_options",
    examples=(
        "data prepare modelnet40 --from ModelNet40 --to data/modelnet40",
        "data prepare cloud_folder --from clouds --to data/clouds up_axis=z --config own.yaml",
    ),
):
    """Prepare a public data set, or your own files.

    Recognises its layout, verifies it, and writes it in a format that is fast to read; 'sightline data prepare NAME
    --help' lists the options of a set.
    """

    dataset: str = argument("NAME", "a data set: modelnet40, cloud_folder")
    source: Path = option("--from", "PATH", "the downloaded data, or your own", default=MISSING)
    target: Path = option("--to", "DIR", "folder for the prepared data", default=MISSING)
    config: Path | None = option(
        "--config", "FILE.yaml", "also write a config that trains on it: 'sightline train FILE.yaml'", is_written=True
    )
    base: str | None = option(
        "--base", "NAME", "shipped config that --config builds on [the first of the set; of photos, by their number]"
    )
    options: tuple[str, ...] = argument("[KEY=VALUE]...", "options of the preparation: num_points=2048", default=())


class ConvertOptions(
    PluginCommand,
    name="data convert",
    run="data.convert",
    help_rows="data.list_reading_options",
    examples=(
        "data convert crowdhuman --from CrowdHuman --as coco --to crowdhuman_coco",
        "data convert coco --from photos --as yolo_txt --to photos_yolo faulty=leave_out",
        "data convert boxes3d_folder --from lidar --as labelcloud_absolute --to lidar_labelcloud",
    ),
):
    """Convert labels of boxes to another format.

    Formats are called as the data sets that read them; 3D boxes of boxes3d_folder are written in forms of label tools.
    What the new format cannot hold is printed with its count. Images are linked, not copied, so that 'sightline data
    prepare' reads the new folder at once. The options of NAME are those of 'data prepare NAME'.
    """

    dataset: str = argument("NAME", "the data set that reads the labels: coco, yolo_txt, crowdhuman")
    options: tuple[str, ...] = argument("[KEY=VALUE]...", "options of reading: faulty=leave_out", default=())
    source: Path | None = option("--from", "PATH", "folder or file of the labels, with their images below it")
    as_format: str | None = option("--as", "NAME", "the data set that will read the new labels, or a form of 3D boxes")
    target: Path | None = option("--to", "DIR", "folder for the new labels, new or empty")
    box: Literal["full", "visible", "head"] = option(
        "--box",
        None,
        "of people: the box that is converted; visible boxes and heads go along with full ones",
        default="full",
    )


class RenderOptions(
    DocumentCommand,
    name="data render",
    run="data.render",
    examples=("data render data/modelnet40 --to data/views --size 64",),
):
    """Render views of every cloud.

    They are written to a folder that data sets read images from (data.views=DIR). Cameras are evenly spaced around the
    up axis; clouds become surfaces. Neither a graphics library nor a GPU is used; repeat the command to resume it.
    """

    source: str = argument("SET|DIR", "a data set of clouds, or its prepared folder")
    target: Path = option("--to", "DIR", "where the views go", default=MISSING)
    options: tuple[str, ...] = argument("[KEY=VALUE]...", "num_points=1024: the first points alone", default=())
    num_views: int = option("--views", "N", "views per object", default=12, min=1, max=1000)
    size_px: int = option("--size", "PX", "height and width of a view", default=96, min=8, max=2048)
    style: Literal["shaded", "depth"] = option(
        "--style", None, "lit and darker with distance, or the distance only", default="shaded"
    )
    projection: Literal["parallel", "pinhole"] = option(
        "--projection", None, "parallel rays, or a camera three radii away", default="parallel"
    )
    elevations: str = option(
        "--elevations", "DEG,...", "elevations of the camera rings above the horizon", default="30"
    )


class InfoOptions(
    PluginCommand,
    name="data info",
    run="data.info",
    examples=(
        "data info modelnet40",
        "data info data/modelnet40",
    ),
):
    """Describe a data set or a prepared folder.

    Prints layouts, download page and licence, or counts, points per sample and ranges.
    """

    dataset: str = argument("NAME|DIR", "a data set's name, or a prepared folder")
    options: tuple[str, ...] = argument(
        "[KEY=VALUE]...", "with --from, options of reading: columns=[x, y, z]", default=()
    )
    source: Path | None = option("--from", "PATH", "inspect LiDAR scans or photos of a data set that are not prepared")


class VerifyOptions(DocumentCommand, name="data verify", run="data.verify", examples=("data verify data/modelnet40",)):
    """Verify the files of a prepared folder.

    Each is compared with the hash that was stored when it was written.
    """

    folder: Path = argument("DIR", "a prepared folder")


DATA_COMMANDS = (InfoOptions, PrepareOptions, ConvertOptions, VerifyOptions, RenderOptions)
