"""Point-BERT for parts: the published size, the authors' numbers, and what it shares with the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.losses.classification import CrossEntropy
from sightline.models.point_bert import PointBERT, PointBERTParts
from sightline.published.translation import convert_state_dict, translate_key
from sightline.runs.weights import load_weights
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    cloud_inputs,
    each_mode,
    load_golden,
    stored_part,
)

LAYOUT = "lulutang0608_point_bert_parts"
TAPS = {
    "block 3": "trunk.blocks.3",
    "propagation_2 last bn": "propagations.2.layers.1.norm",
    "dgcnn_pro_2 (B,384,256)": "edges.1",
    "dgcnn_pro_1 (B,384,512)": "edges.0",
    "propagation_0 last bn": "propagations.0.layers.1.norm",
}


def test_size_is_the_published_one() -> None:
    with torch.device("meta"):
        model = PointBERTParts(num_classes=50, in_channels=3, num_categories=16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 27_085_874


@pytest.mark.shared
def test_agrees_with_the_reference(shared: Path) -> None:
    golden = load_golden(shared, "pointbert_partseg")
    model = PointBERTParts(num_classes=50, in_channels=3, num_categories=16, min_squared_norm=1e-3).double()
    model.load_state_dict(convert_state_dict(golden.state(), LAYOUT))
    loss = CrossEntropy(num_classes=50)
    given, label = cloud_inputs(golden), golden.tensor("in.label")
    seen: dict[str, Tensor] = {}

    def keep(tapped: str, value: Tensor) -> None:
        seen.setdefault(tapped, value)

    for tapped, place in TAPS.items():
        hook = lambda module, given, value, tapped=tapped: keep(tapped, value)  # noqa: E731
        model.get_submodule(place).register_forward_hook(hook)
    depths: list[Tensor] = []
    model.trunk.norm.register_forward_hook(lambda module, given, value: depths.append(value))
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**given)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        outputs = {"logp": logits.log_softmax(dim=-1), "group_features": depths[-1][:, 1:].mT.contiguous()}
        assert_outputs(golden, mode, outputs, mean_loss)
        if mode == "eval":
            for tapped in TAPS:
                mid = f"eval.mid.{tapped}"
                shape = golden.info["eval_mids"][mid]["shape"]
                value = seen[tapped]
                value = value if tapped == "block 3" else value.reshape(shape[0], shape[2], shape[1]).mT.contiguous()
                assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)
    assert {f"eval.mid.{tapped}" for tapped in TAPS} == golden.info["eval_mids"].keys()
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, LAYOUT))


def test_what_was_pretrained_for_classes_fits_by_name() -> None:
    """`init.from` a run of point_bert fills embed and trunk; propagations, edges and head are the model's own."""
    parts = PointBERTParts(num_classes=5, in_channels=3, num_categories=2, width=12)
    classes = PointBERT(num_classes=4, in_channels=3, width=12).state_dict()
    report = load_weights(parts, classes, may_be_missing=("propagations", "edges", "head"))
    given = {name for name in classes if not name.startswith("head.")}
    assert report.matched == len(given) == 160
    assert all(torch.equal(parts.state_dict()[name], classes[name]) for name in given)


def test_too_few_points_are_refused_with_the_argument() -> None:
    model = PointBERTParts(num_classes=5, in_channels=3, num_categories=2, width=12, num_groups=8, num_centres=(64, 16))
    with pytest.raises(ValueError, match=r"clouds of 40 points, of which 64 are to be chosen .* lower num_centres"):
        model(points=torch.randn(1, 40, 3), category=torch.tensor([1]))
