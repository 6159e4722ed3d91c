"""`sightline compare` from the command line: variants, references of strangers, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import Outcome, run_here

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
STRANGERS = (ROOT / "examples" / "their_pointnet.py").read_text()
SMALL = (
    "data={name: synthetic_shapes, num_points: 32, train_size: 60, test_size: 24}",
    "train.batch_size=8",
    "model={name: pointnet_plain, embedding: 64}",
    "losses=[{name: cross_entropy}]",
)
KEYS = {
    **{f"encode.{place}.linear": f"convs.{place}" for place in range(5)},
    **{f"encode.{place}.norm": f"bns.{place}" for place in range(5)},
    "head.0.linear": "fc1",
    "head.0.norm": "bn",
    "head.2": "fc2",
}


def compare(tmp_path: Path, *words: object) -> tuple[Outcome, dict[str, Any]]:
    """Run the verb; its outcome, and what it wrote as JSON."""
    result = tmp_path / "result.json"
    outcome = run_here("compare", CONFIG, *words, "--json", result)
    return outcome, json.loads(result.read_text()) if result.exists() else {}


def stranger(tmp_path: Path, **changes: object) -> Path:
    """The stranger's file, equal to ours but for the constants that are changed."""
    text = STRANGERS
    for name, value in {"EPSILON": 1e-5, **changes}.items():
        before = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
        text = text.replace(before, f"{name} = {value!r}")
    path = tmp_path / "stranger.py"
    path.write_text(text)
    return path


def test_float32_equals_float64(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, *SMALL, "--against", "float64", "--steps", 2)
    assert outcome.code == 0, outcome.err
    assert (found["equal"], found["first"], found["parts_at_step"]) == (True, None, None)
    assert {row["pass"] for row in found["layers"]} == {"forward", "loss", "backward"}
    assert all(row["ratio"] <= 16 and row["measured"] <= row["tolerated"] for row in found["layers"])
    assert len(found["steps"]["losses"]) == 2
    assert "encode.4" in outcome.out


@pytest.mark.long
def test_float32_volumes_equal_float64_over_optimiser_steps(tmp_path: Path) -> None:
    """85,000 rows a batch norm, added one by one: what that does to float32 gradients is no divergence."""
    out = tmp_path / "found.json"
    config = ROOT / "configs/pose/synthetic_hands_v2v_small.yaml"
    words = ("train.precision=float32", "--against", "float32", "--samples", 1, "--steps", 3, "--json", out)
    outcome = run_here("compare", config, *words)
    assert outcome.code == 0, outcome.out
    assert json.loads(out.read_text())["parts_at_step"] is None


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_stranger_is_taken_apart(tmp_path: Path, has_keys: bool) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    words = ("--keys", keys) if has_keys else ()
    outcome, found = compare(tmp_path, *SMALL, "--against", stranger(tmp_path), *words, "--steps", 2)
    assert outcome.code == 0, outcome.err
    assert found["equal"]
    assert (
        any(note.startswith("guess: encode.1.linear = convs.1, number 1 of 2") for note in found["notes"]) != has_keys
    )
    assert {"encode.3.norm", "head.0.linear", "head.2"} <= {row["layer"] for row in found["layers"]}


@pytest.mark.parametrize(
    ("change", "layer", "what"),
    [
        ({"SWAPPED": True}, "encode.1.linear", "what encode.1.norm is given"),
        ({"RECTIFIED": True}, "head.2", "result logits"),
    ],
)
def test_a_bug_in_a_stranger_is_named(tmp_path: Path, change: dict[str, Any], layer: str, what: str) -> None:
    path = stranger(tmp_path, **change)
    outcome, found = compare(tmp_path, *SMALL, "--against", path, "--steps", 0)
    assert outcome.code == 1
    assert (found["first"]["layer"], found["first"]["pass"], found["first"]["what"]) == (layer, "forward", what)
    assert found["first"]["ratio"] > 16
    assert f"they diverge first at {layer}" in outcome.err
    assert found["settings"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--against", "float16"), "--against float16: must be one of float64, float32"),
        (("--against", "cuda"), "--against cuda: this machine has no CUDA device; not available"),
        (("--against", "no-cudnn"), "--against no-cudnn: differs only on a GPU with cuDNN"),
        (("--against", "native-batch-norm"), "not available"),
        (("--against", "none.py"), "--against none.py: no such file"),
        (
            ("--against", "float64", "--keys", "map.json"),
            "--keys map.json: needs a reference of another implementation",
        ),
        (("--matrix", "--against", "float32"), "--matrix: does not go with --against; leave one of them out"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    outcome, _ = compare(tmp_path, *SMALL, *words)
    assert outcome.code == 2
    assert told in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "defines no function build()"),
        ("def build():\n    return 3\n", "build() returns a int"),
        ("def build():\n    raise KeyError('w')\n", "build() fails: KeyError"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_builds_no_module_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "reference.py"
    path.write_text(text)
    outcome, _ = compare(tmp_path, *SMALL, "--against", path)
    assert outcome.code == 2
    assert told in outcome.err.splitlines()[-1]


def test_more_samples_than_a_batch_of_the_recipe(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, *SMALL, "--against", "float64", "--samples", 20, "--steps", 0)
    assert outcome.code == 0, outcome.err
    heads = [row["entries"] for row in found["layers"] if row["layer"] == "head.2" and row["what"].startswith("result")]
    assert heads == [20 * 12]


def test_a_map_is_read_though_the_reference_is_our_own_model(tmp_path: Path) -> None:
    path, keys = tmp_path / "same.py", tmp_path / "keys.json"
    path.write_text(
        "from sightline.areas.clouds.models.pointnet import PointNetPlain\n\n\ndef build():\n"
        "    return PointNetPlain(num_classes=12, in_channels=3, embedding=64)\n"
    )
    keys.write_text('{"nonsense": "head"}')
    outcome, _ = compare(tmp_path, *SMALL, "--against", path, "--keys", keys, "--steps", 0)
    assert outcome.code == 2
    assert "--keys: the model has no tensor or module 'nonsense'" in outcome.err
