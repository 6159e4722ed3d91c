"""Suppression: definitions and published code, both forms, classes, ties, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sightline.areas.detect.output import Adaptive, GreedyNMS, SetSuppression, SoftGaussian, SoftLinear, Suppression
from sightline.contract import registry
from sightline.ops import numba_kernels
from sightline.ops.boxes.overlaps import box_iou
from sightline.ops.boxes.suppression import SuppressionResult, batched_nms, nms, soft_nms
from sightline.workbench.export.recorded_graph import quiet
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.marks import long_but
from tests.ops.boxes.crowds import crowd

ALL = {"greedy": GreedyNMS, "soft_linear": SoftLinear, "soft_gaussian": SoftGaussian}


def detections(seed: int, *, count: int = 60, has_ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return crowd(seed, count=count), (scores * 10).round() / 10 if has_ties else scores, labels


def soft_linear_in_a_loop(boxes: Tensor, scores: Tensor, threshold: float, *, sorts_again: bool) -> list[int]:
    """Boxes in the order in which they are kept: each lowers the scores of those left that it overlaps by much.

    Those below 0.05 by then are dropped, of all but the first. Source: Bodla et al. 2017, eq. 3.
    """
    values, order = scores.tolist(), sorted(range(len(scores)), key=lambda place: -scores[place].item())
    kept: list[int] = []
    while order:
        if sorts_again:
            order.sort(key=lambda place: -values[place])
        first = order.pop(0)
        if kept and values[first] < 0.05:
            continue
        kept.append(first)
        for other in order:
            overlap = box_iou(boxes[first][None], boxes[other][None]).item()
            if overlap > threshold:
                values[other] *= 1 - overlap
    return kept


def both_forms(function: Any, *arguments: Any, **named: Any) -> tuple[Any, Any]:
    """What a function gives with kernels, and without numba."""
    found = function(*arguments, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_kernels, "_has_numba", lambda: False)
        return found, function(*arguments, **named)


def worked(suppression: Suppression, **more: Tensor) -> SuppressionResult:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [4, 0, 14, 10], [20, 0, 30, 10]])
    return suppression(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64), **more)


def test_a_box_at_the_limit_is_weakened() -> None:
    """Linear decay starts at the limit itself (Bodla et al. 2017, eq. 3): the IoU here is 1/2 exactly."""
    boxes, labels = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]]), torch.zeros(2, dtype=torch.int64)
    for limit, second in ((0.5, 0.4), (0.51, 0.8)):
        for found in both_forms(soft_nms, boxes, torch.tensor([0.9, 0.8]), labels, iou_threshold=limit):
            assert found.scores.tolist() == pytest.approx([0.9, second]), limit


def test_numbers_worked_by_hand() -> None:
    assert worked(GreedyNMS()).indices.tolist() == [0, 2, 3]
    linear = worked(SoftLinear())
    assert linear.indices.tolist() == [0, 3, 2, 1], "sorted once, 2 would come before 3"
    assert linear.scores.tolist() == pytest.approx([0.9, 0.6, 0.4, 0.067133], abs=1e-6)
    gaussian = worked(SoftGaussian())
    assert gaussian.indices.tolist() == [0, 3, 2, 1]
    assert gaussian.scores.tolist() == pytest.approx([0.9, 0.6, 0.484799, 0.117435], abs=1e-6)
    assert worked(SetSuppression(iou_threshold=0.4), proposal=torch.tensor([0, 0, 1, 2])).indices.tolist() == [0, 1, 3]
    density = torch.tensor([0.85, 0.1, 0.1, 0])
    assert worked(Adaptive(), density=density).indices.tolist() == [0, 1, 3]
    soft = worked(Adaptive(soft=True), density=density)
    assert soft.indices.tolist() == [0, 1, 3, 2]
    assert soft.scores.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.7 * (1 - 0.538462)], abs=1e-6)


@pytest.mark.parametrize("case", range(24))
def test_kept_boxes_are_the_published_ones(shared: Path, case: int) -> None:
    golden = load_golden(shared, "nms", area="detect")
    prefix = f"case{case:02d}/"
    stored = {key.removeprefix(prefix): golden.tensor(key) for key in golden.arrays if key.startswith(prefix)}
    boxes, scores, classes = stored["boxes"], stored["scores"], stored["classes"]
    threshold = float(stored["threshold"])
    found = GreedyNMS(iou_threshold=threshold, per_class=False)(boxes, scores, classes).indices
    assert torch.equal(found, stored["own_greedy"])
    per_class = GreedyNMS(iou_threshold=threshold)(boxes, scores, classes).indices
    assert torch.equal(per_class, stored["own_greedy_per_class"])
    adaptive = Adaptive(iou_threshold=threshold, per_class=False)(boxes, scores, classes, density=stored["density"])
    assert torch.equal(adaptive.indices, stored["own_adaptive"])
    if len(boxes) and len(scores.unique()) == len(scores):
        form = SetSuppression(iou_threshold=threshold, per_class=False)
        kept = form(boxes, scores, classes, proposal=stored["proposal"]).indices
        assert torch.equal(kept.sort().values, stored["crowddet_set_nms_mask"].nonzero().flatten())
    for name, form in (("linear", SoftLinear(per_class=False)), ("gauss", SoftGaussian(per_class=False))):
        kept = form(boxes, scores, classes)
        assert torch.equal(kept.indices, stored[f"own_soft_{name}_keep"])
        assert (kept.scores - stored[f"own_soft_{name}_scores"]).abs().le(1e-12).all()
    if len(boxes) and len(scores.unique()) == len(scores):  # their sorts are not stable
        assert torch.equal(found, stored["crowddet_cpu_nms"])
        is_first = torch.arange(len(found)) == 0  # the later code of S3 wants a score of 0.05 of all but the best
        assert torch.equal(found[is_first | (scores[found] >= 0.05)], stored["s3later_nms_keep"])
        soft = SoftLinear(iou_threshold=threshold, min_score=0.05, per_class=False)(boxes, scores, classes)
        again, once = (soft_linear_in_a_loop(boxes, scores, threshold, sorts_again=sorts) for sorts in (True, False))
        assert soft.indices.tolist() == again
        assert stored["s3later_soft_keep"].tolist() == once, "the later code of S3 does not look at changed scores"


def suppress_in_a_loop(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> list[int]:
    """The definition in plain numbers: by falling score and rising index, kept where no kept one is in the way."""
    kept: list[int] = []
    numbers = boxes.double().tolist()

    def overlap(one: list[float], other: list[float]) -> float:
        sides = [max(0.0, min(one[2 + k], other[2 + k]) - max(one[k], other[k])) for k in (0, 1)]
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
        return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])

    for place in sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place)):
        rivals = [other for other in kept if idxs[other] == idxs[place]]
        if all(overlap(numbers[place], numbers[other]) <= threshold for other in rivals):
            kept.append(place)
    return kept


@pytest.mark.parametrize("has_ties", [False, True])
def test_kept_boxes_are_those_of_the_definition(has_ties: bool) -> None:
    for seed in range(4):
        boxes, scores, idxs = detections(seed, has_ties=has_ties)
        for threshold in (0.3, 0.5, 0.7):
            assert batched_nms(boxes, scores, idxs, threshold).tolist() == suppress_in_a_loop(
                boxes, scores, idxs, threshold
            )
            alone = suppress_in_a_loop(boxes, scores, torch.zeros_like(idxs), threshold)
            assert nms(boxes, scores, threshold).tolist() == alone
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
    assert nms(boxes.requires_grad_(), scores, 0.7).tolist() == alone


def test_suppression_compiles_whole_and_is_recorded() -> None:
    """The number of kept boxes is the graph's own: it runs for others, too."""
    boxes, scores, idxs = detections(3, count=20)
    for function in (
        lambda *given: batched_nms(*given, 0.5),
        lambda *given: soft_nms(*given, min_score=0.3).indices,
        lambda boxes, scores, idxs: soft_nms(boxes, scores, min_score=0.0).indices,  # equal boxes have a factor of 0
        lambda *given: soft_nms(*given, sigma=0.4, min_score=0.3).scores,
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)

        class Suppressing(torch.nn.Module):
            def forward(self, boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
                return function(boxes, scores, idxs)  # noqa: B023 - called in this turn

        program = torch.export.export(Suppressing(), (boxes, scores, idxs))
        assert "sightline" not in str(program.graph)
        for seed in (3, 4):
            given = detections(seed, count=20)
            assert torch.equal(compiled(*given), function(*given))
            torch.testing.assert_close(program.module()(*given), function(*given), rtol=1e-12, atol=0)


FORMS: dict[str, Callable[..., Tensor]] = {
    "greedy": lambda boxes, scores, idxs: batched_nms(boxes, scores, idxs, 0.3),
    "linear": lambda boxes, scores, idxs: soft_nms(boxes, scores, idxs, min_score=0.3).indices,
    "Gaussian": lambda boxes, scores, idxs: soft_nms(boxes, scores, idxs, sigma=0.5).scores,
}


@pytest.mark.parametrize("name", long_but(["greedy"], FORMS))
def test_onnxruntime_keeps_the_same_boxes_of_any_number(name: str) -> None:
    """With ties, and a number of boxes that is free: the loop ends by values."""
    runtime, _ = pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")

    class Suppressing(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
            return FORMS[name](boxes, scores, idxs)

    names, free = ["boxes", "scores", "idxs"], {0: torch.export.Dim.DYNAMIC}
    with quiet():
        program = torch.export.export(Suppressing(), singles(5), dynamic_shapes=(free,) * 3, strict=False)
        made = torch.onnx.export(program, dynamo=True, input_names=names, verbose=False, optimize=False)
    assert made is not None
    session = runtime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for seed, count in ((6, 40), (7, 7), (8, 1), (9, 0)):
        given = tuple(value[:count] for value in singles(seed))
        [found] = session.run(None, {key: value.numpy() for key, value in zip(names, given, strict=True)})
        torch.testing.assert_close(torch.from_numpy(found), FORMS[name](*given), rtol=1e-6, atol=0)


def singles(seed: int) -> tuple[Tensor, ...]:
    boxes, scores, idxs = detections(seed, has_ties=True)
    return boxes.float(), scores.float(), idxs


@pytest.mark.filterwarnings("ignore:`torch.jit.trace`:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_without_values_the_number_of_kept_boxes_is_unbacked_or_refused() -> None:
    boxes, scores, _ = detections(0)
    with FakeTensorMode(shape_env=ShapeEnv()):
        assert isinstance(nms(torch.empty(9, 4), torch.empty(9), 0.5).shape[0], torch.SymInt)
        assert isinstance(soft_nms(torch.empty(9, 4), torch.empty(9)).indices.shape[0], torch.SymInt)
    for call in (lambda *given: nms(*given, 0.5), soft_nms):
        with pytest.raises(NotImplementedError, match=r"boxes: found on the device meta, .* take fake tensors"):
            call(boxes.to("meta"), scores.to("meta"))  # type: ignore[operator]
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace has no loops that end by values"):
            torch.jit.trace(call, (boxes, scores))


@pytest.mark.parametrize("name", ALL)
def test_classes_are_suppressed_as_if_alone(name: str) -> None:
    boxes, scores, labels = detections(4)
    together = ALL[name]()(boxes, scores, labels)
    for label in range(3):
        rows = (labels == label).nonzero().flatten()
        alone = ALL[name]()(boxes[rows], scores[rows], labels[rows])
        mine = labels[together.indices] == label
        assert torch.equal(together.indices[mine], rows[alone.indices])
        assert torch.equal(together.scores[mine], alone.scores)
    far = boxes + 1e4 * labels[:, None]  # the usual trick for classes, as its meaning: no two of them touch
    apart = ALL[name](per_class=False)(far, scores, labels)
    assert torch.equal(apart.indices, together.indices)


def test_equal_scores_are_taken_by_their_index() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10]])
    scores, labels = torch.full((3,), 0.5), torch.zeros(3, dtype=torch.int64)
    assert GreedyNMS()(boxes, scores, labels).indices.tolist() == [0, 2]
    assert SoftLinear()(boxes, scores, labels).indices.tolist() == [0, 2]
    assert SoftGaussian()(boxes, scores, labels).indices.tolist() == [0, 2, 1]


@pytest.mark.parametrize("name", ALL)
def test_no_detections_and_half_precision(name: str) -> None:
    none = ALL[name]()(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert none.indices.tolist() == none.scores.tolist() == []
    boxes, scores, labels = detections(0)
    kept = ALL[name]()(boxes.half(), scores.half(), labels)
    assert kept.scores.dtype == torch.float16
    single = ALL[name]()(boxes.half().float(), scores.half().float(), labels)
    assert torch.equal(kept.indices, single.indices)


def test_wrong_detections_are_refused() -> None:
    boxes, scores, labels = detections(0)
    with pytest.raises(ValueError, match=r"GreedyNMS: found boxes, scores and labels \(60, 4\), \(59,\), \(60,\)"):
        GreedyNMS()(boxes, scores[1:], labels)
    scores[3] = torch.nan
    with pytest.raises(ValueError, match="SoftLinear: 1 scores are not finite"):
        SoftLinear()(boxes, scores, labels)


@run_each(
    "changed, message",
    [
        ({"boxes": torch.rand(3, 5)}, r"boxes: found the shape \(3, 5\), expected \(N, 4\)"),
        ({"boxes": torch.rand(3, 4) > 0}, r"boxes: found torch\.bool"),
        ({"scores": torch.rand(2)}, r"scores: found the shape \(2,\) for 3 boxes, expected one of each"),
        ({"scores": torch.tensor([0.1, torch.nan, 0.2])}, "scores: 1 of 3 are nan, not a number"),
        ({"idxs": torch.rand(3)}, r"idxs: found torch\.float32, expected whole numbers"),
        ({"idxs": torch.zeros(3, device="meta")}, "idxs on meta; give one device"),
        ({"iou_threshold": 1.5}, "iou_threshold: found 1.5, allowed is a number from 0 to 1"),
    ],
)
def test_detections_that_mean_something_else_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"boxes": torch.rand(3, 4), "scores": torch.rand(3), "idxs": torch.zeros(3).long()}
    with pytest.raises(ValueError, match=message):
        batched_nms(**given | {"iou_threshold": 0.5} | changed)
    if "iou_threshold" not in changed:
        with pytest.raises(ValueError, match=message):
            soft_nms(**given | changed)


def test_decays_that_mean_something_else_are_refused() -> None:
    boxes, scores, labels = detections(0)
    with pytest.raises(ValueError, match=r"min_score: found -1\.0, allowed is 0 or more"):
        soft_nms(boxes, scores, labels, min_score=-1.0)
    with pytest.raises(ValueError, match=r"sigma: found 0\.0, allowed is a number above 0"):
        soft_nms(boxes, scores, labels, sigma=0.0)


def test_kinds_are_in_the_registry() -> None:
    assert {name: registry.suppressions.get_entry(name).builder for name in ALL} == ALL


def test_what_is_needed_and_not_given_is_refused() -> None:
    for more in ({}, {"density": torch.zeros(3)}):
        with pytest.raises(ValueError, match="needs density of each detection"):
            worked(Adaptive(), **more)
    for more in ({}, {"proposal": torch.zeros(3)}):
        with pytest.raises(ValueError, match="needs proposal of each detection"):
            worked(SetSuppression(), **more)


def test_true_densities_find_more_of_a_crowd_than_greedy_suppression() -> None:
    """Pairs of people of whom one stands before the other, IoU above 0.5; each gets a good detection and a weak one."""
    draw = torch.Generator().manual_seed(0)
    found = {"greedy": 0, "adaptive": 0}
    for _ in range(40):
        first = torch.rand(8, 2, generator=draw) * torch.tensor([1200.0, 600.0])
        near = first + torch.rand(8, 2, generator=draw) * torch.tensor([10.0, 4.0]) + torch.tensor([2.0, 0.0])
        truth = torch.cat([first, near]).repeat(1, 2) + torch.tensor([0.0, 0, 41, 100])
        density = box_iou(truth, truth).fill_diagonal_(0).amax(dim=1).repeat(2)
        boxes = torch.cat([truth, truth]) + 1.5 * torch.randn(32, 4, generator=draw)
        scores = torch.cat([0.5 + torch.rand(16, generator=draw) / 2, torch.rand(16, generator=draw) * 0.4])
        for name, form, more in (("greedy", GreedyNMS(), {}), ("adaptive", Adaptive(), {"density": density})):
            indices = form(boxes, scores, torch.zeros(32, dtype=torch.int64), **more).indices
            found[name] += int((indices < 16).sum())  # the good ones
    assert found["adaptive"] > found["greedy"] + 0.1 * 640
