"""The wheel without the package of any extra: a recipe of each task is trained, files of its kind predicted, looked at.

What a recipe needs of the extras is named here: the shipped RetinaNet SciPy, the figure of a contrast run scikit-learn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.contract.types import SampleKey
from tests.bare import list_modules_beside, write_bare_site
from tests.doc_blocks import blocks_of
from tests.processes import ROOT
from tests.published_weights import write_weights
from tests.runs.poses import hands, write_frames
from tests.test_wheel import clone, installed, wheels  # noqa: F401  fixtures

SMALL = ("train.steps=2", "train.batch_size=2", "--device", "cpu", "--out", "run")
COLUMNS = (("points", 3), ("remission", 1), ("ring", 1))
FEW = ("data.train_size=24", "data.test_size=12")
Command = Callable[..., str]


def write_clouds(folder: Path) -> None:
    sample = SyntheticShapes(split="test", num_points=1024)[SampleKey(0, 0, 0)]
    np.save(folder / "a.npy", np.asarray(sample["points"]))


def write_room(folder: Path) -> None:
    rows = np.random.default_rng(0).uniform((0, 0, 0, 0, 0, 0), (4, 3, 2.5, 1, 1, 1), (20_000, 6)).round(2)
    np.savetxt(folder / "a.txt", rows, fmt="%.2f")


def write_photos(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")


def write_depth(folder: Path) -> None:
    write_frames(folder, hands()["depth"])


def write_scan(folder: Path) -> None:
    sample = SyntheticLidar(split="test")[SampleKey(0, 0, 0)]
    columns = [np.asarray(sample[key], dtype="<f4").reshape(-1, width) for key, width in COLUMNS]
    (folder / "000000.bin").write_bytes(np.concatenate(columns, axis=1).tobytes())


TASKS: dict[str, tuple[tuple[str, ...], Callable[[Path], None] | None, tuple[str, ...]]] = {
    "classify/synthetic_shapes_pointnet": (FEW, write_clouds, ()),
    "contrast/synthetic_shapes_crosspoint": (FEW, None, ()),  # learns without classes: there is nothing to predict
    "detect/synthetic_crowds_fcos": (("schedule.warmup_epochs=0",), write_photos, ()),
    "pose/synthetic_hands_v2v_small": (FEW, write_depth, ()),
    "segment/synthetic_rooms_point_transformer": ((), write_room, ("--columns", "x,y,z,red,green,blue")),
    "segment/synthetic_lidar_squeezeseg": ((), write_scan, ()),
}


@pytest.fixture
def sightline(installed: Path, tmp_path: Path) -> Command:  # noqa: F811
    """Runs the command of the wheel in an empty folder; returns what it says on standard error."""
    site = write_bare_site(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{site}", "OMP_NUM_THREADS": "1"}

    def run(*words: object, code: int = 0) -> str:
        command = [sys.executable, "-m", "sightline", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    return run


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_of_each_task_is_trained_predicted_and_viewed(name: str, sightline: Command, tmp_path: Path) -> None:
    overrides, write, words = TASKS[name]
    sightline("copy", name)
    sightline("train", f"configs/{name}.yaml", *SMALL, *overrides)
    sightline("view", "run", "--out", "view")
    assert [*(tmp_path / "view").glob("*.html")]
    if write is not None:
        (tmp_path / "files").mkdir()
        write(tmp_path / "files")
        sightline("predict", "run", "files", "--device", "cpu", "--json", "predicted.json", *words)
        assert json.loads((tmp_path / "predicted.json").read_text())["predictions"]


FAMILIES = {
    "clouds": "wangyueft_pointnet",
    "detectors": "odtask_retina_resnet18",
    "images": "torchvision_resnet18",
    "parts_and_scenes": "yanx27_pointnet_scenes",
    "range_images_and_volumes": "dragonbook_v2v",
}
"""A layout of each file of `published/layouts`."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_each_family_of_layouts_is_converted(family: str, sightline: Command, tmp_path: Path) -> None:
    layout, more = FAMILIES[family], () if family == "images" else ("data.root=none",)
    write_weights(tmp_path / "source", layout)
    sightline("weights", "convert", "source/weights.pth", "--layout", layout, "--to", "run", *more)
    assert [*(tmp_path / "run").glob("checkpoints/step_*/model.safetensors")]


def test_every_family_has_a_layout(installed: Path) -> None:  # noqa: F811
    files = (installed / "sightline" / "published" / "layouts").glob("*.yaml")
    rows = {path.stem: path.read_text(encoding="utf-8") for path in files}
    assert rows.keys() == FAMILIES.keys()
    assert all(f"{FAMILIES[family]}:" in text for family, text in rows.items())


def test_what_the_shipped_retinanet_needs_is_named_before_there_is_a_folder(sightline: Command, tmp_path: Path) -> None:
    name = "detect/synthetic_crowds_retinanet"
    sightline("copy", name)
    told = sightline("train", f"configs/{name}.yaml", "--out", "run", code=2)
    assert told.endswith("needs the package 'scipy': pip install 'sightline[detect]'\n")
    assert not (tmp_path / "run").exists()


RUN_ALL = """
import runpy, sys
found = [name for name in ("numba", "triton", "pydantic") if sys.modules.get(name, "") is not None]
assert not found, found
for path in sys.argv[1:]:
    runpy.run_path(path)
"""


def test_examples_of_operators_need_torch_and_numpy_alone(installed: Path, tmp_path: Path) -> None:  # noqa: F811
    """As after `pip install` without an extra: no numba, and nothing that the workbench needs."""
    site = write_bare_site(tmp_path / "site", list_modules_beside("torch", "numpy"))
    blocks = [block for block in blocks_of(ROOT / "docs" / "ops.md") if block.language == "python"]
    assert len(blocks) >= 6
    files = [tmp_path / f"line_{block.line}.py" for block in blocks]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(block.text)
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{site}"}
    command = [sys.executable, "-c", RUN_ALL, *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
