"""Draws the pictures of docs/topics: .venv/bin/python docs/pictures/draw_tasks.py FOLDER

Trains each config below as it is shipped, into FOLDER, and shrinks the first picture of `sightline view RUN --num 1`; a
run that is finished is not trained again. About half an hour on two cores. The pictures here are of commit a6d7780d.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

PICTURES = {
    "classify": ("classify/synthetic_shapes_pointnet", 640),
    "segment": ("segment/synthetic_rooms_point_transformer", 1100),
    "lidar": ("segment/synthetic_lidar_salsanext", 1200),
    "detect": ("detect/synthetic_crowds_fcos", 1300),
    "pose": ("pose/synthetic_hands_v2v_small", 1200),
}
"""Picture -> config, and width in pixels."""
PAIRS, PAIRS_SHARE = "contrast/synthetic_shapes_crosspoint", 0.285
"""Config whose samples are drawn without a training, and the share of the picture's rows that is shown."""
CONFIGS = Path(__file__).parents[2] / "configs"


def run(*words: object) -> None:
    """Run a command of sightline. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "sightline", *map(str, words)], check=True)


def shrink(folder: Path, name: str, width: int, share: float = 1.0) -> None:
    """Write the first picture of a folder of `view` in 256 colours, rare ones, as those of legends, among them."""
    image = Image.open(next(iter(sorted(folder.glob("*.png"))))).convert("RGB")
    image = image.crop((0, 0, image.width, round(image.height * share)))
    small = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    small.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        Path(__file__).with_name(f"task_{name}.png"), optimize=True
    )


def main(folder: Path) -> None:
    """Train, view and shrink."""
    for name, (config, width) in PICTURES.items():
        run("train", CONFIGS / f"{config}.yaml", "--no-check", "--resume", "auto", "--out", folder / name)
        run("view", folder / name, "--num", 1, "--out", folder / f"view_{name}")
        shrink(folder / f"view_{name}", name, width)
    run("view", CONFIGS / f"{PAIRS}.yaml", "--num", 1, "--out", folder / "view_contrast")
    shrink(folder / "view_contrast", "contrast", 900, PAIRS_SHARE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
