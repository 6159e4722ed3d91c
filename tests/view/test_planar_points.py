"""Points of other than three coordinates: they train, and every picture of them can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.draw.pictures import pad_to_3d
from tests.command import Outcome, run_here

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def write_plugin(folder: Path, name: str, shape: str) -> Path:
    """The example's plugin with points of another shape, all its names new; `{folder}/<name>.yaml` is its config."""
    text = (EXAMPLES / "my_plugin.py").read_text()
    for old in ("pebbles", "offset_net", "focal", "top_k"):
        text = text.replace(f'"{old}"', f'"{name}_{old}"')
    width = 3 if shape == "(-1,)" else int(shape.strip("()").split(",")[1])
    text = text.replace('"in_channels": 3', f'"in_channels": {width}').replace("points 3", f"points {width}")
    text = text.replace("torch.from_numpy(points)", f"torch.from_numpy(np.resize(points, (len(points), {width})))")
    if shape == "(-1,)":
        text = text.replace(".float(), ", ".float().flatten(), ")
    config = (EXAMPLES / "my_plugin.yaml").read_text().replace("train: [{name: mirror}]", "train: []")
    for old in ("pebbles", "offset_net", "focal", "top_k"):
        config = config.replace(f"name: {old}", f"name: {name}_{old}")
    (folder / f"{name}.py").write_text(text)
    (folder / f"{name}.yaml").write_text(config)
    return folder / f"{name}.yaml"


def sightline(verb: str, source: Path, config: Path, *words: object) -> Outcome:
    return run_here(verb, source, "--plugin", config.with_suffix(".py"), "--device", "cpu", *words)


@pytest.mark.parametrize(("width", "described"), [(2, "drawn at z = 0"), (5, "drawn by the first 3 of 5 columns")])
def test_they_train_and_are_viewed(tmp_path: Path, width: int, described: str) -> None:
    config = write_plugin(tmp_path, f"wide{width}", f"(-1, {width})")
    short = ("train.epochs=1", "log.tensorboard=false", *(["--no-check"] if width == 5 else []))
    trained = sightline("train", config, config, *short, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert list((tmp_path / "run" / "predictions").glob("*.png"))
    for source in (config, tmp_path / "run"):
        out = tmp_path / f"view of {source.name}"
        viewed = sightline("view", source, config, "--out", out, "--num", 1, "--json", out / "out.json")
        assert viewed.code == 0, viewed.err
        raw = json.loads((out / "out.json").read_text())["samples"][0]["stages"][0]
        assert raw["description"].startswith(described)
        assert (raw["extent"]["max"][2] == 0) is (width == 2)


def test_a_row_of_numbers_is_refused_in_one_line(tmp_path: Path) -> None:
    config = write_plugin(tmp_path, "row", "(-1,)")
    viewed = sightline("view", config, config, "--out", tmp_path / "view")
    assert viewed.code == 2
    assert "points have the shape (" in viewed.err
    assert viewed.err.count("\n") == 1


def test_missing_coordinates_are_zero_and_further_columns_are_left_out() -> None:
    table = np.arange(1.0, 11.0).reshape(2, 5)
    np.testing.assert_array_equal(pad_to_3d(table[:, :1]), [[1, 0, 0], [6, 0, 0]])
    np.testing.assert_array_equal(pad_to_3d(table[:, :2]), [[1, 2, 0], [6, 7, 0]])
    np.testing.assert_array_equal(pad_to_3d(table), [[1, 2, 3], [6, 7, 8]])
