"""Draws the pictures of this folder that end in .png anew: .venv/bin/python docs/pictures/draw.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.pose.sets.depth_frames import DepthFrames
from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.areas.pose.v2v import DrawHeatmaps, PlaceCube, Voxelize
from sightline.contract.types import SampleKey
from sightline.draw.pictures import PALETTE, encode_png, label_colors, render_clouds
from sightline.ops.views.cameras import ring_cameras
from sightline.ops.views.pinhole import project_points
from sightline.ops.views.rendering import Style, on_background, render_cloud
from sightline.parts.transforms.point_selection import SamplePoints
from sightline.parts.transforms.points import Rotate, Scale
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.view.samples import Branch, view_sample
from sightline.view.sheet import draw_sheet

CHOSEN = (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Which solid of each class."""
STYLES: tuple[Style, ...] = ("shaded", "depth")


def draw(path: Path) -> None:
    """One solid of each class, its points coloured by part."""
    shapes = SyntheticShapes(split="train", num_points=16384, train_size=240)
    names = shapes.info.facts["class_names"]
    indices = [int(np.flatnonzero(shapes.strata == label)[rank]) for label, rank in enumerate(CHOSEN)]
    samples = [shapes[SampleKey(index, 0, 0)] for index in indices]
    pixels = render_clouds(
        [sample["points"].numpy() for sample in samples],
        captions=[name.replace("_", " ") for name in names],
        colors=[label_colors(sample["part"].numpy() % 10) for sample in samples],
        up_axis=shapes.info.facts["up_axis"],
        columns=6,
        tile_px=240,
    )
    path.write_bytes(encode_png(pixels))


def draw_stages(path: Path) -> None:
    """A solid on its way to the model, as `sightline view` draws it."""
    shapes = SyntheticShapes(split="train", num_points=4096, train_size=240, target="parts")
    transforms = [
        NamedTransform("rotate", Rotate(up_axis="z")),
        NamedTransform("scale", Scale()),
        NamedTransform("sample_points", SamplePoints(num_points=1024)),
    ]
    index = int(np.flatnonzero(shapes.strata == shapes.info.facts["category_names"].index("chair"))[0])
    branch = Branch("train", BatchReader(shapes, transforms))
    subject = view_sample(index, name=f"train/{index}", branches=[branch], seed=3, facts=shapes.info.facts)
    path.write_bytes(encode_png(draw_sheet(subject)))


def draw_hand(path: Path) -> None:
    """A hand from its depth image to its heat maps, as `sightline view` draws it."""
    hands = SyntheticHands(split="train", train_size=4)
    place_cube = PlaceCube(cube_mm=200.0, size=44, scale=(0.8, 1.2), max_angle_rad=0.698, max_shift=2.0)
    transforms = [
        NamedTransform("place_cube", place_cube),
        NamedTransform("voxelize", Voxelize()),
        NamedTransform("draw_heatmaps", DrawHeatmaps()),
    ]
    branch = Branch("train", BatchReader(hands, transforms))
    subject = view_sample(2, name="train/2", branches=[branch], seed=0, facts=hands.info.facts)
    path.write_bytes(encode_png(draw_sheet(subject, tile_px=180)))


def draw_views(path: Path) -> None:
    """Five solids from six cameras of twelve: shaded, and below in `depth`."""
    shapes = SyntheticShapes(split="train", train_size=240)
    names = shapes.info.facts["class_names"]
    chosen = [int(np.flatnonzero(shapes.strata == names.index(name))[0]) for name in ("chair", "mug", "lamp")]
    cameras = ring_cameras(12, size_px=96)
    rows = [
        np.concatenate(
            list(render_cloud(shapes[SampleKey(index, 0, 0)]["points"].numpy(), cameras, style=style)[:8]), 1
        )
        for index in chosen
        for style in STYLES
    ]
    path.write_bytes(encode_png(on_background(np.concatenate(rows), "white")))


def draw_figures(path: Path) -> None:
    """Sixteen hands in two rows: depths, near ones dark, and bones."""
    hands = SyntheticHands(split="train")
    strips = [np.concatenate([_figure(hands, first + i) for i in range(8)], axis=1) for first in (0, 8)]
    path.write_bytes(encode_png(np.concatenate(strips)))


def _figure(frames: DepthFrames, index: int, *, tile_px: int = 144) -> np.ndarray:
    """A frame cut out about its figure, (tile, tile, 3) uint8, with a colour for each finger or limb."""
    sample = frames[SampleKey(index, 0, 0)]
    depth, joints = sample["depth"].numpy(), project_points(sample["joints"].numpy(), sample["camera"].numpy())[:, :2]
    rows, columns = (np.flatnonzero((depth > 0).any(axis=axis)) for axis in (1, 0))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    side_px = int((high - low).max()) + 9
    corner = (low + high) // 2 - side_px // 2
    padded = np.pad(depth, 240)[240 + corner[1] :, 240 + corner[0] :][:side_px, :side_px]
    near, far = depth[depth > 0].min(), depth.max()
    levels = np.where(padded > 0, 120 + 110 * (padded - near) / (far - near), 255).astype(np.uint8)
    picture = Image.fromarray(np.repeat(levels[..., None], 3, axis=-1)).resize((tile_px,) * 2, Image.Resampling.BICUBIC)
    pencil, places = ImageDraw.Draw(picture), (joints - corner + 0.5) * tile_px / side_px
    for bone in frames.info.facts["bones"]:
        color = PALETTE[(bone[1] - 1) // 4]
        pencil.line([tuple(places[joint]) for joint in bone], fill=tuple(color.tolist()), width=2)
    return np.asarray(picture)


if __name__ == "__main__":
    draw(Path(__file__).with_name("synthetic_shapes.png"))
    draw_stages(Path(__file__).with_name("view.png"))
    draw_hand(Path(__file__).with_name("view_hand.png"))
    draw_views(Path(__file__).with_name("views.png"))
    draw_figures(Path(__file__).with_name("synthetic_hands.png"))
