"""Over-fitting: healthy runs are fitted; of planted faults the cause is named first."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.contract.errors import UserError
from sightline.contract.types import SampleKey
from sightline.engine.build import TrainingSetup
from sightline.workbench.fit.fit_one import FitOptions, FitResult, fit_one, result_document
from tests.doctor.overfit import nets
from tests.doctor.overfit.nets import edited, fields, regression, run, with_loss
from tests.doctor.planting import assert_complete

QUICK = FitOptions(samples=2, steps=30)


def fitted(built: TrainingSetup, asked: FitOptions = QUICK) -> FitResult:
    return fit_one(built, asked, lambda line: None)


def named(built: TrainingSetup, cause: str, asked: FitOptions = QUICK) -> FitResult:
    """The result, after asserting that it is not fitted and that its first finding names the cause."""
    result = fitted(built, asked)
    told = "\n".join(map(str, result.findings))
    assert not result.is_fitted
    assert result.cause == cause, told
    assert_complete(result.findings[0])
    json.dumps(result_document(result), allow_nan=False)
    return result


# --- healthy ---------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_fitted_by_every_optimiser_in_both_number_formats(tmp_path: Path) -> None:
    result = fitted(run(tmp_path, model=nets.Net()))
    assert result.is_fitted, result.findings
    assert result.findings == ()
    tried = {(verdict.optimizer, verdict.precision) for verdict in result.verdicts}
    names = ("recipe (sgd)", "rmsprop", "adam")
    assert tried == {(name, precision) for name in names for precision in ("float32", "float64")}
    assert all(verdict.best.is_fitted for verdict in result.verdicts)
    for verdict in result.verdicts[:3]:  # four decades of rates
        rates = [curve.rate for curve in verdict.curves]
        assert max(rates) / min(rates) >= 0.99e4


def test_the_best_rate_may_be_one_that_does_not_decide(tmp_path: Path) -> None:
    result = fitted(run(tmp_path, "optimizer.lr=0.003", model=nets.Net()), FitOptions(samples=2, steps=60))
    assert result.is_fitted
    assert all(verdict.is_fitted for verdict in result.verdicts if verdict.precision == "float64")


def test_rates_that_explode_are_told(tmp_path: Path) -> None:
    result = fitted(regression(tmp_path, nets.Regressor(rectified=False)))
    sgd = next(verdict for verdict in result.verdicts if verdict.optimizer == "sgd")
    stops = {curve.rate: curve.stop for curve in sgd.curves}
    assert stops[10.0] in ("not finite", "exploded")
    assert all(math.isfinite(loss) for curve in sgd.curves for loss in curve.losses if curve.stop != "not finite")


def test_twice_the_same_numbers_and_nothing_of_the_run_is_changed(tmp_path: Path) -> None:
    built = run(tmp_path, "model.dropout=0.5", "model.embedding=8")
    asked = FitOptions(samples=2, steps=6)
    before = {name: value.clone() for name, value in built.job.model.state_dict().items()}
    state = torch.get_rng_state()
    first = result_document(fitted(built, asked))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert result_document(fitted(built, asked)) == first
    assert all(torch.equal(before[name], value) for name, value in built.job.model.state_dict().items())
    assert not built.job.optimizer.state


def test_the_first_loss_and_the_losses_are_those_of_plain_steps(tmp_path: Path) -> None:
    """Against a loop written out by hand: SGD without momentum on the same cloud."""
    net = nets.Net()
    built = run(tmp_path, "optimizer.momentum=0", model=net)
    result = fitted(built, FitOptions(steps=6, is_brief=True))
    batch = result.samples.batch
    plain = nets.Net()
    plain.load_state_dict(net.state_dict())
    seen = []
    for _ in range(7):
        loss = nn.functional.cross_entropy(plain(points=batch["points"])["logits"], batch["label"])
        seen.append(loss.item())
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    own = result.verdicts[0].curves[0]
    assert own.rate == 0.1
    assert own.losses == pytest.approx(seen[: len(own.losses)], rel=1e-5)


def test_steps_and_shares_are_counted_from_the_floor(tmp_path: Path) -> None:
    """Label smoothing 0.2 over the others of 12 classes: the entropy of its target is 0.9800."""
    smoothed = "losses=[{name: cross_entropy, label_smoothing: 0.2}]"
    result = fitted(run(tmp_path, smoothed, model=nets.Net()), FitOptions(steps=60, is_brief=True))
    assert result.probe is not None
    assert result.probe.floor is not None
    assert result.probe.floor == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2 / 11)), abs=1e-6)
    curve = result.verdicts[0].best
    step = curve.steps_to(0.1)
    assert step is not None
    assert curve.losses[step] - result.probe.floor <= 0.1 * (curve.losses[0] - result.probe.floor)
    assert all(loss - result.probe.floor > 0.1 * (curve.losses[0] - result.probe.floor) for loss in curve.losses[:step])


def test_batch_norm_over_vectors_gets_more_samples_or_says_what_one_means(tmp_path: Path) -> None:
    built = run(tmp_path)
    few = fitted(built, FitOptions(steps=1, is_brief=True)).samples
    assert (len(few.keys), few.repeats) == (4, 1)
    alone = fitted(built, FitOptions(samples=1, steps=1, is_brief=True)).samples
    assert (len(alone.keys), alone.repeats, len(alone.batch["label"])) == (1, 2, 2)
    assert "batch norm" in alone.note


def test_more_samples_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the training part has 216 samples"):
        fitted(run(tmp_path), FitOptions(samples=1000))


def test_augmentation_is_off_and_named_unless_it_is_kept(tmp_path: Path) -> None:
    built = run(tmp_path, "transforms.train=[{name: jitter}, {name: shuffle_points}]")
    brief = FitOptions(samples=2, steps=1, is_brief=True)
    samples = fitted(built, brief).samples
    assert samples.left_out == ("jitter",)
    kept = fitted(built, FitOptions(samples=2, steps=1, is_brief=True, keep=frozenset({"augmentation"}))).samples
    assert kept.left_out == ()
    assert not torch.equal(kept.batch["points"], samples.batch["points"])


# --- planted ---------------------------------------------------------------------------------------------------------


def test_a_frozen_head(tmp_path: Path) -> None:
    finding = named(run(tmp_path, model=nets.FrozenHead()), "model.frozen_unintended").findings[0]
    assert finding.where.layer == "head"


def test_a_frozen_head_that_others_make_up_for_is_told_all_the_same(tmp_path: Path) -> None:
    net = nets.Net()
    net.head.requires_grad_(False)
    result = fitted(run(tmp_path, "optimizer={name: adam, lr: 0.03}", model=net))
    assert result.is_fitted
    assert result.findings[0].cause == "model.frozen_unintended"
    assert result.findings[0].where.layer == "head"


@pytest.mark.parametrize("loss", [nets.Entropy(-1.0), nets.TurnedGradient()], ids=["value", "gradient"])
def test_a_loss_with_the_wrong_sign(tmp_path: Path, loss: nets.Entropy) -> None:
    named(with_loss(run(tmp_path, model=nets.Net()), loss), "loss.sign")


def test_a_detached_weight_is_told_where_the_loss_is_learnt_all_the_same(tmp_path: Path) -> None:
    result = fitted(with_loss(run(tmp_path, model=nets.Net()), nets.HardExamples()), FitOptions(samples=2, steps=60))
    assert result.is_fitted, result.findings
    assert [(finding.severity, finding.cause) for finding in result.findings] == [("warning", "loss.form")]
    assert_complete(result.findings[0])


def test_a_detached_weight_is_not_blamed_for_the_rate(tmp_path: Path) -> None:
    built = with_loss(run(tmp_path, "optimizer.lr=1e-7", model=nets.Net()), nets.HardExamples())
    result = named(built, "optim.lr", FitOptions(samples=2, steps=60))
    assert [finding.cause for finding in result.findings] == ["optim.lr", "loss.form"]


def test_a_loss_that_forgets_samples_and_is_not_learnt(tmp_path: Path) -> None:
    built = with_loss(run(tmp_path, model=nets.Net()), nets.ForgetsSamples())
    result = named(built, "loss.form", FitOptions(samples=4, steps=30))
    assert [finding.severity for finding in result.findings] == ["error"]


def test_a_loss_that_is_cut_off(tmp_path: Path) -> None:
    named(with_loss(run(tmp_path, model=nets.Net()), nets.Detached()), "loss.detached")


def test_a_network_that_gives_numbers_that_are_none(tmp_path: Path) -> None:
    """The loss cannot be judged by them, and is not blamed."""
    finding = named(run(tmp_path, model=nets.Divided()), "model.numerics").findings[0]
    assert finding.where.config_path == "model"
    assert "'logits'" in finding.summary
    assert "24 of 24 numbers" in finding.measured  # two samples, twelve classes


def test_a_loss_that_is_infinite_for_finite_outputs(tmp_path: Path) -> None:
    finding = named(with_loss(run(tmp_path, model=nets.Net()), nets.LogOfZero()), "loss.form").findings[0]
    assert finding.where.config_path == "losses"
    assert "a loss of inf; all numbers of logits are finite" in finding.measured


@pytest.mark.parametrize("rate", ["1e-7", "1e6"])
def test_an_absurd_learning_rate(tmp_path: Path, rate: str) -> None:
    finding = named(run(tmp_path, f"optimizer.lr={rate}", model=nets.Net()), "optim.lr").findings[0]
    assert finding.where.config_path == "optimizer.lr"


def test_a_learning_rate_of_zero(tmp_path: Path) -> None:
    built = run(tmp_path, model=nets.Net())
    for group in built.job.optimizer.param_groups:
        group["base_lr"] = 0.0
    named(built, "optim.lr")


def test_an_optimiser_of_half_the_parameters(tmp_path: Path) -> None:
    net = nets.Net()
    built = run(tmp_path, model=net)
    built.job.optimizer.param_groups[0]["params"] = [net.each.bias]
    with torch.no_grad():
        net.head.weight.zero_()
    finding = named(built, "optim.param_coverage").findings[0]
    assert "head.weight" in finding.evidence["parameters"]


def test_gradients_clipped_to_nothing(tmp_path: Path) -> None:
    named(run(tmp_path, "train.clip_norm=1e-6", model=nets.Net()), "optim.clip")


def test_a_weight_decay_that_undoes_what_is_learnt(tmp_path: Path) -> None:
    decaying = "optimizer={name: adam, lr: 0.03, weight_decay: 10.0}"
    result = fitted(run(tmp_path, decaying, model=nets.Net()))
    assert result.is_fitted
    assert [finding.cause for finding in result.findings] == ["optim.hyper"]


def test_equal_clouds_with_different_labels(tmp_path: Path) -> None:
    def twins(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        points = torch.as_tensor(batch["points"])
        same = torch.linspace(-1, 1, points[0].numel()).view(points[0].shape)
        turned = [same if key.index % 2 else same.flip(0) for key in keys]  # the order of points means nothing
        labels = torch.tensor([key.index % NUM for key in keys])
        return {**batch, "points": torch.stack(turned), "label": labels}

    NUM = nets.NUM_CLASSES
    result = named(
        edited(run(tmp_path, model=nets.Net()), twins), "data.label_mapping", FitOptions(samples=3, steps=30)
    )
    assert len(result.findings[0].evidence["samples"]) == 2


def _turned_clouds(*, with_targets: bool) -> Callable[[dict[str, Any], Sequence[SampleKey]], dict[str, Any]]:
    """Samples that are one cloud, forwards and backwards; its targets per point go with their points, or stay."""

    def edit(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        points = torch.as_tensor(batch["points"])
        cloud = torch.linspace(-1, 1, points[0].numel()).view(points[0].shape)
        height = cloud[:, 2]
        backwards = [bool(key.index % 2) for key in keys]
        clouds = [cloud.flip(0) if turned else cloud for turned in backwards]
        targets = [height.flip(0) if turned and with_targets else height for turned in backwards]
        return {**batch, "points": torch.stack(clouds), "target": torch.stack(targets)}

    return edit


def test_equal_clouds_in_another_order_with_targets_per_point(tmp_path: Path) -> None:
    result = fitted(fields(tmp_path, _turned_clouds(with_targets=True)), FitOptions(samples=4, steps=60, is_brief=True))
    assert result.is_fitted, result.findings
    assert result.findings == ()


def test_equal_clouds_whose_targets_per_point_did_not_follow_the_order(tmp_path: Path) -> None:
    named(fields(tmp_path, _turned_clouds(with_targets=False)), "data.label_mapping", FitOptions(samples=4, steps=5))


def test_numbers_that_are_none(tmp_path: Path) -> None:
    def spoil(batch: dict[str, Any], keys: Sequence[SampleKey]) -> None:
        batch["points"][0, 0, 0] = float("nan")

    finding = named(edited(run(tmp_path, model=nets.Net()), spoil), "data.corrupt_sample").findings[0]
    assert finding.where.sample is not None


def test_nothing_to_fit(tmp_path: Path) -> None:
    def ignore(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        return {**batch, "label": torch.full((len(keys),), -1)}

    named(with_loss(edited(run(tmp_path, model=nets.Net()), ignore), nets.Entropy()), "data.ignore_handling")


def test_a_rectified_end_where_targets_are_negative(tmp_path: Path) -> None:
    finding = named(regression(tmp_path, nets.Regressor(rectified=True), shift=-1.0), "model.activation").findings[0]
    assert finding.where.layer == "end"
    assert finding.severity == "error"


def test_a_linear_end_where_targets_are_negative(tmp_path: Path) -> None:
    result = fitted(regression(tmp_path, nets.Regressor(rectified=False), shift=-1.0))
    assert result.is_fitted
    assert result.findings == ()


def test_a_rectified_end_where_targets_are_positive_is_a_choice(tmp_path: Path) -> None:
    net = nets.Regressor(rectified=True)
    with torch.no_grad():
        net.head.bias.fill_(1.0)
    result = fitted(regression(tmp_path, net, shift=2.0))
    assert result.is_fitted
    assert result.findings == ()


def test_a_softmax_before_the_cross_entropy(tmp_path: Path) -> None:
    named(run(tmp_path, model=nets.SoftmaxEnd()), "loss.double_softmax")


def test_features_that_single_precision_loses(tmp_path: Path) -> None:
    finding = named(run(tmp_path, model=nets.HalfDigits()), "model.numerics").findings[0]
    assert finding.where.layer == "narrow"
    assert "float16" in finding.measured


def test_a_model_that_answers_alike(tmp_path: Path) -> None:
    named(run(tmp_path, model=nets.Constant()), "model.constant_output", FitOptions(samples=3, steps=30))


def test_a_step_that_cannot_be_taken(tmp_path: Path) -> None:
    net = nets.Net()
    net.head = nn.Linear(23, nets.NUM_CLASSES)
    finding = named(run(tmp_path, model=net), "cfg.contract").findings[0]
    assert finding.code == "first-step"
