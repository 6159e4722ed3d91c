"""Detectors with a level of stride 4: shapes, priors, small boxes, a loss that falls, and the exported network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline.areas.detect.networks import strides_from
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step
from sightline.workbench.export.checking import check_file
from sightline.workbench.export.formats import load_written, write_onnx
from sightline.workbench.export.graph import GraphNetwork
from sightline.workbench.export.recorded_graph import record_graph
from tests.processes import ROOT

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "darknet53", "cspdarknet")
DETECTORS = {
    "retinanet": ("model.neck.width=8",),
    "fcos": ("model.neck.width=32",),
    "fcos_atss": ("model.neck.width=32", "task.assigner.name=atss"),
    "yolov3": ("model.neck.width=8",),
    "yolox": ("model.backbone.width=4",),
}
SIZE = (75, 109)


def setup(name: str, *words: str, finest_stride: int = 4) -> TrainingSetup:
    """The recipe on drawn crowds, narrow, with a level of stride 4, on a canvas of odd sides."""
    canvas = [f"transforms.{part}.{side}" for part in ("train.1", "evaluate.0") for side in ("height=75", "width=109")]
    small = ("data.train_size=4", "data.test_size=2", "train.precision=float32", "model.channels_last=false")
    narrow = () if name == "yolox" else ("model.backbone.width=8",)
    path = ROOT / f"configs/detect/synthetic_crowds_{name.removesuffix('_atss')}.yaml"
    words = (f"model.backbone.finest_stride={finest_stride}", *DETECTORS[name], *narrow, *small, *canvas, *words)
    torch.manual_seed(0)
    return build(read_config(path, words), World())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_its_finest_map_beside_the_same_others(name: str) -> None:
    usual, fine = (
        registry.backbones.build(ComponentConfig(name, {"width": 4, "finest_stride": stride}), facts={}).eval()
        for stride in (8, 4)
    )
    fine.load_state_dict(usual.state_dict())
    image = torch.randn(1, 3, *SIZE)
    maps = fine(image)
    assert fine.strides == strides_from(4) == (4, *usual.strides)
    assert fine.channels == (maps[0].shape[1], *usual.channels)
    assert [tuple(values.shape[2:]) for values in maps] == [tuple(-(-side // s) for side in SIZE) for s in fine.strides]
    assert all(torch.equal(one, other) for one, other in zip(maps[1:], usual(image), strict=True))


@pytest.mark.parametrize("name", DETECTORS)
def test_priors_follow_and_a_step_lowers_the_loss(name: str) -> None:
    made = setup(name)
    job, num_coarser = made.job, 0 if name.startswith("yolo") else 2
    batch = made.data.train.reader([SampleKey(index, 0, 0) for index in range(4)])
    model = job.model.train()
    step = prepare_step(job.task, model, [batch], World())
    loss, later = [], []
    for losses in (loss, later):
        losses.append(torch.stack([*step.loss_means(step.loss_sums(model)).values()]).sum())
        if losses is loss:
            loss[0].backward()
            slopes = {each: each.grad for each in model.parameters() if each.grad is not None}
            rate = 0.01 * loss[0].detach() / sum(float(slope.square().sum()) for slope in slopes.values())
            with torch.no_grad():  # by a hundredth, were the loss linear
                [each.sub_(rate * slope) for each, slope in slopes.items()]
    assert 0.98 * loss[0] < later[0] < loss[0]
    priors = job.task.get_priors(batch["image"])
    assert priors.strides == tuple(4 * 2**level for level in range(4 + num_coarser))
    assert priors.maps == tuple((-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in priors.strides)
    with torch.no_grad():
        found = job.task.postprocess(job.task.outputs(model.eval(), batch), batch)
    assert found["detections"].shape[1] == 6


@pytest.mark.parametrize(("name", "is_fine_alone"), [("retinanet", 1), ("fcos", 1), ("fcos_atss", 0), ("yolov3", 1)])
def test_a_small_box_is_assigned_at_stride_4(name: str, is_fine_alone: int) -> None:
    """Of 5 x 12 pixels; by ATSS on every level, as its paper has it."""
    box = {
        "boxes": torch.tensor([[39.5, 32, 44.5, 44]]),
        "label": torch.tensor([0]),
        "is_ignored": torch.tensor([False]),
    }
    job = setup(name).job
    image = torch.zeros(1, 3, *SIZE)
    target = job.task.context(job.model, {"image": image, **box, "box_offsets": torch.tensor([0, 1])})["target"][0]
    levels = job.task.get_priors(image).prior_level[target >= 0]
    assert (levels == 0).any()
    assert not is_fine_alone or (levels == 0).all()


@pytest.mark.parametrize(
    "name", ["fcos", *(pytest.param(name, marks=pytest.mark.long) for name in ("retinanet", "yolox"))]
)
def test_the_exported_network_agrees(name: str) -> None:
    job = setup(name, "model.head.num_convs=1").job
    batch: dict[str, Any] = {"image": torch.randn(3, 3, *SIZE)}
    network = GraphNetwork(job.model.eval(), job.task, batch).eval()
    inputs = network.arrange(batch)
    with torch.no_grad():
        outputs = tuple(network(*inputs[0]))
    content = write_onnx(record_graph(network, inputs[0]), outputs, suppression=None)
    check = check_file(load_written(content, outputs), network, inputs, is_batch_free=True, source="")
    assert check.is_equal, check.describe()


@pytest.mark.parametrize(
    ("name", "words", "finest_stride", "says"),
    [
        (
            "retinanet",
            "model.neck.levels=[3, 4, 5]",
            4,
            r"levels: found \[3, 4, 5\]; on a backbone of strides \(4, 8, 1.* model\.backbone\.finest_stride=8$",
        ),
        (
            "retinanet",
            "model.neck.levels=[2, 3, 4, 5]",
            8,
            r"give \[3, 4, 5\] .*, or, from 2 on, model\.backbone\.finest_stride=4$",
        ),
        ("retinanet", "model.neck.levels=[1, 3]", 8, r"or \[3, 4, 5, 6, 7\]$"),
        ("retinanet", "model.neck.levels=[3, 4, 5]", 2, "finest_stride: found 2, allowed is one of 4, 8"),
        ("yolov3", "task.anchors={sizes: [[[8, 8]], [[16, 16]], [[32, 32]]]}", 4, "sizes take as many .* the 4 levels"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, words: str, finest_stride: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        setup(name, words, finest_stride=finest_stride)
