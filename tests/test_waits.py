"""Waits of the host for a device in a training step: counted for every shipped recipe, and none changes a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.ops import numba_kernels
from sightline.ops.boxes.focal import masked_lovasz_of_image
from sightline.ops.waits import (
    call_on_host,
    deferred_checks,
    find_positive,
    read_list,
    require,
    send,
    send_list,
)
from tests.marks import long_but
from tests.processes import ROOT
from tests.recipe_steps import RECIPES, SmallStep
from tests.waits import counted_waits, device_form

MAX_WAITS = 2
CPU = torch.device("cpu")
DAILY = [
    "boxes3d/synthetic_streets_pointpillars",
    *("classify/cloud_folder_pointnet", "classify/modelnet40_dgcnn", "classify/modelnet40_pct_from_crosspoint_cpu"),
    *("classify/modelnet40_point_bert", "classify/modelnet40_point_transformer", "classify/synthetic_shapes_pointnet2"),
    *("contrast/synthetic_shapes_crosspoint", "contrast/synthetic_shapes_intrapoint_parts"),
    *("detect/coco_retinanet", "detect/crowdhuman_fcos_atss", "detect/crowdhuman_retinanet_emd"),
    *("detect/crowdhuman_retinanet_freeanchor", "detect/synthetic_crowds_fcos", "detect/synthetic_crowds_retinanet"),
    *("detect/synthetic_crowds_yolov3", "detect/synthetic_crowds_yolox", "pose/synthetic_hands_scale_net"),
    *("pose/synthetic_hands_v2v_small", "segment/s3dis_dgcnn", "segment/shapenet_part_pct"),
    *("segment/shapenet_part_point_bert", "segment/shapenet_part_pointnet", "segment/shapenet_part_pointnet2"),
    *("segment/squeezeseg_npy_squeezeseg", "segment/synthetic_lidar_salsanext"),
    *("segment/synthetic_lidar_minkunet", "segment/synthetic_rooms_point_transformer", "segment/synthetic_rooms_ptv3"),
    *("segment/synthetic_rooms_spunet", "segment/synthetic_shapes_point_transformer_dense"),
]
"""One recipe of each network, assigner and loss; the others differ in data and sizes."""


@pytest.mark.parametrize("recipe", long_but(DAILY, RECIPES))
def test_a_step_waits_as_often_as_the_table_says(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step: the first also sends what stays on the device, such as the anchors."""
    step = SmallStep(recipe, tmp_path)
    with device_form(monkeypatch):
        step.run()
    with counted_waits(monkeypatch) as waits:
        step.run()
    assert sum(waits.values()) == table()[recipe], waits
    assert sum(waits.values()) <= MAX_WAITS


def test_norms_of_the_layers_come_with_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`log.gradients` costs no wait of its own, before the next batch is read."""
    step = SmallStep("classify/cloud_folder_pointnet", tmp_path, "log.gradients=true")
    with counted_waits(monkeypatch) as waits:
        totals = step.run()
    assert totals.gradient_norms
    assert sum(waits.values()) == 1, waits


def table() -> dict[str, int]:
    """The table of docs/inside/gpu_counts.md: a row for each number, with the recipes that have it."""
    text = (ROOT / "docs" / "inside" / "gpu_counts.md").read_text()
    rows = re.findall(r"^\| (\d) \| \d[\d to]* \| (.*) \|$", text, flags=re.MULTILINE)
    waits = {recipe: int(number) for number, recipes in rows for recipe in re.findall(r"`([a-z_0-9]+/\w+)`", recipes)}
    return {recipe: waits.get(recipe, 1) for recipe in RECIPES}


OTHER_BAGS = "detect/crowdhuman_retinanet_freeanchor"
"""Anchors that overlap a box equally are chosen among another number of anchors, so others of them are."""
SAME_BITS = [recipe for recipe in RECIPES if recipe != OTHER_BAGS]


@pytest.mark.parametrize("recipe", long_but([recipe for recipe in DAILY if recipe != OTHER_BAGS], SAME_BITS))
def test_the_form_of_a_device_gives_the_same_numbers(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    words = ("train.precision=float64", *["model.drop_path=0"] * ("ptv3" in recipe))  # of filled-up rows other draws
    plain, waiting = (SmallStep(recipe, tmp_path, *words) for _ in range(2))
    torch.manual_seed(1)
    expected = plain.run()
    torch.manual_seed(1)
    with device_form(monkeypatch):
        totals = waiting.run()
    assert totals.counts == expected.counts
    assert totals.losses == pytest.approx(expected.losses, rel=1e-12)
    for (name, ours), theirs in zip(waiting.numbers().items(), plain.numbers().values(), strict=True):
        # The gradient of a bias before a norm is 0 but for rounding, which Adam divides by itself.
        rounding = 1e-8 if re.search(r"pools\.\d.*linear\.bias", name) else 1e-12
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=rounding), name


# --- checks and rare cases -------------------------------------------------------------------------------------------


def test_a_check_of_the_step_has_the_words_of_the_check_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that is not a number: the same error, and no weight has changed."""
    step = SmallStep("classify/modelnet40_dgcnn", tmp_path)
    step.micro_batches[0]["points"][1, 5, 0] = np.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 5 is \[nan") as at_once:
        step.run()
    before = {name: tensor.clone() for name, tensor in step.job.model.named_parameters()}
    with device_form(monkeypatch), pytest.raises(ValueError, match="point 5") as at_the_end:
        step.run()
    assert str(at_the_end.value) == str(at_once.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.job.model.named_parameters())


def test_checks_are_immediate_outside_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    no = torch.tensor([True, False])
    with device_form(monkeypatch):
        with pytest.raises(KeyError):
            require(no, KeyError)
        with deferred_checks() as checks:
            require(no, KeyError)
        assert [(bool(check.holds), check.make_error) for check in checks] == [(False, KeyError)]
    with deferred_checks() as checks, pytest.raises(KeyError):
        require(no, KeyError)
    assert not checks


# --- what the host knows ----------------------------------------------------------------------------------------------


def test_the_host_knows_what_it_sent_until_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_waits(monkeypatch) as waits:
        offsets = send_list([0, 3, 7], CPU)
        assert read_list(offsets) == [0, 3, 7]
        offsets += 1
        assert read_list(offsets) == [1, 4, 8]
        assert read_list(send(torch.tensor([0.5]), CPU)) == [0.5]
    assert waits == {"tolist": 2}


def test_what_is_on_the_device_already_is_not_read() -> None:
    """A tensor of the device `meta` cannot be."""
    sent = send(torch.empty(3, dtype=torch.int64, device="meta"), torch.device("meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        read_list(sent)


@pytest.mark.parametrize(("origin", "target", "is_free"), [("cpu", "cpu", True), ("cuda", "cpu", False)])
def test_the_host_waits_for_what_it_is_sent(origin: str, target: str, is_free: bool) -> None:
    """Values that a device still copies cannot be read, and the host does not learn when they can."""
    sent = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            sent.append((function, kwargs or {}))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode():  # which has devices that the machine lacks
        values = torch.ones(3, device=origin)
        with Recorder():
            send(values, torch.device(target), torch.float64)
    copies = [kwargs for function, kwargs in sent if function is torch.ops.aten._to_copy.default]
    assert [kwargs.get("non_blocking", False) for kwargs in copies] == [is_free]


def test_a_call_on_the_host_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of all widths come and go in one transfer, nested."""
    given = {"a": torch.arange(3, dtype=torch.int16), "b": [torch.tensor(2.5, dtype=torch.float64), torch.ones(2, 0)]}
    flag = torch.tensor([True, False, True])

    def swap(tree: dict[str, object], mask: torch.Tensor) -> tuple[object, ...]:
        return mask.nonzero().flatten().tolist(), tree["b"], tree["a"] + 1  # type: ignore[operator]

    with counted_waits(monkeypatch) as waits:
        rows, (number, empty), other = call_on_host(swap, given, flag, device=CPU)
    assert sum(waits.values()) == 1
    assert rows == [0, 2]
    assert (number.dtype, number.item(), empty.shape) == (torch.float64, 2.5, (2, 0))
    assert other.dtype == torch.int16
    assert other.tolist() == [1, 2, 3]


def test_positive_entries_are_found_once_for_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.tensor([[-1, 4], [0, -2]])
    with counted_waits(monkeypatch) as waits:
        first = [index.clone() for index in find_positive(target)]
        again = find_positive(target)
        target[0, 0] = 3
        changed = find_positive(target)
    assert [index.tolist() for index in first] == [[0, 1], [1, 0]]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert [index.tolist() for index in changed] == [[0, 0, 1], [0, 1, 0]]
    assert waits == {"aten::nonzero": 2}


def test_lovasz_of_an_image_without_a_pixel_that_counts_is_zero() -> None:
    """Of others it is that of the pixels that count: tests/losses/test_functions.py."""
    logits = torch.randn(60, 5, requires_grad=True)
    label, is_counted = torch.zeros(60, dtype=torch.int64), torch.zeros(60, dtype=torch.bool)
    loss = masked_lovasz_of_image(logits.softmax(dim=1), label, is_counted)
    loss.backward()
    assert logits.grad is not None
    assert (loss.item(), float(logits.grad.abs().max())) == (0, 0)
