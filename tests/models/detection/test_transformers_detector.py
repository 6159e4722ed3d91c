"""Detectors of transformers: logits, boxes and losses are the library's own; boxes come back in pixels of the file."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from sightline.areas.detect.set_task import DetectSet
from sightline.areas.detect.transforms import FitImage
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig
from sightline.ops.boxes.overlaps import box_iou
from tests.cases import run_each
from tests.models.set_networks import SETTINGS, make_set_network

CLASSES = {"d_fine": transformers.DFineForObjectDetection, "rt_detr_v2": transformers.RTDetrV2ForObjectDetection}
LOSSES = {
    "set_class": "vfl",
    "set_l1": "bbox",
    "set_giou": "giou",
    "set_corners": "fgl",
    "set_distillation": "ddf",
}
HEIGHT, WIDTH = 64, 96


def make_batch() -> dict[str, Tensor]:
    """Two images, the second without a box; the last box of the first is ignored."""
    boxes = torch.tensor([[5.0, 5, 30, 40], [10, 10, 50, 50], [60, 0, 90, 60]])
    return {
        "image": torch.rand(3, 3, HEIGHT, WIDTH),
        "boxes": torch.cat([boxes, boxes[:1]]),
        "label": torch.tensor([0, 1, 1, 0]),
        "is_ignored": torch.tensor([False, False, True, False]),
        "box_offsets": torch.tensor([0, 3, 3, 4]),
    }


def theirs_of(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The library's labels of `make_batch`, worked out by hand: centre, width and height over 96 and 64 pixels."""
    first = [[17.5 / 96, 22.5 / 64, 25 / 96, 35 / 64], [30 / 96, 30 / 64, 40 / 96, 40 / 64]]
    boxes = [torch.tensor(first), torch.zeros(0, 4), torch.tensor(first[:1])]
    return [
        {"class_labels": torch.tensor(label, dtype=torch.int64), "boxes": of_image}
        for label, of_image in zip(([0, 1], [], [0]), boxes, strict=True)
    ]


def library_of(family: str, model: Any) -> Any:
    """The library's own class with the same sizes and weights, built by itself."""
    config = getattr(transformers, CLASSES[family].__name__.replace("ForObjectDetection", "Config"))
    network = CLASSES[family](config(**SETTINGS[family], num_labels=2))
    network.load_state_dict({name.removeprefix("network."): value for name, value in model.state_dict().items()})
    return network


def make_task(model: Any, names: tuple[str, ...], **arguments: Any) -> DetectSet:
    facts = {
        "model": model,
        "losses": {name: registry.losses.build(ComponentConfig(name), facts={}) for name in names},
        "batch_keys": AvailableKeys("data", {"image", "boxes", "label", "is_ignored", "box_offsets"}),
        "output_keys": AvailableKeys("model", model.output_keys),
    }
    return registry.tasks.build(ComponentConfig("detect_set", arguments), facts=facts)


class OneProcess:
    def all_reduce_sum(self, tensors: dict[str, Tensor], *, operation: str = "") -> dict[str, Tensor]:
        return tensors


@run_each("family, is_training", [(family, mode) for family in CLASSES for mode in (False, True)])
def test_logits_boxes_and_losses_are_those_of_the_library(family: str, is_training: bool) -> None:
    model = make_set_network(family, "car", "person").train(is_training)
    library, batch = library_of(family, model).train(is_training), make_batch()
    names = tuple(LOSSES) if family == "d_fine" else tuple(LOSSES)[:3]
    task = make_task(model, names)
    counts, [context] = task.prepare(model, [batch], OneProcess())
    torch.manual_seed(5)  # of the denoising queries
    outputs = task.outputs(model, batch)
    sums = task.losses_of(batch, outputs, context)
    torch.manual_seed(5)
    expected = library(pixel_values=batch["image"], labels=theirs_of(batch))
    queries = slice(-SETTINGS[family]["num_queries"], None)
    torch.testing.assert_close(outputs["logits"], expected.logits[:, queries], rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs["set_boxes"], expected.pred_boxes[:, queries], rtol=0, atol=1e-6)
    assert {int(count) for count in counts.values()} == {3}
    total = torch.tensor(0.0)
    for name in names:
        loss = sums[name] / counts[name]
        key = f"loss_{LOSSES[name]}"
        parts = [value for term, value in expected.loss_dict.items() if term.startswith(key)]
        torch.testing.assert_close(loss, sum(parts, torch.tensor(0.0)), rtol=1e-6, atol=1e-6)
        total = total + loss
    torch.testing.assert_close(total, expected.loss, rtol=1e-6, atol=1e-6)


@run_each("family", CLASSES)
def test_targets_are_drawn_as_the_loss_matches_them(family: str) -> None:
    """As the library's own matcher answers within its loss; a config, and a network that says nothing, draw labels."""
    model, batch = make_set_network(family, "car", "person").eval(), make_batch()
    noted: list[Any] = []
    match = RTDetrHungarianMatcher.forward
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(RTDetrHungarianMatcher, "forward", lambda *args: noted.append(match(*args)) or noted[-1])
        outputs = model(**batch)
    of_loss = noted[0]  # of the last layer
    fields = {name: batch[name] for name in ("image", "boxes", "label", "is_ignored", "box_offsets")}
    found = model.match_boxes(outputs, **fields)
    assert [[each.tolist() for each in pair] for pair in found] == [[e.tolist() for e in pair] for pair in of_loss]

    task = make_task(model, tuple(LOSSES)[:3])
    [picture], figures = task.show_targets(batch, is_trained=True)["assignment"]
    query, box = (each.tolist() for each in of_loss[0])
    assert sorted(box) == [0, 1]
    centred = outputs["set_boxes"][0, query] * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    corners = torch.cat([centred[:, :2] - centred[:, 2:] / 2, centred[:, :2] + centred[:, 2:] / 2], dim=1)
    overlaps = [float(box_iou(corners[i, None], batch["boxes"][b, None])) for i, b in enumerate(box)]
    assert figures["matching"] == {"num_boxes": 2, "num_queries": 20, "iou": pytest.approx(overlaps, abs=1e-6)}
    assert picture.caption.startswith("all boxes assigned; one of 20 predictions each, IoU ")
    [picture], figures = task.show_targets(batch)["assignment"]
    assert picture.caption.startswith("labels alone, no weights; ")
    assert figures == {}
    with pytest.MonkeyPatch.context() as patched:
        patched.delattr(type(model), "match_boxes")
        [picture], _ = task.show_targets(batch, is_trained=True)["assignment"]
    assert picture.caption.endswith("has no method match_boxes to ask")


@run_each("family", CLASSES)
def test_every_weight_gets_a_gradient_and_a_prediction_knows_no_box(family: str) -> None:
    model, batch = make_set_network(family, "car", "person"), make_batch()
    outputs = model.train()(**batch)
    sum(value.sum() for value in outputs.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        labelled, alone = model.eval()(**batch), model(image=batch["image"])
    assert all(torch.equal(alone[name], labelled[name]) for name in ("logits", "set_boxes"))
    assert set(labelled) == model.output_keys


@run_each("family", CLASSES)
def test_float64_computes_the_same_terms_with_a_smaller_error(family: str) -> None:
    model, batch = make_set_network(family, "car", "person").train(), make_batch()
    precise = copy.deepcopy(model).double()
    torch.manual_seed(5)
    outputs = model(**batch)
    torch.manual_seed(5)
    wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    exact = precise(**wide)
    assert {value.dtype for value in exact.values()} == {torch.float64}
    torch.manual_seed(5)
    rounded = round_to_float32(copy.deepcopy(precise))(**wide)
    for name, value in exact.items():
        own_error = (rounded[name] - value).abs().max()  # of roundings drawn once: the largest is some times as large
        bound = 8 * own_error + 1e-6 * value.abs().max()
        assert (outputs[name].double() - value).abs().max() <= bound, name
        assert bound <= 1e-3 * value.abs().max(), name
    sum(value.sum() for value in exact.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in precise.parameters())


def round_to_float32(model: nn.Module) -> nn.Module:
    """Change each weight of a float64 network, and what each layer returns, as rounding to float32 would."""
    draw = torch.Generator().manual_seed(1)

    def disturb(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            share = torch.rand(value.shape, generator=draw, dtype=torch.float64) * 2 - 1
            return value * (1 + 2.0**-24 * share)
        return value

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(disturb(parameter))
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, found: disturb(found))
    return model


def test_boxes_come_back_in_pixels_of_the_file_as_the_library_states_them() -> None:
    """An image of 100 x 300 pixels on a canvas of 64 x 96 is scaled by 0.32, and fills 32 of its rows."""
    model = make_set_network("d_fine", "car", "person").eval()
    task = make_task(model, ("set_class",), score=0.0, most=12, clip=False)
    pixels = torch.rand(1, 100, 300, 3) * 255
    fit = FitImage(height=HEIGHT, width=WIDTH)
    fitted = fit(
        Draws.from_seed(0), image=pixels, boxes=torch.zeros(1, 0, 4), to_canvas=torch.eye(3).double()[None, :2]
    )
    image = fitted["image"].permute(0, 3, 1, 2) / 255
    batch = {"image": image, "to_canvas": fitted["to_canvas"], "file_px": torch.tensor([[100, 300]])}
    outputs = {"logits": torch.randn(1, 20, 2), "set_boxes": torch.rand(1, 20, 4)}
    found = task.postprocess(outputs, batch)
    predicted = SimpleNamespace(logits=outputs["logits"], pred_boxes=outputs["set_boxes"])
    [expected] = RTDetrImageProcessorPil().post_process_object_detection(
        predicted, threshold=0.0, target_sizes=[(HEIGHT / 0.32, WIDTH / 0.32)]
    )
    detections = found["detections"]
    assert found["detection_offsets"].tolist() == [0, 12]
    torch.testing.assert_close(detections[:, 4].float(), expected["scores"][:12], rtol=1e-6, atol=1e-7)
    assert detections[:, 5].tolist() == expected["labels"][:12].tolist()
    torch.testing.assert_close(detections[:, :4].float(), expected["boxes"][:12], rtol=1e-5, atol=1e-4)


def test_a_score_that_is_no_number_is_detected() -> None:
    model = make_set_network("d_fine", "car", "person")
    task = make_task(model, ("set_class",), most=3, score=0.5)
    logits = torch.full((1, 4, 2), -9.0)
    logits[0, 2, 1] = torch.nan
    outputs = {"logits": logits, "set_boxes": torch.full((1, 4, 4), 0.5)}
    maps = {"to_canvas": torch.eye(3).double()[None, :2], "file_px": torch.tensor([[8, 8]])}
    rows = task.postprocess(outputs, {"image": torch.zeros(1, 3, 8, 8), **maps})["detections"]
    assert len(rows) == 1
    assert rows[0, 4].isnan()
    assert rows[0, 5] == 1


REFUSALS = [
    ({"num_labels": 3}, "network: num_labels follows from the data"),
    ({"d_modell": 3}, "network: DFineConfig has no value 'd_modell'; did you mean 'd_model'"),
    ({"name": "detr"}, "network: found the name 'detr', allowed are d_fine and rt_detr_v2"),
    ({"backbone_config": {"model_type": "hgnet_v2", "embeding_size": 8}}, "has no value 'embeding_size'; did you mean"),
    ({"backbone_config": {"model_type": "nothing"}}, "network: transformers refuses it"),
]


@run_each("settings, told", REFUSALS)
def test_settings_that_the_library_lacks_are_one_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        make_set_network("d_fine", "car", **settings)
    assert "\n" not in str(raised.value)


def test_another_canvas_or_model_is_refused() -> None:
    model = make_set_network("d_fine", "car")
    with pytest.raises(ValueError, match="found 64 x 40 pixels, transformers_detector takes multiples of 32"):
        model(image=torch.rand(1, 3, 64, 40))
    with pytest.raises(ValueError, match="32 x 32 pixels have 21 positions of queries, fewer than the 22 queries"):
        make_set_network("d_fine", "car", num_queries=22)(image=torch.rand(1, 3, 32, 32))
    model.output_keys = frozenset({"logits", "codes"})
    with pytest.raises(ConfigError, match="detect_set needs a model that returns set_boxes, such as transformers_dete"):
        make_task(model, ())
