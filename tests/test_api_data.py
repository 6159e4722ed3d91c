"""Python first: data sets of configs, dicts and runs; results whose `repr` is one line; examples that run."""

from __future__ import annotations

import doctest
import json
import math
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import sightline
from sightline.config import read_config
from sightline.contract.errors import ConfigError, UserError
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.training.config_source import read_source
from tests.cases import run_each
from tests.command import run_here
from tests.processes import run_program
from tests.trained import copy_run

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
SMALL = {
    "base": str(RECIPE),
    "data": {"train_size": 60, "test_size": 20, "num_points": 16},
    "model": {"name": "pointnet_plain", "embedding": 16},
    "losses": [{"name": "cross_entropy"}],
    "train": {"epochs": 3, "batch_size": 8},
}
EXAMPLES = ("build_model", "load_data", "train_run", "load_run", "evaluate", "compare", "check")


@pytest.fixture(scope="module")
def config():
    return read_config(SMALL)


def test_the_examples_of_the_api_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe that they name, on fewer clouds of as many points, and in smaller batches."""
    fewer = {"data": {"train_size": 60}, "train": {"batch_size": 4}, "evaluate": {"batch_size": 8}}
    (tmp_path / "configs" / "classify").mkdir(parents=True)
    (tmp_path / "configs" / "classify" / RECIPE.name).write_text(json.dumps({"base": str(RECIPE), **fewer}))
    monkeypatch.chdir(tmp_path)
    for name in EXAMPLES:
        [example] = doctest.DocTestFinder(recurse=False).find(getattr(sightline, name), name, globs={})
        assert example.examples, f"{name} has no example"
        printed: list[str] = []
        assert doctest.DocTestRunner(verbose=False).run(example, out=printed.append).failed == 0, "".join(printed)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_loader_gives_the_batches_of_training_bit_for_bit(config, epoch: int) -> None:
    built = build(config, World())
    steps = built.job.stream.plan.steps_per_epoch
    expected = [micro for step in built.job.stream.iterate(epoch * steps, (epoch + 1) * steps) for micro in step]
    loader = sightline.load_data(SMALL).loader()
    for _ in range(epoch):
        assert len(list(loader)) == len(loader) == steps
    batches = list(loader)
    assert len(batches) == len(expected) == steps
    for batch, reference in zip(batches, expected, strict=True):
        assert batch.keys() == reference.keys()
        assert all(torch.equal(batch[name], reference[name]) for name in batch)


def test_a_loader_gives_the_batches_of_evaluation_in_order_and_every_time(config) -> None:
    data = sightline.load_data(config, "test")
    loader = data.loader(batch_size=6)
    first, second = list(loader), list(loader)
    assert [len(batch["label"]) for batch in first] == [6, 6, 6, 2]
    assert torch.equal(torch.cat([batch["sample_index"] for batch in first]), torch.arange(20))
    assert all(torch.equal(a["points"], b["points"]) for a, b in zip(first, second, strict=True))
    assert [len(batch["label"]) for batch in data.loader(batch_size=np.int64(6), drop_last=True)] == [6, 6, 6]
    for is_shuffled in (False, True):
        beyond = data.loader(batch_size=21, drop_last=True, shuffle=is_shuffled)
        assert (len(beyond), list(beyond)) == (0, []), "as a loader of torch"


def test_samples_have_integer_indices_slices_and_epochs(config) -> None:
    data = sightline.load_data(config)
    assert len(data) == 48, "of each of twelve classes one is held out"
    assert len(sightline.load_data(config, "validation")) == 12
    sample, batch = data[3], data[2:5]
    assert torch.equal(sample["points"], batch["points"][1])
    assert torch.equal(data[-1]["points"], data[len(data) - 1]["points"])
    assert len(list(data)) == len(data)
    data.epoch = 1
    assert not torch.equal(data[3]["points"], sample["points"]), "another epoch is augmented otherwise"
    with pytest.raises(IndexError, match="sample 48 of 48"):
        data[48]
    assert len(data.loader(batch_size=np.int64(5), workers=np.int8(0))) == 10
    with pytest.raises(UserError, match="loader: batch_size: found True, allowed is a whole number from 1 on"):
        data.loader(batch_size=True)


def test_a_sample_has_the_features_of_its_batch(config) -> None:
    """`fields` names them, and models take them: only batches had them, and none of a `DataLoader`."""
    data = sightline.load_data(config, overrides=["data.normals=file"])
    assert set(data.fields) <= set(data[3])
    assert torch.equal(data[3]["features"], data[2:5]["features"][1])
    loaded = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    assert torch.equal(loaded["features"], data[:4]["features"])


def test_transforms_are_those_of_training_of_evaluation_or_none(config) -> None:
    plain = sightline.load_data(config, transforms="none")
    evaluated = sightline.load_data(config, transforms="evaluate")
    trained = sightline.load_data(config)
    raw = plain.part.dataset.get_batch([plain._key(0)])
    assert torch.equal(plain[0]["points"], torch.as_tensor(raw["points"][0]))
    assert torch.equal(evaluated[0]["points"], plain[0]["points"]), "this recipe evaluates without transforms"
    assert not torch.equal(trained[0]["points"], plain[0]["points"])


@run_each(
    "source, told",
    [
        (
            {"base": str(RECIPE), "train": {"epohs": 1}},
            "dict: train.epohs: unknown key 'epohs'; did you mean 'epochs'?",
        ),
        (
            {"base": str(RECIPE), "seed": float("nan")},
            "dict: seed: found nan (float), allowed are text, finite numbers",
        ),
        ({"base": str(RECIPE), "seed": {1, 2}}, "dict: seed: found {1, 2} (set), allowed are"),
        ("none.yaml", "none.yaml: no such file"),
    ],
)
def test_a_wrong_dict_is_refused_like_a_file(source, told: str) -> None:
    for function in (sightline.load_data, sightline.train_run, sightline.check, sightline.compare):
        with pytest.raises(ConfigError) as caught:
            function(source)
        assert told in str(caught.value)


def test_a_dict_may_hold_numpy_scalars() -> None:
    """As of a loop over `numpy.logspace`; 0.001 was refused, as not among finite numbers."""
    given = {"optimizer": {"lr": np.float64(0.001)}, "data": {"num_points": np.int64(16)}, "name": np.str_("mine")}
    config = read_source({"base": str(RECIPE), **given, "log": {"curves": np.bool_(True)}}).config
    values = (config.optimizer.arguments["lr"], config.data.arguments["num_points"], config.name, config.log.curves)
    assert values == (0.001, 16, "mine", True)
    assert [type(value) for value in values] == [float, int, str, bool]


@run_each(
    "function, arguments, told",
    [
        ("train_run", {"out": ""}, "out: found the text '', allowed is the path of the run's folder"),
        ("train_run", {"out": 5}, "out: found 5, allowed is the path of the run's folder"),
        ("train_run", {"resume": 5}, "resume: found 5, allowed is the path of a run or checkpoint, or auto"),
        ("compare", {"samples": 0}, "compare: samples: found 0, allowed is a whole number from 1 on"),
        ("compare", {"samples": "2"}, "compare: samples: found '2', allowed is a whole number from 1 on"),
        ("compare", {"steps": -1}, "compare: steps: found -1, allowed is a whole number from 0 on"),
        ("compare", {"keys": 5}, "keys: found 5, allowed is the path of a JSON map of names of weights"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(function: str, arguments: dict, told: str) -> None:
    """As the command refuses its options; 0 samples were as many as the default, and -1 steps none."""
    with pytest.raises(UserError) as caught:
        getattr(sightline, function)(str(RECIPE), **arguments)
    assert str(caught.value) == told


def test_one_rule_for_configs_dicts_paths_and_runs(tmp_path: Path) -> None:
    recipe, out = {**SMALL, "evaluate": {"batch_size": 20}}, tmp_path / "run"
    result = sightline.train_run(recipe, ["train.steps=2"], out=out, checks=False)
    assert result.is_finished
    assert repr(result).startswith(f"TrainResult({tmp_path / 'run'}, overall_accuracy ")
    as_dict, as_run = sightline.load_data(SMALL, "test"), sightline.load_data(out, "test")
    assert torch.equal(as_dict[4]["points"], as_run[4]["points"])
    final = json.loads((out / "final.json").read_text())
    assert result.document is not None
    assert result.document["metrics"] == final["metrics"]
    evaluated = sightline.evaluate(out)
    assert evaluated.metrics == final["metrics"]
    assert sightline.evaluate(out, data=SMALL).metrics == final["metrics"]
    assert sightline.evaluate(out, overrides=["evaluate.batch_size=7"]).metrics == final["metrics"]
    with pytest.raises(UserError, match=r"evaluate: found 'model.dropout=0'"):
        sightline.evaluate(out, overrides=["model.dropout=0"])
    assert "\n" not in repr(evaluated) + repr(sightline.load_run(out)) + repr(as_run.loader())
    again = sightline.train_run(out, ["train.steps=3"], resume="auto", checks=False)
    assert (again.path, again.is_finished) == (out, True)


def test_a_model_of_a_config_has_its_arguments_and_the_facts_of_its_data() -> None:
    model = sightline.build_model(SMALL)
    assert model.head[-1].out_features == 12
    assert sightline.build_model(SMALL, num_classes=5).head[-1].out_features == 5
    assert sightline.build_model(read_config(SMALL)).state_dict().keys() == model.state_dict().keys()
    scans = {
        "base": str(ROOT / "configs/segment/synthetic_lidar_salsanext.yaml"),
        "data": {"train_size": 8, "test_size": 4},
    }
    lidar = sightline.build_model(scans, width=4)
    assert lidar.state_dict(), "a fact of its transforms, the channels of the range image, is there"
    with pytest.raises(ConfigError, match="'pointnet_plain' has no such argument"):
        sightline.build_model(SMALL, widht=3)


def test_scored_files_are_those_of_the_evaluation(tmp_path: Path) -> None:
    """Boxes that `evaluate --save-predictions` wrote get the figures of the run."""
    run = copy_run("detect", tmp_path)
    assert run_here("evaluate", run, "--save-predictions").code == 0
    scored = sightline.score(run / "predictions" / "test", {"base": str(run / "config.yaml")})
    kept = json.loads((run / "final.json").read_text())["metrics"]
    assert kept["ap"] is not None
    assert {name: None if math.isnan(value) else value for name, value in scored.metrics.items()} == kept
    assert repr(scored).startswith(f"RunEvaluation({run / 'predictions' / 'test'} on test, 6 samples: ap")


def test_findings_that_keep_a_run_from_starting_are_its_repr(tmp_path: Path) -> None:
    result = sightline.train_run(SMALL, ["losses.0.weight=0"], out=tmp_path / "run")
    assert result.path is None
    assert repr(result).startswith("TrainResult(not started:\n")


CELLS = """
import linecache, sys
def cell(number, text):
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), sys.modules["__main__"].__dict__)
import sightline
cell(1, '''
from typing import TypedDict
import torch
from torch import Tensor, nn
import sightline
WIDTH = 8
points = torch.zeros(3)
''')
cell(2, '''
def widen(value):
    return 2 * value
class Output(TypedDict):
    logits: Tensor
''')
cell(3, '''
@sightline.register.model("cell_net")
class CellNet(sightline.Model):
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_channels, widen(WIDTH)), nn.ReLU(), nn.Linear(16, num_classes))

    def forward(self, points: Tensor) -> Output:
        return {"logits": self.layers(points).amax(dim=1)}
print(points.shape)
''')
"""
TRAIN = """
recipe = {{"base": {recipe!r}, "model": {{"name": "cell_net"}}, "losses": [{{"name": "cross_entropy"}}],
          "data": {{"train_size": 60, "test_size": 20, "num_points": 16}}, "train": {{"steps": 2, "batch_size": 8}}}}
result = sightline.train_run(recipe, out={out!r}, checks=False)
print(sightline.load_run({out!r}))
"""


@pytest.mark.processes
def test_a_model_of_a_notebook_cell_is_recorded_and_loaded_in_another_session(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = run_program(CELLS + TRAIN.format(recipe=str(RECIPE), out=str(out)))
    assert trained.returncode == 0, trained.stderr
    assert "LoadedRun(" in trained.stdout, "the same session loads it without the file"
    text = (out / "plugins" / "notebook.py").read_text()
    assert all(line in text for line in ("WIDTH = 8", "def widen(value):", "class Output(TypedDict):"))
    assert "points = torch" not in text, "a variable of a function is not the global one"
    with pytest.raises(UserError, match=r"was made with the plugin .*notebook.py; give it again"):
        sightline.load_run(out)
    code = f"import sightline; print(sightline.load_run({str(out)!r}, plugins=[{str(out / 'plugins/notebook.py')!r}]))"
    loaded = run_program(code)
    assert loaded.returncode == 0, loaded.stderr
    assert "cell_net" in loaded.stdout


@pytest.mark.processes
def test_a_model_of_a_script_is_recorded_without_the_script_s_own_training(tmp_path: Path) -> None:
    """The script is also its plugin: what it runs is left out of the record."""
    script, out = tmp_path / "mine.py", tmp_path / "run"
    definitions = [cell.strip() for cell in CELLS.split("'''")[1::2]]
    parts = ["import sightline", *definitions, TRAIN.format(recipe=str(RECIPE), out=str(out))]
    script.write_text("\n\f\n".join(parts))  # the page breaks of some editors end no line
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (out / "plugins" / "mine.py").read_text()
    assert "class CellNet" in text
    assert "train_run" not in text
    assert "cell_net" in repr(sightline.load_run(out, plugins=[out / "plugins" / "mine.py"]).config)


@pytest.mark.processes
def test_a_model_of_an_imported_module_is_named_as_one_to_import_again(tmp_path: Path) -> None:
    definitions = [cell.strip() for cell in CELLS.split("'''")[1::2]]
    (tmp_path / "own_nets.py").write_text("\n".join(definitions))
    reporter = (
        "from sightline.training.train_result import Reporter\n"
        "class Printing(Reporter):\n    def note(self, text): print(text)\n"
    )
    train = TRAIN.replace("checks=False", "checks=False, reporter=Printing()")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport sightline, own_nets\n{reporter}"
    done = run_program(code + train.format(recipe=str(RECIPE), out=str(tmp_path / "run")))
    assert done.returncode == 0, done.stderr
    assert "model 'cell_net' is from the module own_nets, of which the run keeps no copy" in done.stdout


@pytest.mark.processes
def test_a_model_that_a_run_cannot_record_is_refused_in_one_line(tmp_path: Path) -> None:
    cells = CELLS.replace("WIDTH = 8", "WIDTH = torch.tensor(8)")
    refused = run_program(textwrap.dedent(cells + TRAIN.format(recipe=str(RECIPE), out=str(tmp_path / "run"))))
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert last.endswith(
        "'cell_net' is defined in a notebook cell or script and uses 'WIDTH' (Tensor), which a run cannot record; "
        "write the cell to a file by %%writefile my_parts.py, and give plugins=['my_parts.py']"
    )
    assert not (tmp_path / "run").exists()


@run_each("name, least", [("plain_pytorch", 0.3), ("scikit_learn", 0.6)])
def test_the_examples_learn(name: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve classes: chance is 0.08."""
    monkeypatch.chdir(ROOT)
    assert runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](train_size=240) > least
