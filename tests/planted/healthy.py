"""Plants of healthy runs that look odd: legal losses, schedules, data and optimisers, and parts of a user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.pose.v2v import V2VSmall
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.contract.types import Sample, SampleKey
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.build import TrainingSetup
from tests.planted.classify import NoSchedule, plant_schedule
from tests.planted.contrast import add_intra_loss, compare_pairs
from tests.planted.detect import add_class_loss as add_box_loss
from tests.planted.files import start_from
from tests.planted.networks import change_network
from tests.planted.planting import Plant, Planter, add_class_loss, change_result, edit, wrap
from tests.planted.pose import add_map_loss


class _WarmUpFromZero(NoSchedule):
    """Linear warm-up from exactly 0 over five steps, then a cosine."""

    def __call__(self, step: int) -> float:
        if step < 5:
            return step / 5
        return float(0.5 + 0.5 * np.cos(np.pi * (step - 5) / (self.num_steps - 5)))


def _ignore_most(own: Any, dataset: SyntheticLidar, key: SampleKey) -> Sample:
    """Ignore 95 % of the points; a fifth of the scans keep the labels of one class alone."""
    sample: Sample = own(dataset, key)
    label = sample["label"]
    draws = torch.rand(len(label), generator=torch.Generator().manual_seed(key.index))
    is_kept = draws < 0.05
    if key.index % 5 == 0:
        is_kept &= label == label.mode().values
    return {**sample, "label": torch.where(is_kept, label, 0)}


def _empty_third(own: Any, dataset: SyntheticCrowds, key: SampleKey) -> Sample:
    sample: Sample = own(dataset, key)
    if key.index % 3:
        return sample
    empty = {name: sample[name][:0] for name in ("boxes", "label", "is_ignored", "truth", "truth_visible")}
    return {**sample, **{name: value for name, value in empty.items() if name in sample}}


def _rest_by_turns(built: TrainingSetup) -> None:
    """Update every other parameter at even steps, and the others at odd ones."""
    optimizer = built.job.optimizer
    update, turns = optimizer.step, iter(range(10**6))

    def step(closure: Any = None) -> Any:
        turn = next(turns) % 2
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters[turn::2]:
            parameter.grad = None
        return update(closure)

    optimizer.step = step  # type: ignore[method-assign]


def _sort_by_class(planter: Planter) -> None:
    """Read the samples of an epoch in the order of their class."""
    order: list[np.ndarray] = []

    def make(own: Any, dataset: SyntheticShapes, **arguments: Any) -> None:
        own(dataset, **arguments)
        if dataset._split == "train":
            order.append(dataset.strata)

    def sort(own: Any, sampler: BatchSampler, epoch: int) -> np.ndarray:
        indices: np.ndarray = own(sampler, epoch)
        return indices[np.argsort(order[-1][indices], kind="stable")]

    planter.wrap(SyntheticShapes, "__init__", make)
    planter.wrap(BatchSampler, "_order", sort)


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Compute the focal loss as one writes it down, from probabilities."""
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p_true = p * wanted + (1 - p) * (1 - wanted)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    return (weight * (1 - p_true).square() * cross_entropy).sum()


HEALTHY_PLANTS: dict[str, Plant] = {
    "H3": add_intra_loss(lambda first, second: -F.cosine_similarity(first, second)),
    "H5": plant_schedule(_WarmUpFromZero),
    "H10": wrap(SyntheticLidar, "__getitem__", _ignore_most),
    "H12": start_from(change=lambda s: {n: v for n, v in s.items() if "head" not in n}, missing="head"),
    "H13": edit(_rest_by_turns),
    "H14": change_result(V2VSmall, "likelihood", lambda maps: (maps + 0.05).relu()),
    "H15": wrap(SyntheticCrowds, "__getitem__", _empty_third),
    "H16": _sort_by_class,
    "T1": add_class_loss(lambda logits, label: F.cross_entropy(logits, label, reduction="sum")),
    "T2": change_network(),
    "T3": add_intra_loss(compare_pairs),
    "T4": add_box_loss(_focal),
    "T5": add_map_loss(lambda likelihood, heatmaps: (likelihood - heatmaps).square().sum()),
}
