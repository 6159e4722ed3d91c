"""Frozen features of a data subset in data-set order, the input of every probe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.config import RunConfig
from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.model import Encoder
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.batches.stream import read_batches
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.run_data import DataSubset
from sightline.ops import waits


@dataclass(frozen=True, eq=False)
class Features:
    """Features `rows` (N, D) float32 and `labels` (N,) int64, in the order of the data set."""

    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Features:
        """Select samples by index (M,), in this order."""
        return Features(self.rows[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """Features of both splits: a probe is trained on `train` and scored on `test`."""

    train: Features
    test: Features


@dataclass(frozen=True)
class Scale:
    """Scale of features: how wide they are, their mean norm, and their variance.

    `variance` is the sum over the dimensions, the mean squared distance from the mean feature: the scale that a linear
    classifier with an offset depends on. `constant_share` is that of the dimensions which never change.
    """

    width: int
    mean_norm: float
    variance: float
    constant_share: float

    @classmethod
    def of(cls, features: Features) -> Scale:
        """Measure features in float64."""
        rows = features.rows.astype(np.float64)
        is_constant = rows.max(axis=0) == rows.min(axis=0)
        norms = np.linalg.norm(rows, axis=1)
        return cls(rows.shape[1], float(norms.mean()), float(rows.var(axis=0).sum()), float(is_constant.mean()))

    def __str__(self) -> str:
        return (
            f"{self.width} wide, mean norm {self.mean_norm:.4g}, variance {self.variance:.4g}, "
            f"{self.constant_share:.1%} of the dimensions never change"
        )


def label_key(part: DataSubset) -> str | None:
    """Return the field with one class per cloud: `label`, else `category` (if labels are of points), else None."""
    fields = part.dataset.info.fields
    return next((name for name in ("label", "category") if name in fields and not fields[name].shape.split()), None)


def extract(model: nn.Module, part: DataSubset, world: World, *, config: RunConfig, precision: str) -> Features:
    """Extract the features of all samples by the model's `encode` in evaluation mode, without gradients.

    `config` is that of the data. Batches are distributed over the processes, and every process returns all rows: the
    same bits for any number of processes. Raises ConfigError for a model without `encode` and for data without classes,
    DataError for features that are not finite; if one process cannot read a cloud, all raise.
    """
    key = label_key(part)
    if key is None:
        raise ConfigError(
            f"{part.split}: the data set gives no class for each cloud (label or category); none to probe"
        )
    encode = bind(
        get_encode(model), AvailableKeys("the data set", part.reader.keys), owner=f"{type(model).__name__}.encode"
    )
    plan = evaluation_keys(part.indices, config.evaluate.batch_size, epoch=0, seed=config.seed)
    own_batches = range(world.rank, len(plan), world.size)
    was_training, precision_context = model.training, Precision(precision)
    # Results are allocated first: kept piece by piece between freed blocks, they fragment the heap by gigabytes.
    num_rows = sum(len(plan[batch_index]) for batch_index in own_batches)
    width: Any = model.feature_width
    rows = torch.zeros(num_rows, int(width))
    labels, sample_indices = torch.zeros(2, num_rows, dtype=torch.int64)
    end = 0
    batches = read_batches(part.reader, (plan[batch_index] for batch_index in own_batches), config.loader.workers)
    model.eval()
    with torch.no_grad(), contextlib.closing(batches), share_errors(world):
        for batch in batches:
            inputs = to_device(encode.select(batch), world.device, float_dtype=precision_context.parameter_dtype)
            with precision_context.autocast(world.device):
                encoded: Tensor = encode.function(**inputs)
            waits.check()
            start, end = end, end + len(encoded)
            rows[start:end] = encoded.float().cpu()
            labels[start:end] = batch[key]
            sample_indices[start:end] = batch["sample_index"]
    model.train(was_training)
    gathered = [world.gather_rows(array, operation="features")[0] for array in (rows, labels, sample_indices)]
    return _sort_samples(part, *gathered)


@contextlib.contextmanager
def share_errors(world: World) -> Iterator[None]:
    """Context that raises an error of one process on all of them, so that none waits for the others."""
    fault: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again below
        fault = error
    faults = world.gather_text("" if fault is None else str(fault) or type(fault).__name__, operation="faults")
    if fault is not None:
        raise fault
    if any(faults):
        raise DataError(next(filter(None, faults)))


def get_encode(model: nn.Module) -> Any:
    """Get the model's `encode`. Raises ConfigError for a model without it."""
    if not isinstance(model, Encoder):
        raise ConfigError(
            f"{type(model).__name__}: is no sightline.Encoder, with `encode` and `feature_width`; probes need one, "
            "such as dgcnn, intrapoint or crosspoint"
        )
    return model.encode


def _sort_samples(part: DataSubset, rows: Tensor, labels: Tensor, sample_indices: Tensor) -> Features:
    order = np.argsort(sample_indices.numpy(), kind="stable")
    assert np.array_equal(sample_indices.numpy()[order], np.sort(part.indices)), "every sample is encoded exactly once"
    ordered = rows.numpy()[order]
    broken = np.flatnonzero(~np.isfinite(ordered).all(axis=1))
    if len(broken):
        name = part.sample_name(int(broken[0]))
        raise DataError(f"{part.split}/{name}: its feature is not finite ({len(broken)} such); sightline check RUN")
    return Features(ordered, labels.numpy()[order])
