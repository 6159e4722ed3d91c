"""The Python interface: lazy, without side effects, and a loaded run is the run that was trained."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import sightline
from sightline.contract.errors import CheckpointError, ConfigError, UserError
from sightline.contract.types import SampleKey
from sightline.runs import checkpoint
from tests.cases import run_each
from tests.runs.small import small_config, small_run

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on a few solids, with averaged weights and a transform of evaluation that draws nothing."""
    config = small_config(
        "train.ema_decay=0.5",
        "transforms.evaluate=[{name: sample_points, num_points: 20, order: first}]",
        "transforms.train=[{name: sample_points, num_points: 20}, {name: jitter}]",
    )
    path = tmp_path_factory.mktemp("api") / "run"
    assert sightline.train_run(config, out=path, checks=False, device="cpu", progress=False).is_finished
    return path


@run_each(
    "paths, options, said",
    [
        ("c.npy", {}, r"predict: found the text 'c\.npy', allowed is a list: \['c\.npy'\]"),
        (Path("c.npy"), {}, r"predict: found a PosixPath, allowed is a list: \['c\.npy'\]"),
        (None, {}, "predict: found null, allowed is a list"),
        ([np.zeros((3, 3))], {}, "predict: found a ndarray, allowed is the path of a file or folder to predict"),
        (["c\0.npy"], {}, "has the character U"),
        (["c.npy"], {"batch_size": 0}, "predict: batch_size: found 0, allowed is a whole number from 1 on"),
        (["c.npy"], {"batch_size": "8"}, "predict: batch_size: found '8', allowed is a whole number"),
        (
            ["c.npy"],
            {"columns": "x,y,z"},
            r"columns: found the text 'x,y,z', allowed is a list of names: \['x', 'y', 'z",
        ),
    ],
)
def test_what_is_not_a_list_of_files_is_not_predicted(paths: object, options: dict, said: str, run: Path) -> None:
    """A text would be taken letter by letter, and its full stop for the working folder."""
    loaded = sightline.load_run(run)
    with pytest.raises(UserError, match=said):
        loaded.predict(paths, **options)  # type: ignore[arg-type]


def test_runs_are_listed_below_a_path() -> None:
    for folder, said in {None: "found null", 1: "found 1", "": "found the text ''"}.items():
        with pytest.raises(UserError, match=f"list_runs: {said}, allowed is the path of a folder with runs"):
            sightline.list_runs(folder)  # type: ignore[arg-type]


def test_import_is_lazy_and_quick_and_leaves_random_states_threads_and_loggers_alone() -> None:
    """What `sightline` itself imports is not torch, whose states are therefore read before its names are used."""
    told = python(
        "import logging, random, sys\n"
        "counts = [0]\n"
        "def count(*_): counts[-1] += 1\n"
        "def begin(): counts.append(0); sys.setprofile(count)\n"
        "def end(): sys.setprofile(None)\n"
        "def state():\n"
        "    return random.getstate(), *(logging.getLogger(name).handlers[:] for name in ('', 'sightline'))\n"
        "def numbers():\n"
        "    return torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), torch.get_num_threads()\n"
        "before = state(); begin(); import sightline; end()\n"
        "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'rich') if m in sys.modules]\n"
        "begin(); import torch; end(); import numpy; drawn = numbers(); begin()\n"
        "sightline.metrics, sightline.ops, sightline.build_model, sightline.load_run; end()\n"
        "print(heavy, state() == before, numbers() == drawn, (counts[1] + counts[3]) / counts[2])"
    )
    facts, ratio = told.rsplit(maxsplit=1)
    assert facts == "[] True True"
    assert float(ratio) < 0.7, "calls beside those of importing torch"


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in sightline.__all__:
        assert getattr(sightline, name) is not None
    assert set(sightline.__all__) <= set(dir(sightline))
    with pytest.raises(AttributeError, match="module 'sightline' has no attribute 'metric'"):
        _ = sightline.metric
    for room in (sightline.metrics, sightline.ops):
        assert all(getattr(room, name).__doc__ for name in room.__all__ if name != "State")


def test_version_is_that_of_the_package() -> None:
    assert sightline.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_build_model_takes_facts_and_arguments_alike() -> None:
    model = sightline.build_model("pointnet_plain", num_classes=40, in_channels=3, dropout=0.1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 696_168  # the plain network's published count
    assert model.head[1].p == 0.1


def test_build_model_takes_numbers_that_were_counted_in_an_array() -> None:
    num_classes = np.array([0, 3, 1]).max() + 1
    model = sightline.build_model("pointnet_plain", num_classes=num_classes, in_channels=3, dropout=np.float64(0.1))
    assert (model.head[-1].out_features, model.head[1].p) == (4, 0.1)


@run_each(
    "name, arguments, told",
    [
        ("pointnt", {}, ["'pointnt'", "did you mean 'pointnet'?"]),
        ("pointnet", {"num_classes": 3, "in_channels": 3, "dropuot": 0.1}, ["dropuot", "did you mean 'dropout'?"]),
        ("pointnet", {"num_classes": 3, "in_channels": 3, "up_axis": "z"}, ["up_axis", "'pointnet'"]),
        ("pointnet", {"num_classes": "ten", "in_channels": 3}, ["num_classes: found the text 'ten', allowed is"]),
        ("pointnet", {"num_classes": 3}, ["in_channels", "'pointnet'"]),
        ("pointnet", {"num_classes": 3, "in_channels": 3, "dropout": 2.0}, ["dropout: found 2.0, allowed is"]),
    ],
)
def test_build_model_names_mistakes(name: str, arguments: dict, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        sightline.build_model(name, **arguments)
    message = str(caught.value)
    assert message.startswith("build_model")
    assert [part for part in told if part not in message] == [], message


def test_build_model_takes_encoders_and_the_facts_that_they_need() -> None:
    points, images = {"name": "dgcnn", "num_neighbours": 15}, {"name": "vit", "depth": 2}
    model = sightline.build_model("crosspoint", in_channels=6, points=points, images=images)
    assert (model.points.in_channels, model.points.num_neighbours, len(model.images.blocks)) == (6, 15, 2)


@run_each(
    "arguments, told",
    [
        ({"points": {"name": "dgcnn"}}, "build_model.in_channels: 'intrapoint' needs the argument 'in_channels'"),
        ({}, "build_model.points: is required and missing: 'intrapoint' needs a block of `name:`"),
        ({"points": "dgcnn"}, "build_model.points: found the text 'dgcnn', allowed is a block of `name:`"),
        (
            {"points": {"name": "dgcnn", "num_neighbors": 5}, "in_channels": 3},
            "build_model.points.num_neighbors: 'dgcnn' has no such argument; did you mean 'num_neighbours'?",
        ),
    ],
)
def test_build_model_names_mistakes_of_encoders(arguments: dict, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sightline.build_model("intrapoint", **arguments)
    assert str(caught.value).startswith(told)


def test_a_loaded_run_holds_the_averaged_weights_of_last(run: Path) -> None:
    loaded = sightline.load_run(run)
    snapshot = checkpoint.load(run / "checkpoints" / "last")
    assert snapshot.ema is not None
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, snapshot.ema[name]), name
    assert not torch.equal(snapshot.ema["head.5.weight"], snapshot.model["head.5.weight"]), "the average is another"
    assert not loaded.model.training
    assert loaded.checkpoint == (run / "checkpoints" / "last").resolve()
    assert loaded.class_names[:2] == ("mug", "hammer")
    assert loaded.config.train.ema_decay == 0.5
    assert loaded.facts["up_axis"] == "z"


def test_a_loaded_run_predicts_what_its_evaluation_did(run: Path) -> None:
    """The same clouds, transformed and classified by hand, give the overall accuracy of final.json."""
    loaded = sightline.load_run(run)
    shapes = small_run().data.test.dataset
    batch = shapes.get_batch([SampleKey(index, 0, 0) for index in range(len(shapes))])
    seen = loaded.transform(batch)
    with torch.no_grad():
        answers = loaded.model(points=seen["points"])["logits"].argmax(dim=1)
    final = json.loads((run / "final.json").read_text())
    assert int((answers == batch["label"]).sum()) / len(shapes) == final["metrics"]["overall_accuracy"]


def test_transform_gives_the_bits_of_evaluation_and_leaves_its_input_alone(run: Path) -> None:
    loaded = sightline.load_run(run)
    points = torch.rand(3, 32, 3)
    before = points.clone()
    assert torch.equal(loaded.transform({"points": points})["points"], points[:, :20])
    assert torch.equal(points, before)
    with pytest.raises(ConfigError, match=r"sample_points.* needs 'points'; the batch offers voxels"):
        loaded.transform({"voxels": points})
    for wrong, found in (({}, "an empty batch"), (points, "a Tensor"), (None, "a NoneType")):
        with pytest.raises(UserError, match=f"transform: found {found}, allowed is a batch: "):
            loaded.transform(wrong)


def test_a_device_of_torch_is_one_by_its_name(run: Path) -> None:
    final = json.loads((run / "final.json").read_text())
    assert sightline.evaluate(run, device=torch.device("cpu")).metrics == final["metrics"]


def test_a_loaded_run_stays_the_same_where_the_program_changes_its_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `%cd` in a notebook does: files that are read on first use were looked up in the new folder."""
    monkeypatch.chdir(run.parent)
    loaded = sightline.load_run(run.name)
    monkeypatch.chdir(tmp_path)
    np.save("ball.npy", torch.nn.functional.normalize(torch.randn(32, 3), dim=1).numpy())
    assert len(loaded.predict(["ball.npy"]).predicted) == 1
    exported = sightline.export(loaded, inputs=["ball.npy"])
    documents = json.loads(exported.description_path.read_text())["run"]["documents"]
    assert documents["config.yaml"] == (run / "config.yaml").read_text()


def test_loading_leaves_random_states_alone(run: Path, tmp_path: Path) -> None:
    """Whatever the network draws to be made, and a plugin at import."""
    plugin = tmp_path / "drawing_plugin.py"
    plugin.write_text(
        "import random\nimport numpy\nimport torch\n\nrandom.seed(5)\nnumpy.random.rand(3)\ntorch.manual_seed(7)\n"
    )
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    sightline.load_run(run, plugins=[plugin])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_what_is_no_run_or_no_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        sightline.load_run(tmp_path)
    with pytest.raises(UserError, match="checkpoint none: there is no none"):
        sightline.load_run(run, checkpoint="none")
    assert sightline.load_run(run, checkpoint="best").checkpoint == (run / "checkpoints" / "best").resolve()
    damaged = tmp_path / "step_00000001"
    damaged.mkdir()
    with pytest.raises(CheckpointError, match="step_00000001"):
        sightline.load_run(run, checkpoint=damaged)
