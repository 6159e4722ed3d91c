"""Makes the pictures, the screenshots and the outputs of the notebooks of these pages anew:

    python docs/pictures/make.py [FILE...]

Without files it makes all of them, in about an hour on two cores. The pictures of the topics show runs of shipped
configs, which are trained in build/pictures; finished ones are not trained again. Screenshots need chromium. Curves of
measurements are drawn from recorded figures, not measured again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image, ImageDraw
from rich.console import Console
from rich.text import Text

from sightline.areas.boxes3d.pictures import draw_from_above
from sightline.areas.boxes3d.sets.synthetic_streets3d import SyntheticStreets3d
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.pose.sets.depth_frames import DepthFrames
from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.areas.pose.v2v import DrawHeatmaps, PlaceCube, Voxelize
from sightline.commands.look import ViewOptions
from sightline.contract.types import SampleKey
from sightline.draw.drawn_rows import are_drawn
from sightline.draw.pictures import PALETTE, encode_png, label_colors, render_clouds
from sightline.ops.views.cameras import ring_cameras
from sightline.ops.views.pinhole import project_points
from sightline.ops.views.rendering import Style, on_background, render_cloud
from sightline.parts.transforms.point_selection import SamplePoints
from sightline.parts.transforms.points import Rotate, Scale
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.verbs.view import view_run_or_config
from sightline.view.samples import Branch, view_sample
from sightline.view.sheet import draw_sheet

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
CHECK = ("check", "examples/faulty_net.yaml", "--plugin", "examples/faulty_net.py")
STYLES: tuple[Style, ...] = ("shaded", "depth")
TASKS = {
    "classify": ("classify/synthetic_shapes_pointnet", 640),
    "segment": ("segment/synthetic_rooms_point_transformer", 1100),
    "lidar": ("segment/synthetic_lidar_salsanext", 1200),
    "detect": ("detect/synthetic_crowds_fcos", 1300),
    "pose": ("pose/synthetic_hands_v2v_small", 1200),
    "contrast": ("contrast/synthetic_shapes_crosspoint", 900),
}
"""Topic -> config, and width in pixels."""
UNTRAINED = ("contrast",)
"""Topics that show samples alone."""
RUNS = ROOT / "build" / "pictures"
PREDICTED = {
    "detect": (8, "people: boxes"),
    "lidar": (0, "LiDAR scan: classes of points"),
    "segment": (0, "room: classes of points"),
    "pose": (0, "hand: joints"),
}
"""Topic -> test sample, and caption, of the picture of predictions."""
NEAR_M = 22.0
"""Distance up to which the points of a scan are shown there, to both sides of the sensor along each axis."""


def run(*words: object) -> None:
    """Run a command of sightline. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "sightline", *map(str, words)], cwd=ROOT, check=True)


# --- samples ----------------------------------------------------------------------------------------------------------


def draw_shapes(path: Path) -> None:
    """One solid of each class, its points coloured by part."""
    shapes = SyntheticShapes(split="train", num_points=16384, train_size=240)
    names = shapes.info.facts["class_names"]
    chosen = (1, *[0] * (len(names) - 1))  # which solid of each class
    indices = [int(np.flatnonzero(shapes.strata == label)[rank]) for label, rank in enumerate(chosen)]
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
    subject = view_sample(
        index, name=f"train/{index}", branches=[branch], seed=3, facts=shapes.info.facts, all_stages=True
    )
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
    subject = view_sample(2, name="train/2", branches=[branch], seed=0, facts=hands.info.facts, all_stages=True)
    path.write_bytes(encode_png(draw_sheet(subject, tile_px=180)))


def draw_views(path: Path) -> None:
    """Three solids from eight cameras of twelve: shaded, and below in `depth`."""
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


def draw_hands(path: Path) -> None:
    """Sixteen hands in two rows: depths, near ones dark, and bones."""
    hands = SyntheticHands(split="train")
    strips = [np.concatenate([_draw_figure(hands, first + i) for i in range(8)], axis=1) for first in (0, 8)]
    path.write_bytes(encode_png(np.concatenate(strips)))


def _draw_figure(frames: DepthFrames, index: int, *, tile_px: int = 144) -> np.ndarray:
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


# --- commands ---------------------------------------------------------------------------------------------------------


def draw_check(path: Path) -> None:
    """A terminal with `sightline check` of a network whose layers are in a plain list, as printed: without colours."""
    words = [sys.executable, "-m", "sightline", *CHECK]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ sightline {' '.join(CHECK)}", style="bold"))
    for line in (done.stdout + done.stderr).splitlines():
        if not line.startswith("check: "):  # of its progress, which a terminal wipes out
            console.print(Text(line))
    svg = console.export_svg(title="layers in a plain list", unique_id="check")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # fonts of another server
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    path.write_text(svg, encoding="utf-8")


def draw_network(path: Path) -> None:
    """DGCNN, as `sightline describe` draws it."""
    run("describe", CONFIGS / "classify" / "synthetic_shapes_dgcnn.yaml", "--svg", path)


def draw_growth(path: Path) -> None:
    """Time and memory by size, from the recorded figures of `python -m benchmarks --grow all`."""
    from benchmarks.growth import growth_cases, panels, render_growth

    rows = json.loads((ROOT / "docs" / "results" / "growth.json").read_text(encoding="utf-8"))["cases"]
    results = [
        SimpleNamespace(
            **row,
            seconds=SimpleNamespace(cpu=row["cpu_s"]),
            baseline_seconds=SimpleNamespace(cpu=row["baseline_cpu_s"]),
        )
        for row in rows
    ]
    path.write_text(render_growth(panels(growth_cases((), "all", is_quick=False), results)), encoding="utf-8")


def draw_street(path: Path) -> None:
    """A synthetic street with its boxes from above."""
    frame = SyntheticStreets3d(split="train").frame("train", 2)
    path.write_bytes(encode_png(draw_from_above(frame.scan.points, frame.table)))


def train_task(task: str) -> Path:
    """Train the run of a topic, unless it is there and finished; return its folder."""
    run("train", CONFIGS / f"{TASKS[task][0]}.yaml", "--no-check", "--resume", "auto", "--out", RUNS / task)
    return RUNS / task


def draw_task(path: Path, *, task: str) -> None:
    """The first sample that `sightline view` draws of a run, which is trained if it is not there."""
    config, width = TASKS[task]
    subject = CONFIGS / f"{config}.yaml" if task in UNTRAINED else train_task(task)
    with tempfile.TemporaryDirectory() as folder:
        run("view", subject, "--num", 1, "--out", folder)
        image = Image.open(min(Path(folder).glob("*.png"))).convert("RGB")
    save_small(image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS), path)


def save_small(image: Image.Image, path: Path) -> None:
    """Save a picture in 256 colours, of which rare ones, as those of legends, are some."""
    few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def draw_predictions(path: Path) -> None:
    """A prediction of each run side by side, of the test samples in `PREDICTED`."""
    contents, captions, colors = [], [], []
    for task, (index, caption) in PREDICTED.items():
        folder = train_task(task)
        options = ViewOptions(paths=(folder,), samples=str(index), score=0.5 if task == "detect" else None)
        stage = view_run_or_config(folder, options)[0][0].stages[-1]
        coloring, points = stage.coloring("prediction"), stage.points
        captions.append(caption)
        if coloring is None:  # boxes or joints, over their image
            contents.append(stage.panels[0].pixels)
            colors.append(None)
            continue
        shown = (
            np.abs(points[:, :2]).max(axis=1) < NEAR_M
            if stage.surroundings == "scan"
            else are_drawn(points, stage.surroundings, "z")
        )
        contents.append(points[shown])
        colors.append(coloring.colors()[shown])
    pixels = render_clouds(contents, captions=captions, colors=colors, columns=len(contents), tile_px=420)
    path.write_bytes(encode_png(pixels))


def take_screenshot(path: Path) -> None:
    """The report of a small run in chromium."""
    from tests.long.report_pictures import make_page, take_picture

    with tempfile.TemporaryDirectory() as folder:
        sys.stderr.write(take_picture(make_page(path.stem, Path(folder)), path))


# --- notebooks --------------------------------------------------------------------------------------------------------


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a folder that has the configs; a failing cell raises CellExecutionError."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(CONFIGS)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # its times change with every execution
    return notebook


def write_notebook(path: Path) -> None:
    """Execute a notebook, and keep its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(path, Path(folder)), path)


# --- the command ------------------------------------------------------------------------------------------------------


NOTEBOOKS = ("classify", "contrast", "detect", "lidar", "pose", "segment")
MAKERS: dict[str, Callable[[Path], None]] = {
    "docs/pictures/synthetic_shapes.png": draw_shapes,
    "docs/pictures/view.png": draw_stages,
    "docs/pictures/view_hand.png": draw_hand,
    "docs/pictures/view_boxes3d.png": draw_street,
    "docs/pictures/views.png": draw_views,
    "docs/pictures/synthetic_hands.png": draw_hands,
    "docs/pictures/check.svg": draw_check,
    "docs/pictures/dgcnn.svg": draw_network,
    "docs/pictures/growth.svg": draw_growth,
    "docs/pictures/predictions.png": draw_predictions,
    **{f"docs/manual/notebooks/{task}.ipynb": write_notebook for task in NOTEBOOKS},
    **{f"docs/results/report/{task}.png": take_screenshot for task in NOTEBOOKS},
    **{f"docs/pictures/task_{task}.png": partial(draw_task, task=task) for task in TASKS},
}
"""File -> what writes it."""


def main() -> None:
    """Make the named files, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="*", help="by default all: " + ", ".join(MAKERS))
    names = [os.path.relpath(file, ROOT) for file in parser.parse_args().files]
    if unknown := [name for name in names if name not in MAKERS]:
        parser.error(f"{unknown[0]} is none of {', '.join(MAKERS)}")
    sys.path.insert(0, str(ROOT))  # where tests and benchmarks are
    for name in names or MAKERS:
        MAKERS[name](ROOT / name)
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
