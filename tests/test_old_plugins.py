"""Plugins as users have them, `tests/old_plugins`: they load and work, and every name that they import is there."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.contract import registry
from sightline.contract.members import MEMBERS, suggest_member
from sightline.contract.plugins import Plugin, load_plugins, run_file
from sightline.contract.types import SampleKey
from sightline.workbench.check.context import CHECKS
from sightline.workbench.check.suite import all_checks
from tests.command import Outcome, run_here
from tests.doc_blocks import lay_out
from tests.old_plugins.list_names import HERE, NAMES, find
from tests.old_prepared.make import VIEWS, unpack
from tests.old_runs.make import HERE as RUNS
from tests.runs.poses import hands, write_frames

EVERY = HERE / "every_part.py"
SHORT = ("--no-check", "--device", "cpu", "log.tensorboard=false")


@pytest.fixture(autouse=True)
def _own_parts() -> Iterator[None]:
    """What a plugin registers is gone after its test."""
    before = {kind: dict(each._entries) for kind, each in registry.REGISTRIES.items() if each.names()}
    yield
    for kind, entries in before.items():
        registry.REGISTRIES[kind]._entries = entries
    CHECKS.pop("old-check", None)


def run(*words: object) -> Outcome:
    done = run_here(*words)
    assert done.code == 0, done.err
    return done


def train(config: str, out: Path, *words: object) -> dict[str, Any]:
    """`final.json` of a run of a config of the folder."""
    run("train", HERE / config, *words, *SHORT, "--out", out)
    document: dict[str, Any] = json.loads((out / "final.json").read_text())
    return document


# --- names -----------------------------------------------------------------------------------------------------------


def test_every_name_that_they_use_is_there() -> None:
    missing = {}
    for line in NAMES.read_text().splitlines():
        try:
            find(line)
        except (ImportError, AttributeError, TypeError) as error:
            missing[line] = str(error)
    assert missing == {}, "plugins of users have these names: keep them as aliases (tests/old_plugins/README.md)"


@pytest.mark.parametrize(
    "line", ["from sightline.contract.types import Gone", "sightline.gone", "sightline.contract.types.Field(gone=)"]
)
def test_a_name_that_is_gone_is_found(line: str) -> None:
    with pytest.raises((ImportError, AttributeError, TypeError)):
        find(line)


def test_every_member_of_a_component_is_read_under_its_old_name() -> None:
    """`yardsticks` of a data set, `within_batch` of a metric: names that classes of plugins define."""
    members = json.loads((HERE / "members.json").read_text())
    for kind, names in members["optional"].items():
        for name in names:
            given = object()
            component = type("Component", (), {name: given})
            assert any(member.get(component) is given for member in MEMBERS[kind].values()), f"{kind}: {name}"
    for kind, names in members["required"].items():
        assert [name for name in names if suggest_member(kind, name)] == []


# --- the plugins of examples/ ----------------------------------------------------------------------------------------


def test_the_first_example_trains(tmp_path: Path) -> None:
    words = ("--plugin", HERE / "my_plugin.py", "--plugin", HERE / "my_transform.py")
    sizes = ("data.train_size=24", "data.test_size=12", "train.epochs=1")
    document = train("my_plugin.yaml", tmp_path / "run", *words, *sizes)
    assert 0 <= document["metrics"]["top_1_accuracy"] <= 1


def test_a_task_of_one_s_own_trains_predicts_and_is_viewed(tmp_path: Path) -> None:
    plugin = ("--plugin", HERE / "angle_task.py")
    sizes = ("data.train_size=32", "data.test_size=8", "train.epochs=1")
    document = train("angle_task.yaml", tmp_path / "run", *plugin, *sizes)
    assert 0 < document["metrics"]["angle_error_deg"] <= document["metrics"]["max_error_deg"] <= 180
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.full((20, 30), 200, np.uint8)).save(tmp_path / "scans" / "a.png")
    words = (*plugin, "--device", "cpu", "--out", tmp_path / "upright", "--json", tmp_path / "found.json")
    run("predict", tmp_path / "run", tmp_path / "scans", *words, "dark_on_light=true")
    (row,) = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert -180 <= row["angle_deg"] <= 180
    assert (tmp_path / "upright" / "a.upright.png").exists()
    run("view", tmp_path / "run", *plugin, "--device", "cpu", "--out", tmp_path / "view")
    assert list((tmp_path / "view").iterdir())


@pytest.mark.long  # tests/compare has the same of examples/
def test_a_network_of_another_make_is_compared(tmp_path: Path) -> None:
    shutil.copytree(RUNS.parents[1] / "configs", tmp_path / "configs")
    words = ("model={name: pointnet_plain, embedding: 64}", "losses=[{name: cross_entropy}]")
    config = tmp_path / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
    sizes = ("data.train_size=24", "data.test_size=12", "train.batch_size=4")
    done = run_here("compare", config, "--against", HERE / "their_pointnet.py", *words, "data.num_points=32", *sizes)
    assert done.code in (0, 1), done.err
    assert "encode.2.norm: eps is 1e-05 and in the reference 0.001" in done.err


# --- a part of each kind ---------------------------------------------------------------------------------------------


def test_a_detector_of_own_blocks_trains(tmp_path: Path) -> None:
    """Backbone, neck, head, assigner, suppression, optimiser and schedule."""
    document = train("detector.yaml", tmp_path / "run", "--plugin", EVERY, "train.epochs=1")
    assert 0 <= document["metrics"]["ap50"] <= 1
    run("show", tmp_path / "run", "--plugin", EVERY)


@pytest.mark.parametrize("assigner", ["old_nearest", "old_needing"])
def test_own_assigners_are_built(tmp_path: Path, assigner: str) -> None:
    done = run("check", HERE / "detector.yaml", f"task.assigner.name={assigner}", "--plugin", EVERY, "--verbose")
    assert "[old-check note cfg.contract] was run" in done.out + done.err


def test_own_encoders_train(tmp_path: Path) -> None:
    document = train("pair.yaml", tmp_path / "run", "--plugin", EVERY)
    assert 0 <= document["metrics"]["cross_retrieval_accuracy"] <= 1


def test_a_probe_and_a_search_of_one_s_own(tmp_path: Path) -> None:
    """Both are named on the command line and not in a config: the plugin is loaded before the name is looked up."""
    train("classifier.yaml", tmp_path / "run", "--plugin", EVERY)
    words = ("--device", "cpu", "--plugin", EVERY)
    for each in registry.REGISTRIES.values():  # as in a process of its own
        each._entries = {name: entry for name, entry in each._entries.items() if not name.startswith("old_")}
    run("probe", tmp_path / "run", "--method", "old_means", *words, "--json", tmp_path / "probe.json")
    assert "probe_old_means_accuracy" in (tmp_path / "probe.json").read_text()
    for each in registry.REGISTRIES.values():
        each._entries = {name: entry for name, entry in each._entries.items() if not name.startswith("old_")}
    search = ("compress", "search", tmp_path / "run", "--method", "old_lowest", "--ratio", "0.5", "--calibration", 12)
    run(*search, *words, "--out", tmp_path / "found")
    assert json.loads((tmp_path / "found" / "search.json").read_text())["best"] == "old_lowest"


def test_a_set_of_depth_frames_and_a_reference_point() -> None:
    load_plugins([EVERY])
    dataset = registry.data.get_entry("old_frames").builder(split="train", size=3)
    sample = dataset[SampleKey(1, 0, 0)]
    assert sample["reference"].tolist() == pytest.approx([0, 0, 301], abs=10)
    middle = registry.references.get_entry("old_middle").builder()
    done = run_here("show", RUNS / "pose", "--plugin", RUNS / "nets.py", "data.reference={name: old_middle}")
    assert (middle.title, done.code) == ("old_middle", 0), done.err


# --- what pages show of Python ---------------------------------------------------------------------------------------


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages take for granted, and old runs under the names that the pages have for them."""
    lay_out(tmp_path)
    for old, name in (("classify", "tour"), ("segment_parts", "parts"), ("pose", "hands")):
        shutil.copytree(RUNS / old, tmp_path / "runs" / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(name: str, **names: Any) -> dict[str, Any]:
    """What a block leaves, given what its page defined before it."""
    defined = {"__name__": "__main__", "Path": Path, "sightline": sightline, **names}
    path = HERE / "pages" / f"{name}.py"
    exec(compile(path.read_text(), str(path), "exec"), defined)
    return defined


def test_pages_on_runs(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run_page("readme")["classes"]) == 2
    assert {each.file.name for each in run_page("predict")["found"].predicted} <= {"chair.ply", "lamp.npy"}
    shutil.copy(pages / "chair.ply", pages / "mug_01.ply")
    found = run_page("predict_points")["found"]
    assert len(found.predicted) + len(found.refused) == 1
    run("evaluate", "runs/tour", "--save-predictions", "--device", "cpu")
    assert "wrong" in run_page("view")


def test_the_page_on_poses(pages: Path) -> None:
    write_frames(pages / "frames", hands()["depth"][:2])
    load_plugins([RUNS / "nets.py"])
    forget_plugins(pages / "runs" / "hands")
    found = run_page("pose")["found"]
    assert len(found.predicted) + len(found.refused) == 2


def test_the_page_on_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(VIEWS, tmp_path / "data").rename(tmp_path / "data" / VIEWS)
    monkeypatch.chdir(tmp_path)
    image = run_page("render")["image"]
    assert (image.shape, image.dtype) == ((96, 96, 3), np.uint8)


def forget_plugins(path: Path) -> None:
    """The page names a run without a plugin."""
    record = path / "environment.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"plugins": []}))


def test_the_page_on_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("classifier.yaml", tmp_path / "runs" / "trained", "--plugin", EVERY)
    forget_plugins(tmp_path / "runs" / "trained")
    monkeypatch.chdir(tmp_path)
    policy = {"head.1.weight": {"kind": "linear", "bits": 8}}
    run_page("compress", policy=policy)
    assert policy["head.1.weight"]["activation"]["bits"] == 8  # type: ignore[index]


def test_the_page_on_training(pages: Path) -> None:
    """A config of the name on the page, of a smaller run."""
    config = pages / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
    shutil.copy(RUNS / "classify" / "config.yaml", config)
    result = run_page("train")["result"]
    assert (result.is_finished, result.path.name) == (True, "solids")
    face = run_file(Plugin(HERE / "python_face.py"))
    path = face.train(str(config), str(pages / "again"))
    assert face.use(path).shape == (2, 12)
    assert [each.shape[1] for each in face.compute()] == [4, 4]


def test_the_page_on_checks_and_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    defined = run_page("reference")
    assert defined["stop"](torch.ones(1, requires_grad=True)).requires_grad is False
    context = importlib.import_module("sightline.workbench.check.context")
    finding = importlib.import_module("sightline.workbench.check.core.finding")
    all_checks()
    monkeypatch.delitem(CHECKS, "first-step")
    made = run_page("how_to_add", check=context.check, Context=context.Context, Finding=finding.Finding)
    assert made["first_step"].code == "first-step"
    assert isinstance(made["first_step"], context.Check)
