"""Guards of detection: bugs planted in data, configs, assigners, losses and heads, and healthy detectors."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.areas.detect.assigners.static import MaxIoU
from sightline.areas.detect.checks import unmatched_boxes
from sightline.areas.detect.heads import RetinaHead
from sightline.areas.detect.losses import SigmoidFocal
from sightline.areas.detect.networks import FPN
from sightline.areas.detect.sets.records import box_facts
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.plugins import load_plugins
from sightline.contract.types import Sample, SampleKey
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.channel_contract import label_range
from sightline.workbench.check.checks.data.classes import untrained_class
from sightline.workbench.check.checks.data.data_mutation import data_mutation
from sightline.workbench.check.checks.loss_terms import loss_normaliser
from sightline.workbench.check.checks.model.first_step import first_step
from sightline.workbench.check.checks.model.outputs import level_order
from sightline.workbench.check.checks.scored_targets import box_protocol
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.assigned_boxes import is_significantly_above
from sightline.workbench.check.run_subject import examine_losses
from sightline.workbench.check.suite import run_quick
from tests.command import run_here
from tests.conftest import ROOT
from tests.doctor.detecting import BUGS, READ, SMALL, edited, findings_of, make_crowds, planted, quick
from tests.doctor.planting import assert_complete
from tests.marks import long_but
from tests.planted.planting import Planter


@pytest.mark.parametrize("name", {(bug.code, bug.case.cause): name for name, bug in BUGS.items()}.values())
def test_planted_bugs_are_found_when_a_training_starts(name: str) -> None:
    """One of each check and cause, with the cause among those named. All, on ten seeds: tests/doctor/detecting.py."""
    bug = BUGS[name]
    with planted(bug, seed=3) as built:
        found = findings_of(quick(built), (bug.code,))
    assert found
    for finding in found:
        assert_complete(finding)
    assert any(bug.case.cause in (each.cause, *each.alternatives) for each in found), list(map(str, found))


@pytest.mark.parametrize(
    ("name", "assigner"),
    long_but([("retinanet", "own"), ("fcos", "atss")], itertools.product(["retinanet", "fcos"], ["own", "atss"])),
)
def test_healthy_detectors_are_not_flagged(name: str, assigner: str) -> None:
    """On ten seeds, as they are shipped: tests/long/test_healthy_detectors.py."""
    words = () if assigner == "own" else (f"task.assigner.name={assigner}",)
    found = findings_of(quick(make_crowds(*words, name=name)))
    assert found == [], list(map(str, found))


@pytest.mark.long
def test_the_shipped_recipe_on_photos_is_not_flagged(shared: Path, tmp_path: Path) -> None:
    prepare = ["data", "prepare", "yolo_txt", "--from", shared / "data/coco128", "--to", tmp_path / "coco128"]
    assert run_here(*map(str, prepare), "faulty=leave_out").code == 0
    words = (f"data.root={tmp_path / 'coco128'}", "model.backbone.width=8", "model.neck.width=32")
    built = build(read_config(ROOT / "configs/detect/yolo_txt_retinanet_coco128.yaml", words), World())
    assert findings_of(quick(built)) == []


def test_losses_of_boxes_are_judged_where_there_are_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images of a step may be background alone: nothing in them counts, and nothing has a gradient."""
    first = quick(make_crowds()).dry_run.batch["sample_index"][:2].tolist()

    def without_boxes(dataset: SyntheticCrowds, key: SampleKey) -> Sample:
        sample = READ(dataset, key)
        empty = {name: sample[name][:0] for name in ("boxes", "label", "is_ignored")}
        return {**sample, **empty} if key.index in first else sample

    monkeypatch.setattr(SyntheticCrowds, "__getitem__", without_boxes)
    context = quick(make_crowds())
    assert not context.dry_run.batch["box_offsets"][2]
    assert examine_losses(context) == []


@pytest.mark.parametrize(
    "words",
    [
        ("task.suppression={name: set}", "task.assigner={name: max_iou, boxes_per_prior: 2}",
         "model.head={name: retina_emd}", "losses=[{name: earth_mover}]"),
        ("task.suppression={name: adaptive}", "model.head={name: retina, density: true}",
         "losses=[{name: sigmoid_focal}, {name: box_smooth_l1}, {name: box_density}]"),
    ],
)  # fmt: skip
def test_a_suppression_that_reads_more_than_boxes_is_judged(words: tuple[str, ...]) -> None:
    """Its protocol is, not if classes suppress one another: proposals and densities of labels are not known."""
    context = Context(make_crowds("task.most=1", *words), World())
    assert [finding.where.config_path for finding in box_protocol(context)] == ["task.most"]


def test_a_bug_is_reported_once_with_the_gravest_first() -> None:
    with planted(BUGS["shares of the image for pixels"]) as built:
        found = [each for each in run_quick(built, World()) if each.severity != "note"]
    assert found[0].code == "broken-boxes"
    assert [each.code for each in found if each.severity == "error"] == ["broken-boxes"], list(map(str, found))


def test_clearly_above_counts_three_deviations() -> None:
    assert [is_significantly_above(count, 100, 0.02) for count in (6, 7)] == [False, True], "2 + 3 * sqrt(2) is 6.24"


def test_two_boxes_of_a_handful_are_not_clearly_above_any_share() -> None:
    assert [is_significantly_above(count, 3, 0.02) for count in (1, 2, 3)] == [False, False, True]


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_deep_heads_that_see_all_of_a_map_are_in_order(name: str) -> None:
    """Eight layers do so of a small map, group norms too; without norms, float32 loses what reaches the end."""
    found = findings_of(quick(make_crowds("model.head.num_convs=8", name=name)), ("level-order",))
    assert found == [], list(map(str, found))


PLUGIN = '''"""A focal loss of the user's."""

from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.loss import Loss


@registry.losses.add("mean_bce")
class MeanBCE(Loss):
    """The mean over all priors. Source: a common mistake."""

    def __init__(self) -> None:
        super().__init__()

    def count(self, *, target: Tensor) -> Tensor:
        return target.new_tensor(target.numel())

    def forward(self, *, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[..., 0], (target >= 0).to(logits), reduction="sum")
'''


def test_a_plugin_loss_over_all_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.losses, "_entries", dict(registry.losses._entries))
    (tmp_path / "own_losses.py").write_text(PLUGIN)
    load_plugins([tmp_path / "own_losses.py"])
    words = "losses=[{name: mean_bce}, {name: box_smooth_l1}]"
    found = loss_normaliser(quick(make_crowds(words)))
    assert {(each.cause, each.where.config_path) for each in found} == {("loss.normaliser", "losses.0")}
    assert found[0].summary == "the loss 'mean_bce' depends on how many priors are background, predicted for certain"


def test_parts_that_refuse_what_a_check_gives_them_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss for so many priors, a head for maps of so many rows: neither is a fault, and neither was checked."""
    forward, headed = SigmoidFocal.forward, RetinaHead.forward
    count = 9216  # of an image of 192 x 256

    def of_all(self: SigmoidFocal, *, logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape[1] != count:
            raise ValueError(f"{logits.shape[1]} priors,\nand not {count}")
        return forward(self, logits=logits, target=target)

    @functools.wraps(headed)  # its annotation names the outputs
    def of_even(self: RetinaHead, maps: list[Tensor]) -> dict[str, Tensor]:
        if any(each.shape[3] % 2 for each in maps[:2]):
            raise KeyError("odd")
        return headed(self, maps)

    monkeypatch.setattr(SigmoidFocal, "forward", of_all)
    monkeypatch.setattr(RetinaHead, "forward", of_even)
    context = quick(make_crowds())
    for check, reason in (
        (loss_normaliser, rf"ValueError: \d+ priors, and not {count}"),
        (level_order, "KeyError: 'odd'"),
    ):
        (finding,) = check(context)
        assert re.fullmatch(f"check could not run: {reason}", finding.summary), finding.summary
        assert (finding.code, finding.severity, finding.cause) == (check.code, "note", "sys.environment")
        assert (finding.where.file, finding.summary.endswith(finding.measured)) == (__file__, True)
        assert_complete(finding)


@pytest.mark.parametrize("is_ignored", [False, True])
@pytest.mark.parametrize(
    ("box", "code"), [((10, 10, 5, 30), "broken-boxes"), ((10, math.nan, 20, 30), "non-finite-data")]
)
def test_one_box_that_cannot_be_meant(
    monkeypatch: pytest.MonkeyPatch, box: tuple[float, ...], code: str, is_ignored: bool
) -> None:
    """An ignored box may have any corners, if they are numbers."""

    def planted(sample: Sample) -> Sample:
        boxes, truth, flags = (sample[name].clone() for name in ("boxes", "truth", "is_ignored"))
        boxes[0], truth[0, :4] = (torch.tensor(box).to(each) for each in (boxes, truth))
        flags[0] = truth[0, 6] = is_ignored
        return {**sample, "boxes": boxes, "truth": truth, "is_ignored": flags}

    edited(monkeypatch, planted)
    found = findings_of(quick(make_crowds()), (code,))
    assert bool(found) == (not is_ignored or code == "non-finite-data"), list(map(str, found))


class TestExistingChecks:
    """Bugs of detectors that checks for all data sets find."""

    def test_boxes_scaled_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Trap T1: the stored boxes grow at every reading, and drift away over epochs."""
        stored = SyntheticCrowds._draw_cached

        def drifting(dataset: SyntheticCrowds, index: int):
            image, record = stored(dataset, index)
            for array in (record.boxes, record.scored):
                array.flags.writeable = True
                array *= 1.05
            return image, record

        monkeypatch.setattr(SyntheticCrowds, "_draw_cached", drifting)
        found = data_mutation(Context(make_crowds(seed=99), World()))
        assert [each.cause for each in found][:1] == ["data.item_mutation"]
        assert "'boxes' changes when it is read" in found[0].summary

    def test_boxes_scaled_in_place_by_a_transform(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A set that hands out its own tensors, and a reader that writes into them."""
        kept: dict[int, Sample] = {}

        def handed_out(dataset: SyntheticCrowds, key) -> Sample:
            sample = kept.setdefault(key.index, READ(dataset, key))
            sample["boxes"].mul_(0.9)
            return dict(sample)

        monkeypatch.setattr(SyntheticCrowds, "__getitem__", handed_out)
        found = data_mutation(Context(make_crowds(seed=99), World()))
        assert [each.cause for each in found][:1] == ["data.item_mutation"]

    @pytest.mark.parametrize(("shift", "value"), [(1, "the value 1"), (-1, "the value -1")])
    def test_labels_that_are_shifted(self, monkeypatch: pytest.MonkeyPatch, shift: int, value: str) -> None:
        """A label of -1 would be background, one of num_classes nothing at all: in silence."""
        edited(monkeypatch, lambda s: {**s, "label": s["label"] + shift})
        found = label_range(quick(make_crowds()))
        assert "data.label_mapping" in (found[0].cause, *found[0].alternatives)
        assert value in found[0].summary

    def test_the_label_of_an_ignored_box_is_never_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        edited(monkeypatch, lambda s: {**s, "label": torch.where(s["is_ignored"], -1, s["label"])})
        assert label_range(quick(make_crowds())) == []

    def test_maps_in_another_order_than_their_strides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = FPN.forward
        monkeypatch.setattr(FPN, "forward", lambda self, maps: forward(self, maps)[::-1])
        (finding,) = first_step(quick(make_crowds()))
        assert "state the strides that the network has" in finding.measured + finding.summary


@pytest.mark.parametrize(
    ("names", "shift", "is_found"),
    [
        (("__background__", "person"), 1, True),
        (("person", "rider"), 0, False),
        (("person", "rider"), 1, False),
        (("a", "b", "c", "d"), 1, True),
    ],
    ids=["a class for background", "healthy", "two classes prove nothing", "three of four"],
)
def test_classes_that_count_from_one(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], shift: int, is_found: bool
) -> None:
    count = len(names) - shift
    edited(monkeypatch, lambda s: {**s, "label": torch.arange(len(s["label"])) % count + shift})
    describe = SyntheticCrowds.__init__

    def with_names(self: SyntheticCrowds, **given) -> None:
        describe(self, **given)
        self.info = dataclasses.replace(self.info, facts=box_facts(names, "full"))

    with_names.__wrapped__ = describe  # type: ignore[attr-defined]
    monkeypatch.setattr(SyntheticCrowds, "__init__", with_names)
    found = untrained_class(quick(make_crowds("metrics=[{name: box_ap}]")))
    assert [each.cause for each in found] == ["data.label_mapping"] * is_found


def test_boxes_that_no_prior_could_serve_are_a_note() -> None:
    """FCOS leaves a tenth of these small people without a point; that is the paper's rule, and worth a line."""
    context = Context(make_crowds(name="fcos"), World())
    assert context.assignments is not None
    _, note = unmatched_boxes(context)
    assert note.severity == "note"
    assert "are not assigned to any prior" in note.summary
    assert int(context.assignments.is_unmatched.sum()) > 0.05 * len(context.assignments.boxes)


def test_levels_of_points_whose_ranges_are_for_larger_images_are_a_note() -> None:
    """People of 16 to 80 px lie in the range of the first two levels; limits of their size train one level more."""

    def untrained(*words: str) -> list[Finding]:
        found = unmatched_boxes(Context(make_crowds(*words, name="fcos"), World()))
        return [each for each in found if "train no point" in each.summary]

    (note,) = untrained()
    assert note.severity == "note"
    assert "levels of stride 32, 64, 128 train no point" in note.summary
    assert "limits_px" in note.action
    assert untrained("task.assigner.limits_px=[16, 32, 48, 64]") == []
    assert untrained("task.assigner.name=atss") == []


def test_the_guarantee_leaves_no_box_unmatched() -> None:
    found = Context(make_crowds(), World()).assignments
    assert found is not None
    assert isinstance(make_crowds().job.task._assigner, MaxIoU)
    assert not found.is_unmatched.any()
    assert found.positives.sum() >= len(found.boxes)


def few_crowds(num_images: int, seed: int) -> TrainingSetup:
    words = (*(word for word in SMALL if "train_size" not in word), f"data.train_size={num_images}")
    words = (*words, f"seed={seed}", f"data.data_seed={seed}")
    return build(read_config(ROOT / "configs/detect/synthetic_crowds_retinanet.yaml", words), World())


@pytest.mark.parametrize("num_images", [3, 4, 12])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("corners are taken for left, top, width, height", "corners that were read as left, top, width, height"),
        ("boxes of images twice as large", ""),
    ],
)
def test_boxes_of_a_few_photos_are_judged(name: str, says: str, num_images: int) -> None:
    """Three images are too few; on a slow processor, a start reads no more than four."""
    with Planter() as planter:
        BUGS[name].case.plant_into(planter)
        found = findings_of(quick(few_crowds(num_images, seed=3)), ("broken-boxes",))
    assert {each.cause for each in found} == ({BUGS[name].case.cause} if num_images > 3 else set()), found
    assert all(says in each.summary for each in found)


def test_few_healthy_photos_are_not_taken_for_another_format() -> None:
    for seed in range(12):
        found = findings_of(quick(few_crowds(4 + seed, seed=seed)), ("broken-boxes",))
        assert found == [], list(map(str, found))
