"""The command line of `sightline data`: its options; the work is done in verbs/data.py and imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Checkpoint, Device, Json, Overrides, Plugins, Traceback, check_writable

__all__ = ["data_app"]

data_app = typer.Typer(no_args_is_help=True, help="Prepare data sets and print what they hold.")
_LAYOUTS = (
    "antao97_dgcnn_cls, antao97_dgcnn_parts, antao97_dgcnn_scenes, crosspoint_cls, crosspoint_cls_resnet18, "
    "crosspoint_cls_resnet50, crosspoint_parts, crosspoint_seg, crosspoint_seg_resnet18, crosspoint_seg_resnet50, "
    "crowddet_retinanet, crowddet_retinanet_emd, darknet_darknet53, darknet_yolov3, dragonbook_v2v, "
    "lidar_bonnetal_darknet21, lidar_bonnetal_darknet53, lidar_bonnetal_squeezeseg, lidar_bonnetal_squeezeseg_crf, "
    "lidar_bonnetal_squeezesegv2, lidar_bonnetal_squeezesegv2_crf, lulutang0608_point_bert_cls, "
    "lulutang0608_point_bert_parts, lulutang0608_point_bert_pretrained, menghaoguo_pct_parts, odtask_darknet53, "
    "odtask_retina_resnet18, odtask_retina_resnet34, odtask_retina_resnet50, odtask_retina_resnet101, odtask_yolov3, "
    "postech_point_transformer_seg, qq456cvb_pct_cls, qq456cvb_point_transformer_cls, "
    "qq456cvb_point_transformer_parts, salsanext, strawberry_pct_cls, strawberry_pct_cls_new, timm_vit_base, "
    "timm_vit_small, timm_vit_tiny, torchvision_fcos_resnet50_fpn, torchvision_resnet18, torchvision_resnet34, "
    "torchvision_resnet50, torchvision_resnet101, torchvision_retinanet_resnet50_fpn, wangyueft_dgcnn_cls, "
    "wangyueft_pointnet, yanx27_pointnet2_msg_cls, yanx27_pointnet2_ssg_cls, yanx27_pointnet2_ssg_parts, "
    "yanx27_pointnet2_ssg_scenes, yanx27_pointnet_cls, yanx27_pointnet_parts, yanx27_pointnet_scenes, yolox"
)
"""Of published weights; written out, because the room that knows them takes torch along. A test compares the two."""

_BOXES = "citypersons, coco, ecp, kitti, odgt, widerperson, yolo_txt"
"""Layouts of labels of images with boxes, written out for the same reason."""


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a data set: modelnet40, cloud_folder")],
    source: Annotated[Path, typer.Option("--from", metavar="PATH", help="the data as downloaded, or your own")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="where the prepared form goes")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="how to prepare it: num_points=2048")
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Recognise a public layout, verify it, and write one fast form of it."""
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
        typer.Argument(metavar="[KEY=VALUE]...", help="which objects: num_points=1024, train_size=480"),
    ] = None,
    views: Annotated[int, typer.Option("--views", metavar="N", min=1, max=1000, help="views of each object")] = 12,
    size: Annotated[int, typer.Option("--size", metavar="PX", min=8, max=2048, help="height and width of a view")] = 96,
    style: Annotated[
        Literal["shaded", "depth"], typer.Option("--style", help="lit, and dimmer far away; or the distance alone")
    ] = "shaded",
    projection: Annotated[
        Literal["parallel", "pinhole"], typer.Option("--projection", help="a camera far away, or three radii away")
    ] = "parallel",
    elevations: Annotated[
        str, typer.Option("--elevations", metavar="DEG,...", help="of the rings of cameras above the horizon")
    ] = "30",
    up: Annotated[
        Literal["x", "y", "z"] | None,
        typer.Option("--up", help="the axis that is up in files; data sets state theirs"),
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", min=1, help="processes [one a processor]")] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Render views of every object into a folder that data sets read images from (data.views=DIR).

    Cameras stand evenly around the up axis; clouds become surfaces. Neither a graphics library nor a GPU is used. The
    same bits for any number of processes; a command that was stopped goes on where it was.
    """
    with gc_paused():
        from sightline.verbs import data as verb

    look = (views, size, style, projection, elevations)
    return verb.render(verb.RenderOptions(source, tuple(options or ()), target, *look, up, jobs, json))


@data_app.command("import-views")
def import_views(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="pictures: CLASS/train/NAME.obj_whiteshaded_v0000.png")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="where the views go")],
    clouds: Annotated[
        Path | None, typer.Option("--of", metavar="DIR", help="a prepared set; only shapes that it holds are kept")
    ] = None,
    min_views: Annotated[
        int, typer.Option("--min-views", metavar="N", min=1, help="shapes with fewer pictures are left out, by name")
    ] = 12,
    background: Annotated[
        Literal["black", "white"], typer.Option("--background", help="behind transparent pixels")
    ] = "black",
    size: Annotated[
        int | None, typer.Option("--size", metavar="PX", min=8, max=2048, help="height and width [as they are]")
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Read pictures that others rendered into a folder that data sets read images from (data.views=DIR).

    Pictures of one name belong to one shape, whatever camera set-up's folder they lie in. What lacks pictures or a
    cloud is named.
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
        typer.Argument(metavar="[KEY=VALUE]...", help="with --from: how files are read, columns=[x, y, z]"),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="PATH", help="LiDAR scans of a set, looked at unprepared")
    ] = None,
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Layouts, where to obtain it, terms; for a prepared folder: counts, points per sample, ranges."""
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.info(name, options or (), source=source, plugins=tuple(plugin or ()), json=json)


@data_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a prepared folder")],
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Read every file of a prepared folder and compare it with the hash of what was written."""
    with gc_paused():
        from sightline.verbs import data as verb

    return verb.verify(folder, json=json)


@data_app.command()
def centres(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a trained refiner, a run of the task centre")],
    data: Annotated[Path, typer.Option("--data", metavar="CONFIG", help="whose data set the points are for")],
    target: Annotated[
        Path, typer.Option("--to", metavar="FILE", callback=check_writable("--to"), help="where the points go")
    ],
    overrides: Overrides = None,
    split: Annotated[
        Literal["train", "test"], typer.Option("--split", help="of the set's files: validation frames lie in train")
    ] = "test",
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Write the reference point of every frame, for reference: {name: file, path: FILE}; refiners train like any run.

    A line 'x y z' in mm for each frame of the set's files, in their order, or 'invalid'. A refiner that was trained on
    a part which the config tests is refused: its points would depend on the frames that are tested.
    """
    with gc_paused():
        from sightline.verbs import centres as verb

    plugins = tuple(plugin or ())
    return verb.centres(
        verb.CentresOptions(run, data, tuple(overrides or ()), split, target, checkpoint, plugins, device, json)
    )


@data_app.command()
def convert(
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="the labels, with their images or without")],
    layout: Annotated[str, typer.Option("--layout", metavar="NAME", help=f"how they are written, one of {_BOXES}")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="an empty or new folder")],
    as_layout: Annotated[str, typer.Option("--as", metavar="NAME", help="how they are to be written")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="box=visible, faulty=leave_out, images=leave"),
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Write labels of images with boxes in another layout; what that one cannot state is counted and printed.

    Images are linked to where the layout has them. `conversion.json` beside the labels lists what was dropped.
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
        typer.Argument(metavar="FILE", help="published weights: a .pth file and its like, or a folder of its parts"),
    ],
    layout: Annotated[str, typer.Option("--layout", metavar="NAME", help=f"whose code wrote it, one of {_LAYOUTS}")],
    target: Annotated[Path, typer.Option("--to", metavar="DIR", help="the run directory to be")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="data, transforms and training of this config")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="NAME", help="the data set they were trained on [that of the layout]"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FILE", help="the image branch, where a layout has two files")
    ] = None,
    axes: Annotated[
        Literal["xyz", "zyx"], typer.Option("--axes", help="the order of kernels over volumes in the file")
    ] = "xyz",
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Make a run directory of third-party weights; nothing in the file is run.

    The model's sizes are read off the tensors. What they do not show (neighbours, dropout) is as published, and
    is printed; key=value lays over it: model.num_neighbours=40, data.root=PATH.
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
