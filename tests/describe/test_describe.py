"""`sightline describe` as a user meets it: table, totals, JSON, drawing, plugins, absent data, models that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.config import read_config, render_config
from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, Field, SampleKey
from sightline.engine.run_loading import open_run
from sightline.runs.lineage import INPUTS_FILE, inputs_document
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.describe.sources import PlaceholderDataset, build_subject
from tests.command import run_here

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "classify"
SMALL = ("data.num_points=64", "data.train_size=48", "train.batch_size=8")

FAILING = '''
from typing import TypedDict
import torch
from torch import Tensor, nn
from sightline.contract import registry


class Output(TypedDict):
    logits: Tensor


@registry.models.add("failing_in_describe")
class Failing(nn.Module):
    """Its second layer expects another width."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_channels, 8), nn.Linear(9, num_classes))

    def forward(self, *, points: Tensor) -> Output:
        return {"logits": self.layers(points).amax(dim=1)}
'''


def test_everything_of_a_model(tmp_path: Path) -> None:
    svg, document = tmp_path / "made" / "net.svg", tmp_path / "net.json"
    code, out, err = run_here(
        "describe", CONFIGS / "synthetic_shapes_pointnet.yaml", *SMALL, "--svg", svg, "--json", document
    )
    assert code == 0, err
    found = json.loads(document.read_text())
    assert [row["path"] for row in found["modules"][:2]] == ["", "input_alignment"]
    assert found["modules"][0]["outputs"] == [[3, 12], [3, 64, 64]]
    assert found["modules"][0]["output_names"] == ["logits", "feature_transform"]
    assert set(found["modules"][0]) >= set("path class call inputs outputs parameters macs depth".split())
    assert found["parameters"] == found["trainable"] == sum(row["parameters"] for row in found["modules"])
    # a product that the batch shares is a fraction for each sample, so this is a sum of floats
    assert found["macs_per_sample"] == pytest.approx(sum(row["macs"] for row in found["modules"]), rel=1e-12)
    assert found["memory"]["batch_size"] == 8
    assert found["memory"]["peak_bytes"] > 4 * found["parameters"]
    assert "synthetic_shapes" in found["batch"]
    assert found["batch"] in err
    assert f"{found['parameters']:,}" in out
    assert svg.read_text().startswith("<svg")


def test_every_module_names_the_line_where_its_class_begins(tmp_path: Path) -> None:
    """Of the package, of torch and of a plugin: that line of the file is `class NAME`."""
    plugin, document = tmp_path / "mine.py", tmp_path / "net.json"
    plugin.write_text(FAILING.replace("failing_in_describe", "placed_in_describe").replace("Linear(9,", "Linear(8,"))
    words = ("model={name: placed_in_describe}", "losses=[{name: cross_entropy}]", *SMALL)
    code, out, err = run_here(
        "describe", CONFIGS / "synthetic_shapes_pointnet.yaml", *words, "--plugin", plugin, "--json", document
    )
    assert code == 0, err
    rows = json.loads(document.read_text())["modules"]
    assert {row["class"] for row in rows} == {"Failing", "Sequential", "Linear"}
    for row in rows:
        line = Path(row["file"]).read_text().splitlines()[row["line"] - 1]
        assert line.startswith((f"class {row['class']}(", "@registry.models.add"))  # where decorators begin
        place = plugin if row["class"] == "Failing" else Path(row["file"]).relative_to(Path(torch.__file__).parents[1])
        assert f"{place}:{row['line']}".replace("/", "")[:12] in out.replace("/", "")


def test_batch_size_and_depth(tmp_path: Path) -> None:
    config = CONFIGS / "synthetic_shapes_pointnet.yaml"
    peaks = []
    for size in ("8", "16"):
        code, out, err = run_here(
            "describe", config, *SMALL[:2], "--batch-size", size, "--depth", "1", "--json", tmp_path / "a.json"
        )
        assert code == 0, err
        assert "input_alignment" in out
        assert "input_alignment.encode" not in out
        assert f"a training step of {size} samples" in out
        peaks.append(json.loads((tmp_path / "a.json").read_text())["memory"])
    assert peaks[1]["saved_bytes"] == pytest.approx(2 * peaks[0]["saved_bytes"], rel=0.1)


def test_a_plugin_with_clouds_of_different_sizes(tmp_path: Path) -> None:
    plugins = [
        word for name in ("my_plugin", "my_transform") for word in ("--plugin", ROOT / "examples" / f"{name}.py")
    ]
    code, out, err = run_here(
        "describe",
        ROOT / "examples" / "my_plugin.yaml",
        *plugins,
        "--svg",
        tmp_path / "a.svg",
        "--json",
        tmp_path / "a",
    )
    assert code == 0, err
    assert "OffsetNet" in out
    assert "segment_reduce" in (tmp_path / "a.svg").read_text()
    assert json.loads((tmp_path / "a").read_text())["parameters"] == 3 * 32 + 32 + 32 * 32 + 32 + 32 * 3 + 3


def test_a_model_that_fails_is_one_line_with_the_module(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    config = tmp_path / "failing.yaml"
    text = (CONFIGS / "_classify.yaml").read_text() + (
        "data: {name: synthetic_shapes, num_points: 16}\nmodel: {name: failing_in_describe}\n"
        "losses: [{name: cross_entropy}]\noptimizer: {name: sgd, lr: 0.1}\ntrain: {epochs: 1, batch_size: 4}\n"
    )
    config.write_text(text)
    code, out, err = run_here("describe", config, "--plugin", tmp_path / "failing.py")
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith(
        "error: model 'failing_in_describe', 3 samples: the forward pass failed in layers.1 (Linear)"
    )
    assert "(3, 16, 8)" in last


def test_a_drawing_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    code, out, err = run_here("describe", "none.yaml", "--svg", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: --svg {tmp_path}: is a folder; give a file in it\n"


def test_without_its_data_a_set_keeps_its_promise(tmp_path: Path) -> None:
    words = [f"data.root={tmp_path / 'none'}", "data.num_points=32", "train.batch_size=4"]
    config = read_config(CONFIGS / "modelnet40_pointnet.yaml", words)
    state = torch.get_rng_state()
    subject = build_subject(open_run(CONFIGS / "modelnet40_pointnet.yaml", config=config))
    assert torch.equal(torch.get_rng_state(), state)
    assert subject.batch.startswith(
        "random samples as data set 'modelnet40' declares them, because the data is missing"
    )
    assert str(tmp_path / "none") in subject.batch
    job = subject.built.job
    batch = job.stream.reader([SampleKey(0, 0, 1), SampleKey(5, 0, 1)])
    assert batch["points"].shape == (2, 32, 3)
    assert batch["sample_index"].tolist() == [0, 5]
    assert subject.built.data.facts["num_classes"] == 40


def test_a_run_without_its_data_keeps_what_it_noted(tmp_path: Path) -> None:
    """Also where its set would promise something else: here the run was made with 4 channels of 7 classes."""
    info = DataInfo(
        {"num_classes": 7, "in_channels": 4, "class_names": tuple("abcdefg")},
        {
            "points": Field("points 3", "float32"),
            "channels": Field("points 1", "float32"),
            "label": Field("", "int64", low=0, high=6),
        },
        features=("channels",),
    )
    (tmp_path / INPUTS_FILE).write_text(json.dumps(inputs_document(info)))
    (tmp_path / "facts.json").write_text(json.dumps(info.facts))
    words = [f"data.root={tmp_path / 'none'}", "data.num_points=32", "data.normals=none", "train.batch_size=4"]
    config = read_config(CONFIGS / "modelnet40_pointnet.yaml", words)
    (tmp_path / "config.yaml").write_text(render_config(config, origins=False))
    subject = build_subject(open_run(tmp_path, config=config))
    assert f"as the run {tmp_path} declares them" in subject.batch
    assert subject.built.data.facts["in_channels"] == 4
    batch = subject.built.job.stream.reader([SampleKey(0, 0, 1)])
    assert batch["features"].shape == (1, 32, 1)


def test_a_set_that_promises_nothing_is_an_error(tmp_path: Path) -> None:
    config = read_config(CONFIGS / "synthetic_shapes_pointnet.yaml", ["data.num_points=32"])
    broken = read_config(CONFIGS / "modelnet40_pointnet.yaml", [f"data.root={tmp_path / 'none'}"])

    class Silent:
        """Stands in the registry for a set of files that are not there."""

        def __init__(self, **arguments: object) -> None:
            raise DataError(f"{arguments['root']}: there is nothing")

    entry = registry.data.entry(broken.data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.data._entries, "modelnet40", entry._replace(builder=Silent))
        with pytest.raises(DataError, match="there is nothing"):
            build_subject(open_run(CONFIGS / "modelnet40_pointnet.yaml", config=broken))
    subject = build_subject(open_run(CONFIGS / "synthetic_shapes_pointnet.yaml", config=config))
    assert subject.batch.startswith("the first samples of data set 'synthetic_shapes'")


def test_promised_samples_keep_shape_type_and_bounds() -> None:
    fields = {
        "points": Field("points 3", "float32", low=-1.0, high=1.0),
        "label": Field("", "int64", low=0, high=2),
        "map": Field("2 5", "float64"),
        "parts": Field("points", "int64", low=3, high=3, collate="concatenate"),
    }
    made = PlaceholderDataset(info=DataInfo({}, fields), lengths={"points": 50})
    samples: list[Any] = [made[SampleKey(index, 0, 7)] for index in range(40)]
    points = torch.stack([sample["points"] for sample in samples])
    assert points.shape == (40, 50, 3)
    # 6,000 uniform draws: the largest is within 0.01 of the bound but for odds of 0.995^6000, one in 10^13
    assert -1 <= points.min() < -0.99
    assert 0.99 < points.max() <= 1
    assert {int(sample["label"]) for sample in samples} == {0, 1, 2}
    assert samples[0]["map"].shape == (2, 5)
    assert samples[0]["map"].dtype == torch.float64
    assert torch.equal(points[3], made[SampleKey(3, 0, 7)]["points"])
    batch = BatchReader(made)([SampleKey(0, 0, 7), SampleKey(1, 0, 7)])
    assert batch["offsets"].tolist() == [0, 50, 100]


SCANS = ("data.train_size=8", "data.test_size=4", "data.num_columns=64", "model.width=2", "train.batch_size=2")
NARROW = ("transforms.train.2.width=32", "transforms.evaluate.0.width=32")


def test_range_images_and_their_ceiling_are_described(tmp_path: Path) -> None:
    """Two azimuths share a column: a half of the points is shown, and a perfect network misses some of the others."""
    config = ROOT / "configs/segment/synthetic_lidar_salsanext.yaml"
    words = (*SCANS, *NARROW, "--depth", "1", "--device", "cpu", "--json", tmp_path / "told.json")
    done = run_here("describe", config, *words)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "told.json").read_text())["projection"]
    assert found["image"] == [64, 32]
    assert 0.5 < found["points_shown"] < 0.6
    assert 0.5 < found["ceiling_nearest"] < 1
    assert f"{found['ceiling_nearest']:.4f} by lift: nearest" in done.out + done.err


def test_a_set_of_scans_that_is_not_there_is_promised() -> None:
    """SemanticKITTI's recipes are described before it is prepared, with the published shares for class weights."""
    path = ROOT / "configs/segment/semantic_kitti_squeezesegv2.yaml"
    config = read_config(
        path,
        ["data.root=nowhere", "transforms.train.2.width=64", "transforms.evaluate.0.width=64", "train.batch_size=2"],
    )
    subject = build_subject(open_run(path, config=config))
    assert subject.is_promised
    assert subject.built.data.facts["num_classes"] == 20
    weights = subject.built.job.task._terms["cross_entropy"].function.__self__.class_weights  # type: ignore[attr-defined]
    assert weights[1] == pytest.approx(1 / (0.042608 + 0.001), rel=1e-3)  # the car
