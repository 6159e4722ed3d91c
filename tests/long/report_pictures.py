"""Screenshots of reports: of a small run of each task, with two samples at every stage, in headless Chromium."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from tests.command import succeed
from tests.runs.small import ROOT
from tests.view.test_browser import BROWSER

FOLDER = ROOT / "docs" / "results" / "report"
MAX_BYTES = 200_000
_LIDAR = ("data.num_columns=256", "transforms.train.2.width=256", "transforms.evaluate.0.width=256")
_CROWDS = (
    *("model.backbone.width=8", "model.neck.width=16", "model.head.num_convs=1", "schedule.warmup_epochs=0"),
    *(f"transforms.{at}.{side}" for at in ("train.1", "evaluate.0") for side in ("height=128", "width=192")),
)
RUNS = {
    "classify": ("classify/synthetic_shapes_pointnet", 480, 120, 8, "data.num_points=128"),
    "segment": ("segment/synthetic_shapes_dgcnn", 120, 32, 3, "data.num_points=256"),
    "lidar": (
        "segment/synthetic_lidar_salsanext",
        *(48, 4, 6, *_LIDAR),
        "model={name: salsanext, width: 4, dropout: 0.1, circular: true}",
    ),
    "detect": ("detect/synthetic_crowds_retinanet", 64, 8, 10, *_CROWDS, "train.batch_size=4"),
    "pose": ("pose/synthetic_hands_v2v_small", 96, 16, 2, "train.batch_size=8"),
    "contrast": ("contrast/synthetic_shapes_intrapoint_parts", 96, 48, 2, "data.num_points=128", "train.batch_size=16"),
}
"""Config, samples of training and test, epochs, and overrides."""


def make_page(task: str, folder: Path) -> Path:
    """Train the run of a task, and write its report."""
    config, train_size, test_size, epochs, *overrides = RUNS[task]
    sizes = (f"data.train_size={train_size}", f"data.test_size={test_size}", f"train.epochs={epochs}")
    words = (*sizes, "log.tensorboard=false", *overrides, "--device", "cpu", "--out", folder / task)
    succeed("train", ROOT / "configs" / f"{config}.yaml", *words)
    page = folder / f"{task}.html"
    succeed("report", folder / task, "--samples", "0,1", "--device", "cpu", "--out", page)
    return page


def take_picture(page: Path, picture: Path) -> str:
    """Take a picture of a whole page in 256 colours; return the lines that its scripts wrote to the console."""
    assert BROWSER is not None, "there is no chromium on this machine"
    raw = page.with_suffix(".png")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,5200"]
    words += ["--virtual-time-budget=4000", "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run(
        [*words, f"--screenshot={raw}", page.as_uri()], capture_output=True, text=True, timeout=110, check=True
    )
    with Image.open(raw) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
        is_page = (np.abs(pixels - pixels[-1, 2]).sum(axis=2) > 30).any(axis=1)
        cut = image.convert("RGB").crop((0, 0, image.width, int(np.flatnonzero(is_page)[-1]) + 20))
    small = cut.resize((cut.width * 3 // 4, cut.height * 3 // 4), Image.Resampling.LANCZOS)
    few = small.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # rare colours stay apart
    few.save(picture, optimize=True)
    return "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
