"""One size for all images of a config: `imgsz=` gives what the overrides of every single size give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sightline.config import RunConfig, read_config
from sightline.config.plain_values import to_plain
from sightline.contract.errors import ConfigError
from tests.cases import run_each
from tests.command import refuse, succeed
from tests.runs.small import ROOT

SIX_SIZES = [
    *(f"transforms.{place}.height=480" for place in ("train.0", "evaluate.0")),
    *(f"transforms.{place}.width=640" for place in ("train.0", "evaluate.0")),
    "transforms.train.1.canvas=[480, 640]",
]
"""Of mosaic, turn_image and fit_image, as the presets of photos have them: three times a height and a width."""
ALONE = [
    "transforms.train.0.canvas=[480, 640]",
    "transforms.evaluate.0.height=480",
    "transforms.evaluate.0.width=640",
]
MOSAIC_FIRST = ("photos_finetune", "photos_imagenet", "photos_scratch", "crowdhuman_yolox_simota")


def _list_overrides(config: RunConfig) -> list[str]:
    """List the overrides of every size that a config states, from its own resolved blocks."""
    words = []
    for part in ("train", "evaluate", "vote"):
        for place, block in enumerate(getattr(config.transforms, part) or ()):
            sizes = {"height": "480", "width": "640", "canvas": "[480, 640]"}
            stated = [key for key in sizes if block.arguments.get(key) is not None]
            words += [f"transforms.{part}.{place}.{key}={sizes[key]}" for key in stated]
    return words


def _read(name: str, *words: str) -> dict:
    return to_plain(read_config(ROOT / "configs" / f"{name}.yaml", words))


@run_each("name", sorted(path.stem for path in (ROOT / "configs/detect").glob("[!_]*.yaml")))
def test_one_size_gives_the_config_of_the_overrides_of_every_size(name: str) -> None:
    """Of each shipped detector: equal configs, or a line that says why one size does not state its sizes."""
    config = read_config(ROOT / f"configs/detect/{name}.yaml")
    modes = {
        block.arguments.get("mode") for part in ("train", "evaluate") for block in getattr(config.transforms, part)
    }
    words = _list_overrides(config)
    if "short_side" in modes:
        with pytest.raises(ConfigError, match=r"command line: imgsz: transforms\.train\.\d: .* set short_px, long_px"):
            _read(f"detect/{name}", "imgsz=640x480")
    elif not words:
        with pytest.raises(ConfigError, match="command line: imgsz: no transform of this config states a size"):
            _read(f"detect/{name}", "imgsz=640x480")
    else:
        assert _read(f"detect/{name}", "imgsz=640x480") == _read(f"detect/{name}", *words)


@run_each("name", MOSAIC_FIRST)
def test_the_presets_of_photos_have_six_sizes(name: str) -> None:
    """The overrides that were written out before: no size of the resolved config is left as it was."""
    sized = _read(f"detect/{name}", "imgsz=640x480")
    assert sized == _read(f"detect/{name}", *SIX_SIZES)
    assert "imgsz" not in str(sized)
    assert _read(f"detect/{name}", "imgsz=320") == _read(f"detect/{name}", "imgsz=320x320")


def test_a_network_of_32_pixels_says_the_nearest_size_that_it_takes() -> None:
    told = refuse("show", "detect/photos_dfine", "imgsz=600x480")
    assert told.startswith("error: command line: imgsz: transformers_detector takes sides that are multiples of 32; ")
    assert told.endswith("; write imgsz=608x480\n")
    assert _read("detect/photos_dfine", "imgsz=640x480") == _read("detect/photos_dfine", *ALONE)
    assert _read("detect/photos_scratch", "imgsz=600")["transforms"]["train"][0]["height"] == 600, "as FPN computes it"


@run_each(
    "config, words, told",
    [
        ("detect/photos_scratch", ["imgsz=big"], "imgsz: found 'big', allowed is a side in pixels, 640, or width x"),
        ("detect/photos_scratch", ["imgsz=0"], "imgsz: found '0'"),
        ("detect/photos_scratch", ["imgsz=[640, 480]"], "imgsz: found '[640, 480]'"),
        ("detect/photos_scratch", ["imgsz=320", "imgsz=640"], "imgsz: is given twice on the command line"),
        (
            "detect/photos_scratch",
            ["imgsz=320", "transforms.train.0.height=96"],
            "imgsz: gives transforms.train.0.height, which is given twice",
        ),
        ("classify/synthetic_shapes_pointnet", ["imgsz=320"], "imgsz: no transform of this config states a size"),
        ("segment/own_scans", ["imgsz=512"], "imgsz: no transform of this config states a size of images"),
        (
            "contrast/modelnet40_crosspoint_cpu",
            ["imgsz=64x32"],
            "imgsz: transforms.train.1: resize_image makes squares, not 64x32",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_a_line(config: str, words: list[str], told: str) -> None:
    answer = refuse("show", config, *words)
    assert f"command line: {told}" in answer
    assert answer.count("\n") == 1


def test_the_size_is_applied_after_all_other_words(tmp_path: Path) -> None:
    fit = "transforms.evaluate=[{name: fit_image, height: 1, width: 1}, {name: normalize_image}]"
    assert _read("detect/photos_scratch", "imgsz=96", fit)["transforms"]["evaluate"][0]["height"] == 96
    path = tmp_path / "own.yaml"
    path.write_text("base: detect/photos_scratch\nimgsz: 640\n")
    told = refuse("show", path)
    assert (
        "own.yaml:2: imgsz: unknown key 'imgsz'; a file states the sizes of its transforms; give imgsz=640 on" in told
    )


def test_a_stored_config_has_the_sizes_and_no_other_key(tmp_path: Path) -> None:
    shown = succeed("show", "detect/photos_scratch", "imgsz=640x480").out
    assert shown.count("480") == shown.count("640") == 3
    (tmp_path / "stored.yaml").write_text(shown)
    stored = read_config(tmp_path / "stored.yaml")
    expected = read_config(Path("detect/photos_scratch"), ["imgsz=640x480"])
    assert dataclasses.replace(stored, origins={}) == dataclasses.replace(expected, origins={})
