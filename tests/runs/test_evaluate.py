"""`sightline evaluate` with overrides, and `--save-predictions`: the labels that were scored, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sightline
from sightline.contract.types import SampleKey
from sightline.engine.run_data import build_part
from sightline.workbench.evaluate.saved_predictions import file_stems
from tests.command import document_of, run_here, succeed
from tests.runs.broken_off import run_forked
from tests.trained import copy_run

VOTES = ("evaluate.votes=3", "transforms.vote=[{name: rotate}]")
SCALED_VOTES = ("evaluate.votes=3", "transforms.vote=[{name: scale}]")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("classify", tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("parts", tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("scenes", tmp_path_factory.mktemp("scenes"))


def evaluate(run: Path, *words: object) -> dict[str, Any]:
    plugin = run.parent / "plugin.py"
    given = ("--plugin", plugin) if plugin.exists() else ()
    document: dict[str, Any] = document_of("evaluate", run, *given, "--device", "cpu", *words)
    return document


# --- `sightline evaluate RUN key=value`: what may be said anew about an evaluation, and what not ---------------------


def test_the_pictures_of_a_training_tell_what_they_leave_out_of_rooms(scenes: Path) -> None:
    captions = json.loads((scenes / "predictions" / "captions.json").read_text())
    assert captions
    assert all(text.endswith("; walls and ceiling between viewer and room are not drawn") for text in captions.values())


def test_a_run_that_is_not_finished_says_so(classes: Path, tmp_path: Path) -> None:
    """With the step of its last checkpoint, and how to go on; a finished one says nothing of it."""
    run = tmp_path / "run"
    shutil.copytree(classes, run, symlinks=True)
    assert "not finished" not in succeed("evaluate", run, "--device", "cpu").err
    (run / "final.json").unlink()
    checkpoint = max((run / "checkpoints").glob("step_*"))
    saved = json.loads((checkpoint / "state.json").read_text())
    steps = f"stopped at step {saved['step']} of {saved['state']['num_steps']}"
    line = f"{run}: this run is not finished: it {steps}; sightline train {run} --resume auto goes on\n"
    assert line in succeed("evaluate", run, "--device", "cpu").err


def test_without_overrides_it_is_final_json_byte_for_byte(classes: Path, tmp_path: Path) -> None:
    succeed("evaluate", classes, "--device", "cpu", "--json", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == (classes / "final.json").read_bytes()


def test_overrides_are_followed_and_noted(classes: Path) -> None:
    voted = evaluate(classes, *VOTES)
    assert voted["overrides"] == list(VOTES)
    assert voted["votes"] == 3
    assert "overall_accuracy_vote3" in voted["metrics"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", "found 'train.epochs=3', allowed is key=value with evaluate.*, transforms.evaluate*"),
        ("model.dropout=0.1", "model.dropout=0.1"),
        ("data.test_size=3", "data.root"),
        ("evaluate={votes: 3}", "evaluate.*"),
        ("seed=1", "seed=1"),
        ("evaluate.select=test", "evaluate.select chose the best weights of the run during training"),
        ("evaluate.vots=3", "did you mean 'votes'"),
    ],
)
def test_what_would_be_another_run_is_refused_in_one_line(classes: Path, override: str, expected: str) -> None:
    code, out, err = run_here("evaluate", classes, override)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert expected in err


# --- `evaluate --save-predictions` ------------------------------------------------------------------------------------


def kept(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, {e["name"]: np.load(folder / e["file"]) for e in manifest["samples"] if "file" in e}


def test_parts_are_answered_among_the_objects_own(parts: Path) -> None:
    document = evaluate(parts, "--save-predictions")
    assert evaluate(parts) == document
    manifest, labels = kept(parts / "predictions" / "test")
    run = sightline.load_run(parts, plugins=[parts.parent / "plugin.py"])
    dataset = build_part(run.config, "test").dataset
    assert manifest["class_names"] == list(run.class_names)
    assert len(labels) == 24
    members = run.facts["parts_of_category"]
    for entry in manifest["samples"]:
        sample = dataset[SampleKey(entry["index"], 0, 0)]
        with torch.no_grad():
            logits = run.model(points=sample["points"][None], features=sample["normals"][None])["logits"][0].numpy()
        own = np.array(members[int(sample["category"])])
        assert np.array_equal(labels[entry["name"]], own[logits[:, own].argmax(axis=1)])
        truth = sample["label"].numpy()
        ious = []
        for part in own:
            union = ((truth == part) | (labels[entry["name"]] == part)).sum()
            common = ((truth == part) & (labels[entry["name"]] == part)).sum()
            ious.append(common / union if union else 1.0)
        assert entry["iou"] == pytest.approx(np.mean(ious), abs=1e-12)
    mean = np.mean([entry["iou"] for entry in manifest["samples"]])
    assert mean == pytest.approx(document["metrics"]["instance_miou"], abs=1e-12)


def test_labels_of_thinned_scenes_are_those_of_every_original_point(scenes: Path) -> None:
    document = evaluate(scenes, "--save-predictions")
    manifest, labels = kept(scenes / "predictions" / "test")
    dataset = build_part(sightline.load_run(scenes, plugins=[scenes.parent / "plugin.py"]).config, "test").dataset
    confusion = np.zeros((3, 3), dtype=np.int64)
    for entry in manifest["samples"]:
        truth = dataset[SampleKey(entry["index"], 0, 0)]["label"].numpy()
        assert entry["num_points"] == len(truth) == len(labels[entry["name"]])
        is_counted = truth != 255
        np.add.at(confusion, (truth[is_counted], labels[entry["name"]][is_counted]), 1)
    assert confusion.tolist() == document["confusion"]["counts"]
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    assert document["metrics"]["miou"] == pytest.approx((confusion.diagonal() / union).mean(), abs=1e-12)
    third = {"name": "Area_1/room 2", "index": 2, "file": "Area_1_room_2.npy", "num_points": 0, "iou": 0}
    assert manifest["samples"][2] | {"num_points": 0, "iou": 0} == third


def test_labels_of_whole_samples_stand_in_the_manifest(classes: Path) -> None:
    document = evaluate(classes, "--save-predictions")
    manifest, labels = kept(classes / "predictions" / "test")
    assert labels == {}
    confusion = np.zeros((12, 12), dtype=np.int64)
    for entry in manifest["samples"]:
        confusion[entry["label"], entry["answer"]] += 1
    assert confusion.tolist() == document["confusion"]["counts"]
    assert [entry["index"] for entry in manifest["samples"]] == list(range(24))
    assert manifest["votes"] == 1
    assert manifest["checkpoint"] == str((classes / "checkpoints" / "last").resolve())


def test_with_votes_the_voted_labels_are_kept(parts: Path, tmp_path: Path) -> None:
    document = evaluate(parts, *SCALED_VOTES, "--save-predictions", "--out", tmp_path / "voted")
    manifest, _ = kept(tmp_path / "voted")
    assert (manifest["votes"], manifest["overrides"]) == (3, list(SCALED_VOTES))
    mean = np.mean([entry["iou"] for entry in manifest["samples"]])
    assert mean == pytest.approx(document["metrics"]["instance_miou_vote3"], abs=1e-12)
    assert mean != pytest.approx(document["metrics"]["instance_miou"], abs=1e-6)


def test_averaged_labels_name_every_checkpoint_that_was_averaged(tmp_path: Path) -> None:
    run = copy_run("plain", tmp_path)
    evaluate(run, "--ensemble", "--save-predictions")
    manifest, _ = kept(run / "predictions" / "test")
    last, first = manifest["checkpoint"], *manifest["averaged_with"]
    folders = sorted((run / "checkpoints").glob("step_*"))
    assert [first, last] == [str(folder.resolve()) for folder in folders]
    evaluate(run, "--save-predictions")
    assert "averaged_with" not in kept(run / "predictions" / "test")[0]


@pytest.mark.processes
def test_two_processes_keep_the_files_of_one(parts: Path, tmp_path: Path) -> None:
    one = evaluate(parts, "--save-predictions", "--out", tmp_path / "one")
    words = ["evaluate", str(parts), "--plugin", str(parts.parent / "plugin.py"), "--device", "cpu"]
    words += ["--json", str(tmp_path / "two.json"), "--save-predictions", "--out", str(tmp_path / "two")]
    code, text = run_forked(words, tmp_path / "log", num_processes=2)
    assert code == 0, text
    two = json.loads((tmp_path / "two.json").read_text())
    assert {"metrics", "class_intervals", "class_surroundings"} <= one.keys() == two.keys()
    assert [name for name in one if name != "losses" and one[name] != two[name]] == []
    first, second = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "there"], "--out: is the folder of --save-predictions, which is not given"),
        (["--save-predictions", "--data", "other.yaml"], "there is no folder to write to; give --out DIR"),
        (["--save-predictions", "--out", "there", "again"], "--out: works with one run"),
    ],
)
def test_refused_before_any_work(words: list[str], expected: str, parts: Path) -> None:
    given = [str(parts) if word == "again" else word for word in words]
    code, out, err = run_here("evaluate", parts, *given)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert expected in err


def test_names_of_files_are_those_of_the_samples_where_files_can_have_them() -> None:
    assert file_stems(["Area_5/office_1", "chair 0001", "a.b-c"]) == ["Area_5_office_1", "chair_0001", "a.b-c"]
    assert file_stems(["..", "", "/"]) == ["sample.0", "sample.1", "sample.2"]
    long = file_stems(["n" * 300, "n" * 299, "\u65e5" * 300])
    assert all(len(stem.encode()) <= 122 for stem in long)
    assert len(set(long)) == 3
    twice = file_stems(["a/b", "a_b", "A_B", "a_b.0"])
    assert len({stem.lower() for stem in twice}) == 4  # also where capitals do not count
    assert file_stems(["a/b", "a_b"]) == file_stems(["a/b", "a_b"])
