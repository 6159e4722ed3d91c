"""Command line of `sightline data`; the implementation, verbs/data.py, is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.gc_pause import gc_paused
from sightline.published.rows import list_names
from sightline.verbs.options import Checkpoint, Device, Json, Overrides, Plugins, Traceback, check_writable

__all__ = ["data_app"]

data_app = typer.Typer(no_args_is_help=True, help="Prepare data sets and describe their contents.")
_LAYOUTS = ", ".join(list_names())
_BOXES = "citypersons, coco, ecp, kitti, odgt, widerperson, yolo_txt"
"""Layouts of box labels, as text: the module that defines them imports torch. A test compares the two."""


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a data set: modelnet40, cloud_folder")],
    source: Annotated[Path, typer.Option("--from", metavar="PATH", help="the downloaded data, or your own")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="folder for the prepared data")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="options of the preparation: num_points=2048")
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Prepare a public data set.

    Recognises its layout, verifies it, and writes it in a format that is fast to read.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.prepare(name, tuple(options or ()), source=source, target=target, json=json)


@data_app.command()
def render(
    source: Annotated[
        str, typer.Argument(metavar="SET|DIR", help="a data set, its prepared folder, or a folder of meshes and clouds")
    ],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="where the views go")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="options of the objects: num_points=1024, train_size=480"),
    ] = None,
    views: Annotated[int, typer.Option("--views", metavar="N", min=1, max=1000, help="views per object")] = 12,
    size: Annotated[int, typer.Option("--size", metavar="PX", min=8, max=2048, help="height and width of a view")] = 96,
    style: Annotated[
        Literal["shaded", "depth"], typer.Option("--style", help="lit and darker with distance, or the distance only")
    ] = "shaded",
    projection: Annotated[
        Literal["parallel", "pinhole"], typer.Option("--projection", help="parallel rays, or a camera three radii away")
    ] = "parallel",
    elevations: Annotated[
        str, typer.Option("--elevations", metavar="DEG,...", help="elevations of the camera rings above the horizon")
    ] = "30",
    up: Annotated[
        Literal["x", "y", "z"] | None,
        typer.Option("--up", help="up axis of files; data sets define theirs"),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", min=1, help="processes [one per CPU]")] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Render views of every object.

    They are written to a folder that data sets read images from (data.views=DIR). Cameras are evenly spaced around the
    up axis; clouds become surfaces. Neither a graphics library nor a GPU is used. The result has the same bits for any
    number of processes; repeat the command to resume it.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    render_options = (views, size, style, projection, elevations)
    return verb.render(verb.RenderOptions(source, tuple(options or ()), target, *render_options, up, jobs, json))


@data_app.command("import-views")
def import_views(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="pictures: CLASS/train/NAME.obj_whiteshaded_v0000.png")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="where the views go")],
    clouds: Annotated[
        Path | None,
        typer.Option("--of", metavar="DIR", help="a prepared data set; pictures of other shapes are left out"),
    ] = None,
    min_views: Annotated[
        int, typer.Option("--min-views", metavar="N", min=1, help="shapes with fewer pictures are left out and listed")
    ] = 12,
    background: Annotated[
        Literal["black", "white"], typer.Option("--background", help="colour behind transparent pixels")
    ] = "black",
    size: Annotated[
        int | None, typer.Option("--size", metavar="PX", min=8, max=2048, help="height and width [unchanged]")
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Import rendered pictures of other sources.

    They are written to a folder that data sets read images from (data.views=DIR). Pictures with the same name belong to
    the same shape, regardless of the folder of their camera set-up. Shapes without pictures or without a cloud are
    listed.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.import_views(
        source, target=target, clouds=clouds, min_views=min_views, background=background, size_px=size, json=json
    )


@data_app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="a data set's name, or a prepared folder")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="with --from, options of reading: columns=[x, y, z]"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="inspect LiDAR scans of a data set that are not prepared"),
    ] = None,
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Describe a data set or a prepared folder.

    Prints layouts, download page and licence, or counts, points per sample and ranges.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.info(name, options or (), source=source, plugins=tuple(plugin or ()), json=json)


@data_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a prepared folder")],
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Verify the files of a prepared folder.

    Each is compared with the hash that was stored when it was written.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.verify(folder, json=json)


@data_app.command()
def centres(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a trained refiner: a run of the task centre")],
    data: Annotated[
        Path, typer.Option("--data", metavar="CONFIG", help="config of the data set to predict points for")
    ],
    target: Annotated[
        Path, typer.Option("--to", metavar="FILE", callback=check_writable("--to"), help="file for the points")
    ],
    overrides: Overrides = None,
    split: Annotated[
        Literal["train", "test"],
        typer.Option("--split", help="split of the data set's files; validation frames are in train"),
    ] = "test",
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Predict the reference points of all frames.

    Writes a file for reference: {name: file, path: FILE}, predicted by a trained refiner. The file has one line 'x y z'
    in mm, or 'invalid', for each frame of the data set's files, in their order. A refiner is trained like any run. One
    that was trained on frames which the config tests is refused: its points would depend on the tested frames.
    """
    with gc_paused():
        from sightline.verbs import centres as verb

    plugins = tuple(plugin or ())
    return verb.centres(
        verb.CentresOptions(run, data, tuple(overrides or ()), split, target, checkpoint, plugins, device, json)
    )


@data_app.command()
def convert(
    source: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="folder of the labels, with or without their images")
    ],
    layout: Annotated[str, typer.Option("--layout", metavar="NAME", help=f"their layout, one of {_BOXES}")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="an empty or new folder")],
    as_layout: Annotated[str, typer.Option("--as", metavar="NAME", help="layout to write")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="box=visible, faulty=leave_out, images=leave"),
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Convert box labels to another layout.

    Labels that it cannot express are dropped, counted and printed. Images are linked to the folder that the layout
    requires. `conversion.json`, next to the labels, lists what was dropped.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.convert(
        tuple(options or ()), source=source, layout=layout, target=target, as_layout=as_layout, json=json
    )


@data_app.command("convert-weights")
def convert_weights(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="published weights: a .pth file or similar, or a folder of its parts"),
    ],
    layout: Annotated[str, typer.Option("--layout", metavar="NAME", help=f"the code that wrote it, one of {_LAYOUTS}")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="run directory to write")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG", help="take data, transforms and training from this config"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="NAME", help="data set of their training [that of the layout]"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FILE", help="file of the image branch, for layouts of two files")
    ] = None,
    axes: Annotated[
        Literal["xyz", "zyx"], typer.Option("--axes", help="axis order of 3D convolution kernels in the file")
    ] = "xyz",
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Convert published weights to a run directory.

    No code in the file is executed. The sizes of the model are read from the tensors. Arguments that tensors do not
    show (neighbours, dropout) are taken from the publication and printed; key=value overrides them:
    model.num_neighbours=40, data.root=PATH.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.convert_weights(
        file,
        tuple(overrides or ()),
        layout=layout,
        target=target,
        config=config,
        data=data,
        images=images,
        axes=axes,
        plugins=tuple(plugin or ()),
        json=json,
    )
