"""Samples of a data set at every stage on their way to the model, and what a model answers for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sightline.data.reading import BatchReader
from sightline.engine.device import to_device
from sightline.engine.evaluate import Meter
from sightline.engine.precision import Precision
from sightline.engine.train import Task
from sightline.errors import ConfigError, DataError
from sightline.metrics.answers import answers_of
from sightline.metrics.base import fresh_state
from sightline.types import Batch, DataInfo, Sample, SampleKey
from sightline.view.clouds import ByClass, ByColor, Cloud, Coloring, Subject, errors_of, upward

__all__ = ["TRUTH", "Branch", "Predictor", "sample_subject"]

TRUTH = "ground truth"
"""The name of the colouring by the labels of the data."""
_CLASSES_OF = {"label": (TRUTH, "class_names"), "part": ("part", "part_names"), "instance": ("instance", "")}
"""Fields with a class a point: what their colouring is called, and the fact that names the classes."""


_SEEN = {"train": "what the model sees in training", "evaluate": "what the model sees in evaluation"}


@dataclass(frozen=True)
class Branch:
    """One way from the data set to the model; `reader` applies its transforms, in `epoch`."""

    name: Literal["train", "evaluate"]
    reader: BatchReader
    epoch: int = 0


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to answer for a sample by a run's own evaluation transforms."""

    model: nn.Module
    task: Task
    meters: Sequence[Meter]
    reader: BatchReader
    precision: Precision
    device: torch.device

    def __call__(self, key: SampleKey) -> tuple[Batch, Mapping[str, Any]]:
        """The batch of one sample and what the task predicts of it; one pass, no votes.

        Raises ConfigError for a task that gives no probability per class.
        """
        batch = to_device(self.reader([key]), self.device, floats=self.precision.parameters)
        self.model.eval()
        with torch.no_grad(), self.precision.autocast(self.device):
            predictions = self.task.predict(self.model, batch)
        if "probabilities" not in predictions:
            raise ConfigError(
                f"the task predicts {', '.join(sorted(predictions))}; view shows classes, and needs theirs"
            )
        return batch, predictions

    def iou(self, batch: Batch, predictions: Mapping[str, Any]) -> float | None:
        """The sample's IoU, where a metric of the run tells it."""
        for meter in self.meters:
            if hasattr(meter.metric, "per_sample"):
                alone = {**batch, "sample_index": torch.zeros_like(batch["sample_index"])}
                state = {name: t.to(self.device) for name, t in fresh_state(meter.metric, num_samples=1).items()}
                meter.metric.update(state, **meter.update.select(alone, predictions))
                told = meter.metric.per_sample({name: tensor.cpu() for name, tensor in state.items()})
                return float(told[0])
        return None


def sample_subject(
    index: int,
    *,
    name: str,
    branches: Sequence[Branch],
    seed: int,
    facts: Mapping[str, Any],
    predictor: Predictor | None = None,
) -> Subject:
    """A sample as its data set gives it, after each transform of each branch and, with a predictor, as answered.

    The stages hold the very bits that training in the branch's epoch, or evaluation, sees; with a predictor the last
    branch is evaluation. Raises ConfigError for a data set without clouds.
    """
    clouds: list[Cloud] = []
    told: dict[str, Any] = {"index": index}
    for branch in branches:
        info = branch.reader.dataset.info
        stages = list(branch.reader.stages(SampleKey(index, branch.epoch, seed)))
        if not clouds:
            raw = stages[0][1]
            told |= _whole_labels(raw, facts)
            clouds.append(_cloud("raw", raw, info, facts, unit=_unit(info), told=_said_of_raw(branches)))
        changed = list(_changed(branch, stages[1:], info, facts))
        clouds += changed
    if predictor is not None:  # the last branch is the one that evaluates
        batch, predictions = predictor(SampleKey(index, 0, seed))
        answered, figures = _answered(
            [clouds[0], *changed], batch, predictions, facts, iou=predictor.iou(batch, predictions)
        )
        clouds.append(answered)
        told["prediction"] = figures
    return Subject(name, tuple(clouds), facts.get("up_axis", "z"), told)


def _changed(
    branch: Branch, stages: Sequence[tuple[str, Sample]], info: DataInfo, facts: Mapping[str, Any]
) -> Iterator[Cloud]:
    """The clouds after each transform of a branch; the last of them is what the model sees.

    Where a sample has two views of its object, both are shown, by height alone: other fields are not of their rows.
    """
    for place, (transform, sample) in enumerate(stages, start=1):
        told = _SEEN[branch.name] if place == len(stages) else ""
        stage = f"{branch.name} {place}: {transform}"
        if "other_points" in sample:
            for view, name in (("points", "first"), ("other_points", "second")):
                yield _cloud(f"{stage}, {name}", {"points": sample[view]}, info, facts, told=told)
        else:
            yield _cloud(stage, sample, info, facts, told=told)


def _said_of_raw(branches: Sequence[Branch]) -> str:
    return ", ".join(_SEEN[branch.name] for branch in branches if not branch.reader.has_transforms)


def _cloud(
    stage: str, sample: Sample, info: DataInfo, facts: Mapping[str, Any], *, unit: str = "", told: str = ""
) -> Cloud:
    if "points" not in sample:
        raise ConfigError(f"view: the data set gives {', '.join(sorted(info.fields))}, no points; view shows clouds")
    points = _array(sample["points"])
    return Cloud(stage, points, tuple(_colorings(sample, points, facts)), unit, told)


def _colorings(sample: Sample, points: np.ndarray, facts: Mapping[str, Any]) -> Iterator[Coloring]:
    """Every way to colour a cloud that its sample has something for; own colours first, height last."""
    colours, normals = sample.get("colours"), sample.get("normals")
    if colours is not None and colours.shape == points.shape:
        yield ByColor("colours", _bytes_of(_array(colours)))
    for field, (name, fact) in _CLASSES_OF.items():
        values = sample.get(field)
        if isinstance(values, Tensor) and values.shape == points.shape[:1] and not values.is_floating_point():
            ignored = facts.get("ignore_index") if field == "label" else None
            yield ByClass.of_labels(name, values.numpy(), facts.get(fact, ()), ignore_index=ignored)
    if normals is not None and normals.shape == points.shape:
        yield ByColor("normals", _bytes_of((_array(normals) + 1) / 2))
    yield upward(points, facts.get("up_axis", "z"))


def _bytes_of(shares: np.ndarray) -> np.ndarray:
    """Colours from 0 to 1 as uint8; what a transform took beyond is cut off."""
    return (np.nan_to_num(shares).clip(0, 1) * 255).round().astype(np.uint8)


def _array(values: Tensor) -> np.ndarray:
    """float64 as it is, every other type as float32."""
    return (values if values.dtype == torch.float64 else values.float()).numpy()


def _unit(info: DataInfo) -> str:
    """The unit that the data set states of its points; transforms may leave another, which nobody states."""
    return info.fields["points"].unit if "points" in info.fields else ""


def _whole_labels(sample: Sample, facts: Mapping[str, Any]) -> dict[str, str]:
    """The class of the whole sample, or the category of an object with parts."""
    found = {}
    for field, key, fact in (("label", "class", "class_names"), ("category", "category", "category_names")):
        value = sample.get(field)
        if value is not None and np.ndim(value) == 0:
            found[key] = _named(int(value), facts.get(fact, ()))
    return found


def _named(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


# --- answers ---------------------------------------------------------------------------------------------------------


def _answered(
    clouds: Sequence[Cloud],
    batch: Batch,
    predictions: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    iou: float | None,
) -> tuple[Cloud, dict[str, Any]]:
    """The cloud that answers are for, coloured by them, and the figures that go with them."""
    answer = answers_of(batch, predictions, facts)[0].cpu()
    if answer.ndim == 0:
        return _answered_whole(clouds[-1], int(answer), batch, predictions, facts)
    target = predictions.get("target")
    labels = None if target is None else target.cpu().numpy()
    cloud = _cloud_of_answers(clouds, len(answer), labels)
    names, ignored = facts.get("class_names", ()), facts.get("ignore_index")
    answers = answer.numpy()
    colorings: list[Coloring] = [ByClass.of_labels("prediction", answers, names)]
    figures: dict[str, Any] = {"num_points": len(answers)}
    told = ""
    if labels is not None:
        counted = labels if ignored is None else np.where(labels == ignored, -1, labels)
        error = errors_of(answers, counted, int(facts["num_classes"]))
        truth = ByClass.of_labels(TRUTH, labels, names, ignore_index=ignored)
        colorings = [truth, *colorings, error]
        num_counted = int((error.codes >= 0).sum())
        figures["accuracy"] = float((error.codes == 0).sum() / num_counted) if num_counted else None
        told = f"{figures['accuracy']:.1%} of its points right" if num_counted else "no point with a label"
    if iou is not None and np.isfinite(iou):
        figures["iou"] = iou
        told += f", IoU {iou:.3f}"
    kept = [each for each in cloud.colorings if each.name != TRUTH]
    return Cloud("prediction", cloud.points, (*colorings, *kept), cloud.unit, told), figures


def _answered_whole(
    cloud: Cloud, answer: int, batch: Batch, predictions: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Cloud, dict[str, Any]]:
    """The cloud that the model saw, with the class that it answered for it."""
    names = facts.get("class_names", ())
    probability = float(predictions["probabilities"][0, answer])
    figures: dict[str, Any] = {"class": _named(answer, names), "probability": probability}
    told, is_right = f"predicted {figures['class']} ({probability:.2f})", None
    if "label" in batch:
        label = int(batch["label"][0])
        is_right = label == answer
        figures |= {"true_class": _named(label, names), "is_right": is_right}
        told += ", right" if is_right else f", is {figures['true_class']}"
    return Cloud("prediction", cloud.points, cloud.colorings, cloud.unit, told, is_right), figures


def _cloud_of_answers(clouds: Sequence[Cloud], num_points: int, labels: np.ndarray | None) -> Cloud:
    """The last stage with a point for every answer, and the label of every target: later ones were thinned."""
    for cloud in reversed(clouds):
        truth = cloud.coloring(TRUTH)
        if len(cloud.points) != num_points:
            continue
        if labels is None or not isinstance(truth, ByClass) or _are_alike(truth, labels):
            return cloud
    held = ", ".join(f"{cloud.stage} {len(cloud.points)}" for cloud in clouds)
    raise DataError(f"the task answers for {num_points} points, no stage of the sample has these: {held}")


def _are_alike(truth: ByClass, labels: np.ndarray) -> bool:
    """Whether labels are those of a colouring, points without a class aside."""
    shown = truth.labels()
    return bool(((shown == labels) | (shown < 0)).all())
