"""`sightline compare` from the command line: variants, references of strangers, records, stages, scripts, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sightline.contract.errors import UserError
from sightline.workbench.compare.comparison import Stages, compare_stages
from sightline.workbench.compare.recording import Writer, _Reader
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
    page = tmp_path / "page.html"
    outcome, found = compare(tmp_path, *SMALL, "--against", "float64", "--steps", 2, "--html", page)
    assert outcome.code == 0, outcome.err
    assert (found["equal"], found["first"], found["parts_at_step"]) == (True, None, None)
    assert {row["pass"] for row in found["layers"]} == {"forward", "loss", "backward"}
    assert all(row["ratio"] <= 16 and row["measured"] <= row["tolerated"] for row in found["layers"])
    assert len(found["steps"]["losses"]) == 2
    assert "encode.4" in outcome.out
    text = page.read_text()
    assert "<svg" in text
    assert "//" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched from elsewhere"
    assert "%" not in text.split("<body>")[1].split("<svg")[0]


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
        ({"EPSILON": 1e-3}, "encode.2.norm", "result"),
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
    assert found["settings"] == (["eps is 1e-05 and in the reference 0.001"] if "EPSILON" in change else [])


def test_a_script_reproduces_the_layer(tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    path = stranger(tmp_path, EPSILON=1e-3)
    outcome, _ = compare(tmp_path, *SMALL, "--against", path, "--steps", 0, "--repro", folder)
    assert f"python {folder / 'repro.py'}" in outcome.err
    ran = subprocess.run([sys.executable, "-I", folder / "repro.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "encode.2.norm: deviates" in ran.stdout
    told = json.loads((folder / "repro.json").read_text())
    assert (told["variant"]["class"], told["reference"]["kwargs"]["eps"]) == ("BatchNorm1d", 1e-3)


def test_a_record_is_compared_elsewhere(tmp_path: Path) -> None:
    record = tmp_path / "record"
    outcome = run_here("compare", "record", CONFIG, *SMALL, "--out", record, "--steps", 2)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in record.iterdir()) == ["record.json", "tensors.safetensors"]
    outcome, found = compare(tmp_path, *SMALL, "seed=7", "--against", record)
    assert outcome.code == 0, outcome.err
    assert found["equal"]
    assert len(found["steps"]["losses"]) == 2


def test_another_recipe_of_the_steps_is_named_before_the_losses_part(tmp_path: Path) -> None:
    record = tmp_path / "record"
    run_here("compare", "record", CONFIG, *SMALL, "schedule={name: constant}", "--out", record, "--steps", 3)
    outcome, found = compare(tmp_path, *SMALL, "schedule={name: cosine}", "optimizer.lr=2e-2", "--against", record)
    assert outcome.code == 1
    optimizer, schedule, factor = (note for note in found["notes"] if "in the record" in note)
    assert optimizer.startswith("optimizer differs: {'name': 'adam', 'lr': ")
    assert schedule.startswith("schedule differs: {'name': 'constant'")
    assert factor.startswith("factor of the learning rate differs: [1.0, 1.0, 1.0] in the record, [1.0, 0.99")
    said = outcome.err + outcome.out
    assert outcome.err.index(schedule) < outcome.err.index("the losses diverge at step"), said
    outcome, found = compare(tmp_path, *SMALL, "schedule={name: step, every_epochs: 9}", "--against", record)
    assert (outcome.code, found["notes"][1:]) == (0, []), "the same steps in other words"


def test_the_first_stage_of_the_data_that_differs_is_named(tmp_path: Path) -> None:
    record = tmp_path / "record"
    run_here("compare", "record", CONFIG, *SMALL, "transforms.train.1.std=0.02", "--out", record, "--steps", 0)
    outcome, found = compare(tmp_path, *SMALL, "--against", record)
    assert outcome.code == 1
    assert (found["first"]["layer"], found["first"]["pass"]) == ("jitter", "data")
    assert [row["layer"] for row in found["guilty"]] == ["jitter"], "the layers saw the same batch"


def test_the_roundings_of_the_authors_release_are_named_where_they_enter(tmp_path: Path) -> None:
    config = ROOT / "configs" / "pose" / "synthetic_hands_v2v_small.yaml"
    small = ("data.train_size=8", "data.test_size=4", "train.precision=float32", "train.batch_size=2", "--samples", 1)
    record, result = tmp_path / "record", tmp_path / "result.json"
    release = ("transforms.train.0.compat=release", "--out", record, "--steps", 0)
    assert run_here("compare", "record", config, *small, *release).code == 0
    outcome = run_here("compare", config, *small, "--against", record, "--steps", 0, "--json", result)
    assert outcome.code == 1, outcome.err
    found = json.loads(result.read_text())
    assert (found["first"]["layer"], found["first"]["pass"]) == ("place_cube", "data")


def test_fields_of_a_stage_that_are_no_real_numbers() -> None:
    def stage(seen: bool, depth: float) -> Stages:
        return [("", {"seen.0": torch.tensor([seen, True]), "depth.0": torch.tensor([depth, 1.0])})]

    nan, inf = float("nan"), float("inf")
    for same in (stage(True, 2.0), stage(False, nan), stage(True, inf)):
        assert [row.is_guilty for row in compare_stages(same, same)] == [False]
    for one, other in ((stage(True, 2.0), stage(False, 2.0)), (stage(True, nan), stage(True, 2.0))):
        assert [row.is_guilty for row in compare_stages(one, other)] == [True]
    assert [row.is_guilty for row in compare_stages(stage(True, inf), stage(True, -inf))] == [True]


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
        (("--against", "float64", "--matrix"), "compare: give either --against or --matrix"),
        (("--against", "float64", "--out", "x"), "--out: belongs to 'sightline compare record'"),
        ((), "compare: give either --against or --matrix"),
        (("--matrix", "--steps", "3"), "--matrix: goes with --json and --samples; its steps are 0, 1, 10, 50"),
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


def test_a_record_takes_no_option_of_a_comparison(tmp_path: Path) -> None:
    words = ("--out", tmp_path / "record", "--html", tmp_path / "page.html")
    outcome = run_here("compare", "record", CONFIG, *SMALL, *words)
    assert outcome.code == 2
    assert "compare record: --html belongs to a comparison" in outcome.err
    assert not (tmp_path / "record").exists()


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
    outcome, found = compare(tmp_path, *SMALL, "--against", path, "--steps", 0)
    assert outcome.code == 0, outcome.err
    assert found["equal"]


@pytest.mark.parametrize("document", ["[]", "3", '{"version": 2}', '{"version": 2, "calls": 5}'])
def test_a_document_that_is_none_is_refused(tmp_path: Path, document: str) -> None:
    record = tmp_path / "record"
    run_here("compare", "record", CONFIG, *SMALL, "--out", record, "--steps", 0)
    (record / "record.json").write_text(document)
    outcome, _ = compare(tmp_path, *SMALL, "--against", record)
    assert outcome.code == 2
    assert "record it again" in outcome.err.splitlines()[-1] or "record the step again" in outcome.err.splitlines()[-1]


def test_nests_that_a_record_keeps_and_one_that_it_does_not() -> None:
    class Pair(NamedTuple):
        first: torch.Tensor

    writer = Writer()
    kept = {0: torch.ones(2), True: [torch.zeros(1), None]}
    told = json.loads(json.dumps(writer.nest(kept)))
    found = _Reader(writer.tensors).nest(told)
    assert list(found) == [0, True]
    assert torch.equal(found[0], torch.ones(2))
    with pytest.raises(UserError, match="a Pair is an input or output of a module, and cannot be stored"):
        writer.nest(Pair(torch.ones(1)))
