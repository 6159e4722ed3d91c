"""`sightline view`: what it writes can be read back, what it says agrees with evaluation, a slip is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.contract.types import SampleKey
from sightline.draw.pictures import PALETTE
from sightline.engine.run_data import build_data, build_part
from sightline.store.files.ply import write_ply
from tests.command import Outcome, document_of, run_here, succeed
from tests.runs.poses import NUM_HANDS
from tests.runs.segments import SCENES
from tests.trained import copy_run, trained_run


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("parts", tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("scenes", tmp_path_factory.mktemp("scenes"))


def view(source: Path, out: Path, *words: object) -> tuple[dict[str, Any], Outcome]:
    """View a config or run that lies beside its plugin."""
    given = ("--plugin", source.parent / "plugin.py", "--device", "cpu", "--json", out / "out.json")
    done = succeed("view", source, "--out", out, *given, *words)
    return json.loads((out / "out.json").read_text()), done


def page_of(out: Path) -> dict[str, Any]:
    text = (out / "view.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_config_shows_training_samples_at_every_stage(parts: Path, tmp_path: Path) -> None:
    run = sightline.load_run(parts, plugins=[parts.parent / "plugin.py"])
    first, second = build_data(run.config).train.indices[[3, 1]].tolist()
    words = ("--samples", f"{first},{second}", "--epoch", "2", "--all", "data.test_size=12")
    document, done = view(parts.with_name("parts.yaml"), tmp_path, *words)
    assert document["split"] == "train"
    assert document["epoch"] == 2
    assert [sample["index"] for sample in document["samples"]] == [first, second]
    stages = ["raw", "train 1: rotate", "train 2: scale", "train 3: sample_points"]
    assert [stage["stage"] for stage in document["samples"][0]["stages"]] == stages
    assert [stage["num_points"] for stage in document["samples"][0]["stages"]] == [64, 64, 64, 48]
    files = {path.name for path in tmp_path.iterdir()} - {"out.json"}
    assert set(document["files"]) == files
    assert len(files) == 2 + 1
    assert f"2 pictures in {tmp_path}" in done.err
    assert "train 3: sample_points" in done.out
    short, done = view(parts.with_name("parts.yaml"), tmp_path / "short", *words[:-2], words[-1])
    assert short["samples"][0]["stages"] == [document["samples"][0]["stages"][place] for place in (0, 3)]
    assert "; --all adds the stages between" in done.err


def test_the_answers_of_a_run_are_those_that_evaluate_keeps(parts: Path, scenes: Path, tmp_path: Path) -> None:
    for run, num_samples in ((parts, 24), (scenes, 5)):
        out = tmp_path / run.name
        given = ("--plugin", run.parent / "plugin.py", "--device", "cpu")
        succeed("evaluate", run, *given, "--save-predictions", "--out", out / "kept")
        document, _ = view(run, out / "view", "--num", "5")
        assert document["split"] == "test"
        manifest = {e["index"]: e for e in json.loads((out / "kept" / "manifest.json").read_text())["samples"]}
        assert len(manifest) == num_samples
        dataset = build_part(sightline.load_run(run, plugins=[run.parent / "plugin.py"]).config, "test").dataset
        assert len(document["samples"]) == 5
        for sample in document["samples"]:
            entry = manifest[sample["index"]]
            labels = np.load(out / "kept" / entry["file"])
            truth = dataset[SampleKey(sample["index"], 0, 0)]["label"].numpy()
            counts = sample["stages"][-1]["classes"]["prediction"]
            assert sorted(counts.values()) == sorted(np.unique(labels, return_counts=True)[1].tolist())
            is_counted = truth != 255
            figures = sample["prediction"]
            assert figures["accuracy"] == (labels == truth)[is_counted].mean()


def test_scenes_show_their_colours_and_may_hide_a_class(scenes: Path, tmp_path: Path) -> None:
    config = scenes.with_name("scenes.yaml")
    document, _ = view(config, tmp_path, "--split", "test", "--samples", "Area_1/room 2", "--hide", "high")
    (sample,) = document["samples"]
    assert (sample["name"], sample["index"]) == ("test/Area_1/room 2", 2)
    assert document["files"] == ["test_Area_1_room_2.png", "view.html"]
    assert page_of(tmp_path)["hidden"] == ["high"]
    assert sample["stages"][0]["classes"]["ground truth"]["unlabelled"] > 0


def test_a_classifying_run_tells_the_class(parts: Path, tmp_path: Path) -> None:
    run = copy_run("classify", tmp_path)
    samples = document_of("view", run, "--out", tmp_path / "seen", "--num", "24")["samples"]
    right = [sample["prediction"]["is_right"] for sample in samples]
    final = json.loads((tmp_path / "run" / "final.json").read_text())
    assert np.mean(right) == pytest.approx(final["metrics"]["overall_accuracy"])
    assert [sample["class"] for sample in samples] == [sample["prediction"]["true_class"] for sample in samples]


def test_files_and_folders_of_clouds(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    (tmp_path / "more").mkdir()
    write_ply(tmp_path / "a.ply", points=points, colors=PALETTE[:50], label=np.arange(50))
    write_ply(tmp_path / "more" / "a.ply", points=points, colors=PALETTE[:50])
    np.save(tmp_path / "more" / "b.npy", np.column_stack([points, np.arange(50)]))
    words = (tmp_path / "a.ply", tmp_path / "more", "--columns", "x,y,z", "--up", "y")
    code, _, err = run_here("view", *words, "--out", tmp_path / "out")
    assert code == 2
    assert "b.npy: has 4 columns, 3 are named" in err
    words = (tmp_path / "a.ply", tmp_path / "more" / "a.ply", "--json", tmp_path / "out.json")
    err = succeed("view", *words, "--out", tmp_path / "out").err
    document = json.loads((tmp_path / "out.json").read_text())
    names = [str(tmp_path / "a.ply"), str(tmp_path / "more" / "a.ply")]  # one name twice: the whole paths
    assert [sample["name"] for sample in document["samples"]] == names
    assert [each["name"] for each in page_of(tmp_path / "out")["subjects"][0]["clouds"][0]["colorings"]] == [
        "colours",
        "label",
        "height",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{config}", "--columns", "x,y,z"], "view: --columns can be used only with files"),
        (["{config}", "--checkpoint", "best"], "can be used only with a run; a config has no weights"),
        (["{config}", "score=0.5"], "view: score= can be used only with a run; a config has no weights"),
        (["{run}", "score=0.5"], "view: score= applies to detections, and the task 'segment' draws none; leave it out"),
        (["{file}", "score=0.5"], "view: score= can be used only with a data set; files have none"),
        (["{run}", "score=2"], "score=2: give a number from 0 to 1"),
        (["{config}", "--split", "tset"], "'--split': 'tset' is not one of 'train', 'validation', 'test'"),
        (["{config}", "--split", "test", "--epoch", "3"], "--epoch: only training samples change with the epoch"),
        (["{config}", "--samples", "999"], "--samples: found '999', which is not a sample of the train part; it has"),
        (["{config}", "--samples", "nobody"], "found 'nobody', which is not a sample of the train part"),
        (["{config}", "--samples", "3", "--num", "2"], "--num: is the number of samples, and --samples lists them"),
        (
            ["{config}", "--samples", "worst"],
            "--samples worst: are the samples with the most errors of a run; a config",
        ),
        (
            ["{run}", "--samples", "worst"],
            "none of the run's metrics lists its worst samples, as box_errors and boxes3d_errors do",
        ),
        (["{config}", "--hide", "ceilin"], "--hide: there is no class 'ceilin'; there are"),
        (["{config}", "{file}"], "is a config or a run; give only it; 'sightline report' compares runs"),
        (["{config}", "data.num_points=0"], "data.num_points"),
        (["{run}", "model.width=3"], "view: found 'model.width=3', allowed is key=value with evaluate.*"),
        (["{run}", "--checkpoint", "bets"], "checkpoint bets: there is no bets"),
        (["{file}", "--all"], "view: --all can be used only with a data set; files have none"),
        (
            ["{config}", "--split", "test", "transforms.evaluate=[]", "--all"],
            "view: --all: these samples have no further stages; leave it out",
        ),
        (["{file}", "--split", "train"], "view: --split can be used only with a data set; files have none"),
        (["{file}", "data.num_points=3"], "key=value changes a config, and files have none"),
        (["{file}", "--up", "w"], "'--up': 'w' is not one of 'x', 'y', 'z'"),
        (["{folder}/none.ply"], "none.ply: there is no such file, folder or run"),
        (["{folder}/no_run", "--num", "3"], "no_run: there is no such file, folder or run"),
        (["{folder}/empty"], "holds no file of the kinds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_in_one_line(words: list[str], expected: str, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_ply(tmp_path / "a.ply", points=np.ones((2, 3)), colors=PALETTE[:2])
    places = {"config": parts.with_name("parts.yaml"), "run": parts, "file": tmp_path / "a.ply", "folder": tmp_path}
    given = [word.format(**places) for word in words]
    code, out, err = run_here("view", *given, "--plugin", parts.parent / "plugin.py", "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_a_held_out_sample_is_not_shown_as_training(parts: Path, tmp_path: Path) -> None:
    data = build_data(sightline.load_run(parts, plugins=[parts.parent / "plugin.py"]).config)
    index = int(data.selection.indices[0])
    words = ("--plugin", parts.parent / "plugin.py", "--samples", index, "--out", tmp_path)
    code, _, err = run_here("view", parts.with_name("parts.yaml"), *words)
    assert code == 2
    assert f"; {index} belongs to the validation part" in err
    err = succeed("view", parts.with_name("parts.yaml"), *words, "--split", "validation").err


def test_samples_of_one_name_are_told_apart(parts: Path, tmp_path: Path) -> None:
    """As the repeats of a scene are."""
    plugin = tmp_path / "plugin.py"
    text = (parts.parent / "plugin.py").read_text()
    plugin.write_text(text.replace('return f"Area_1/room {index}"', 'return "room"'))
    config = tmp_path / "scenes.yaml"
    config.write_text(SCENES)
    words = ("--plugin", plugin, "--split", "test", "--samples", "0,2,2", "--out", tmp_path / "out")
    document = document_of("view", config, *words)
    assert [sample["name"] for sample in document["samples"]] == ["test/room (0)", "test/room (2)"]
    assert {"test_room_0.png", "test_room_2.png"} <= set(document["files"])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, _, err = run_here("view", "nosuch.yaml", "--out", tmp_path / "file")
    assert code == 2
    assert err.startswith(f"error: --out {tmp_path / 'file' / 'view.html'}: ")


# --- depth frames ----------------------------------------------------------------------------------------------------
SMALL = Path(__file__).resolve().parents[2] / "configs" / "pose" / "synthetic_hands_v2v_small.yaml"


def test_a_config_of_hands_shows_them_from_the_image_to_the_target(tmp_path: Path) -> None:
    """The shipped config itself, with few frames."""
    few = ("data.train_size=4", "data.test_size=2", "evaluate.select=test")
    words = ("--num", "1", "--epoch", "1", "--json", tmp_path / "out.json", "--out", tmp_path / "out")
    succeed("view", SMALL, *few, *words)
    (short,) = json.loads((tmp_path / "out.json").read_text())["samples"]
    done = succeed("view", SMALL, *few, *words, "--all")
    (sample,) = json.loads((tmp_path / "out.json").read_text())["samples"]
    steps = ["1: place_cube", "2: voxelize", "3: draw_heatmaps"]
    stages = ["raw", *(f"train {step}" for step in steps), *(f"evaluate {step}" for step in steps)]
    assert [stage["stage"] for stage in sample["stages"]] == stages
    assert short["stages"] == sample["stages"][:4], "what training makes of a frame: cube, voxels and heat maps"
    for stage in sample["stages"][1:]:
        assert stage["figures"]["is_sound"] is True
        assert "21 of 21 joints are in the cube" in stage["description"] or "from the labels" in stage["description"]
    assert "1 pictures in " in done.err
    (subject,) = page_of(tmp_path / "out")["subjects"]
    assert subject["up"] == "camera_y_up"
    assert [len(stage["panels"]) for stage in subject["clouds"]] == [1, 1, 3, 3, 1, 3, 3]


def test_the_joints_of_a_run_are_off_by_what_evaluation_says(tmp_path: Path) -> None:
    pose = trained_run("pose")
    words = ("--num", NUM_HANDS, "--device", "cpu", "--out", tmp_path / "out", "--hide", "predicted joints")
    samples = document_of("view", pose, *words)["samples"]
    final = json.loads((pose / "final.json").read_text())
    found = [sample["prediction"]["mean_error_mm"] for sample in samples]
    assert np.mean(found) == pytest.approx(final["metrics"]["mean_error_mm"], rel=1e-6)
    assert len(samples[0]["prediction"]["error_mm"]) == 21
    assert samples[0]["stages"][-1]["description"].startswith(f"joints are {found[0]:.1f} mm off on average, ")
    names = [each["name"] for each in page_of(tmp_path / "out")["subjects"][0]["clouds"][-1]["skeletons"]]
    assert names == ["true joints", "predicted joints"]


def test_photos_and_depth_images_of_ones_own_are_drawn(tmp_path: Path) -> None:
    """Colours upright, depths in mm or metres; in a folder with clouds, the clouds alone."""
    folder = tmp_path / "files"
    folder.mkdir()
    depth = np.zeros((40, 50), dtype=np.uint16)
    depth[10:30, 5:25] = 700
    Image.fromarray(depth).save(folder / "frame.png")
    Image.fromarray(np.full((30, 20, 3), 200, dtype=np.uint8)).save(folder / "photo.jpg")
    np.save(tmp_path / "frame.npy", np.where(depth > 0, 0.7, np.nan))
    words = (folder / "frame.png", folder / "photo.jpg", tmp_path / "frame.npy")
    samples = document_of("view", *words, "--out", tmp_path / "out")["samples"]
    [png, photo, npy] = [sample["stages"][0]["figures"] for sample in samples]
    assert (png["nearest_mm"], png["farthest_mm"], png["measured"]) == (700.0, 700.0, 0.2)
    assert (photo["width_px"], photo["height_px"], photo["mode"]) == (20, 30, "RGB")
    assert npy == png | {"nearest_mm": pytest.approx(700.0), "farthest_mm": pytest.approx(700.0)}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"frame.png.png", "photo.jpg.png", "view.html"}
    assert len(document_of("view", folder, "--out", tmp_path / "all")["samples"]) == 2
    Image.fromarray(depth).save(tmp_path / "microscope.tif")  # depth images are PNG files
    succeed("view", tmp_path / "microscope.tif", "--out", tmp_path / "tif")
    (folder / "cloud.xyz").write_text("0 0 0\n1 1 1\n")
    [cloud] = document_of("view", folder, "--out", tmp_path / "clouds")["samples"]
    assert cloud["name"] == "cloud.xyz"
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:200])
    refused = run_here("view", folder / "cut.jpg", "--out", tmp_path / "cut")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "cut.jpg" in refused.err


def test_pictures_have_a_folder_unless_one_is_named(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a run is in it, as its predictions are; any other is called as what is shown."""
    monkeypatch.chdir(tmp_path)
    given = ("--plugin", parts.parent / "plugin.py", "--device", "cpu", "--num", 1)
    succeed("view", parts.with_name("parts.yaml"), *given)
    assert (tmp_path / "views" / "parts" / "view.html").is_file()
    done = succeed("view", parts, *given)
    assert f"{parts / 'views' / 'view.html'}: open it" in done.err
    succeed("view", parts, *given)
