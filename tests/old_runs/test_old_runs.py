"""Runs of before are evaluated to their figures, resumed, predicted with, looked at, searched, packed and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import Outcome, run_here
from tests.data.boxes.box_writers import pattern, write_image
from tests.data.scans.lidar_writers import street_scan, write_bin
from tests.marks import long_but
from tests.old_runs.make import HERE, RUNS, WORK, plugin_words, search_words, study_words
from tests.runs.poses import hands, write_frames
from tools.before_after_worker import break_off


def assert_close(found: Any, expected: Any, place: str) -> None:
    """Numbers to 1e-6, counts and names exactly; what an old run does not hold may be there beside it."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_close(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, f"{place}.{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6, rel=1e-6), place
    else:
        assert found == expected, place


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / name, tmp_path / "run", symlinks=True))


def test_they_give_their_figures(name: str, run: Path, tmp_path: Path) -> None:
    words = (*plugin_words(name), "--device", "cpu")
    done = run_here("evaluate", run, *words, "--json", tmp_path / "again.json")
    assert done.code == 0, done.err
    assert_close(json.loads((tmp_path / "again.json").read_text()), json.loads((run / "final.json").read_text()), "")


def test_they_are_resumed(name: str, run: Path) -> None:
    """From the first of their two checkpoints, to losses that differ by what other kernels and threads round."""
    expected = last_loss(run)
    break_off(run)
    words = (*plugin_words(name), "--device", "cpu", "--no-check")
    done = run_here("train", run / "config.yaml", *words, "--out", run, "--resume", "auto")
    assert done.code == 0, done.err
    assert last_loss(run) == pytest.approx(expected, rel=1e-3)


def last_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line for line in lines if line["split"] == "train"][-1]["loss/total"])


# --- what else is done with a run ------------------------------------------------------------------------------------

PREDICTED = [name for name in RUNS if name not in ("contrast", "centre")]
"""`centre` refines the reference points of `pose`."""


def run_to_end(*words: object) -> Outcome:
    done = run_here(*words)
    assert done.code == 0, done.err
    return done


def write_input(name: str, folder: Path) -> tuple[object, ...]:
    """A file that the run can predict, and options for it."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    points = generator.normal(size=(600, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    if name.startswith("detect"):
        write_image(folder / "crowd.png", pattern(64, 96))
    elif name == "segment_lidar":
        write_bin(folder / "scan.bin", scan := street_scan(0, num_columns=64)[1], scan.ring)
    elif name == "pose":
        write_frames(folder, hands()["depth"][:1])
        return (f"refiner={HERE / 'centre'}",)
    elif name == "segment_rooms":
        room = np.abs(points) * [4.0, 4.0, 2.5]
        np.save(folder / "room.npy", np.hstack([room, generator.integers(0, 256, room.shape)]))
        return ("--columns", "x,y,z,red,green,blue")
    else:
        np.save(folder / "mug.npy", points.astype(np.float32))
        return ("category=mug",) if name == "segment_parts" else ()
    return ()


@pytest.mark.parametrize("name", PREDICTED)
def test_they_predict(name: str, run: Path, tmp_path: Path) -> None:
    options = (*write_input(name, tmp_path / "files"), *plugin_words(name), "--device", "cpu")
    run_to_end("predict", run, tmp_path / "files", *options, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (len(found["predictions"]), found["refused"]) == (1, [])


@pytest.mark.parametrize("name", long_but(("detect", "segment_lidar"), RUNS))
def test_they_are_described_and_viewed(name: str, run: Path, tmp_path: Path) -> None:
    words = (*plugin_words(name), "--device", "cpu")
    assert "parameters" in run_to_end("describe", run, *words).out
    run_to_end("view", run, *words, "--num", 1, "--out", tmp_path / "view")
    assert (tmp_path / "view" / "view.html").exists()


# --- a packed run, a search, a study ---------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / "packed", tmp_path / "packed", symlinks=True))


def test_a_packed_run_gives_its_figures(packed: Path, tmp_path: Path) -> None:
    run_to_end("evaluate", packed, "--device", "cpu", "--json", tmp_path / "again.json")
    expected = json.loads((packed / "final.json").read_text())
    assert_close(json.loads((tmp_path / "again.json").read_text())["metrics"], expected["metrics"], "")
    write_input("classify", tmp_path / "files")
    run_to_end("predict", packed, tmp_path / "files", "--device", "cpu")
    run_to_end("describe", packed, "--device", "cpu")
    run_to_end("view", packed, "--device", "cpu", "--out", tmp_path / "view")


def test_a_run_starts_from_a_packed_one(packed: Path, tmp_path: Path) -> None:
    words = ("train.epochs=1", "--no-check", "--device", "cpu", "--out", tmp_path / "next")
    run_to_end("train", HERE / "classify" / "config.yaml", f"init.from={packed}", *words)
    assert json.loads((tmp_path / "next" / "lineage.json").read_text())["from"] == str(packed)


def put_teacher_back(packed: Path) -> None:
    """Name the float run where it lies now, which is where it lay for the user."""
    for path in (packed / "work" / "finetuned" / "config.yaml", packed / "work" / "finetune.yaml"):
        path.write_text(path.read_text().replace(str(WORK), str(HERE)))


def test_a_quantised_run_gives_its_figures(packed: Path, tmp_path: Path) -> None:
    run = packed / "work" / "finetuned"
    expected = json.loads((run / "final.json").read_text())
    run_to_end("evaluate", run, "teacher=null", "--device", "cpu", "--json", tmp_path / "alone.json")
    assert_close(json.loads((tmp_path / "alone.json").read_text())["metrics"], expected["metrics"], "")
    put_teacher_back(packed)
    run_to_end("evaluate", run, "--device", "cpu", "--json", tmp_path / "again.json")
    assert_close(json.loads((tmp_path / "again.json").read_text()), expected, "")
    run_to_end("compress", run, "--batch-norm", 2, "--device", "cpu", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "model.slq").stat().st_size == (packed / "model.slq").stat().st_size
    figures = [json.loads((folder / "final.json").read_text())["metrics"] for folder in (tmp_path / "again", packed)]
    assert_close(*figures, "")


def test_a_search_goes_on_from_its_record(tmp_path: Path) -> None:
    """No policy is evaluated a second time, and the result is the same."""
    out = Path(shutil.copytree(HERE / "search", tmp_path / "search"))
    run = shutil.copytree(HERE / "classify", tmp_path / "run", symlinks=True)
    run_to_end(*search_words(run, out))
    for file in ("policy.json", "random.policy.json", "uniform.policy.json", "evaluations.jsonl"):
        assert (out / file).read_bytes() == (HERE / "search" / file).read_bytes(), file
    before, after = (json.loads((folder / "search.json").read_text()) for folder in (HERE / "search", out))
    assert after["best"] == before["best"]
    for old, new in zip(before["searches"], after["searches"], strict=True):
        assert new["new evaluations"] == 0
        assert_close(new, {key: old[key] for key in ("method", "loss", "bytes", "evaluations")}, "")
    run_to_end("compress", run, "--stop-after", "size", "--policy", out / "policy.json")


def test_a_study_is_read_and_no_run_of_it_repeated(tmp_path: Path) -> None:
    out = Path(shutil.copytree(HERE / "study", tmp_path / "study", symlinks=True))
    run_to_end(*study_words(out))
    before, after = (json.loads((folder / "study.json").read_text()) for folder in (HERE / "study", out))
    same = ("overrides", "factors", "seeds", "metric", "mode", "rows", "differences")
    assert_close(after, {key: before[key] for key in same}, "")
    for path in HERE.glob("study/*/*/checkpoints/*/*.safetensors"):
        assert (out / path.relative_to(HERE / "study")).read_bytes() == path.read_bytes()
    assert sorted(each.name for each in out.glob("*/*")) == ["seed_0", "seed_0", "seed_1", "seed_1"]
