"""Frozen features of a part of a data set, in data-set order: what every probe starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.binding import AvailableKeys, bind
from sightline.engine.batch_stream import evaluation_keys, read_batches
from sightline.engine.build import DataSubset
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.precision import Precision
from sightline.errors import ConfigError, DataError
from sightline.optional_members import ModelMembers

__all__ = ["Features", "extract", "feature_statistics", "get_encode", "label_key", "share_errors"]


@dataclass(frozen=True, eq=False)
class Features:
    """`rows` (N, D) float32 and `labels` (N,) int64, in the order of the data set."""

    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Features:
        """These samples alone, in this order."""
        return Features(self.rows[index], self.labels[index])


def label_key(part: DataSubset) -> str | None:
    """The field with one class for each cloud: `label`, `category` where labels are of points, None without either."""
    fields = part.dataset.info.fields
    return next((name for name in ("label", "category") if name in fields and not fields[name].shape.split()), None)


def extract(
    model: nn.Module, part: DataSubset, world: World, *, batch_size: int, seed: int, precision: str, workers: int = 0
) -> Features:
    """The feature of every sample, by the model's `encode` in evaluation mode and without gradient.

    Whole batches are dealt to processes in turn, and every process gets all rows: the same bits for any number of them.
    Raises ConfigError for a model without `encode` and for data without classes, DataError for a feature that is not
    finite; on every process where any of them meets a cloud that cannot be read.
    """
    key = label_key(part)
    if key is None:
        raise ConfigError(
            f"{part.split}: the data set gives no class for each cloud (label or category); none to probe"
        )
    encode = bind(
        get_encode(model), AvailableKeys("the data set", part.reader.keys), owner=f"{type(model).__name__}.encode"
    )
    plan = evaluation_keys(part.indices, batch_size, epoch=0, seed=seed)
    mine = range(world.rank, len(plan), world.size)
    was_training, number = model.training, Precision(precision)
    # What stays is allocated first: kept piece by piece among what a pass frees, it tears the heap to gigabytes.
    num_rows = sum(len(plan[place]) for place in mine)
    width: Any = model.feature_width
    rows = torch.zeros(num_rows, int(width))
    labels, places = torch.zeros(2, num_rows, dtype=torch.int64)
    end = 0
    batches = read_batches(part.reader, (plan[place] for place in mine), workers)
    model.eval()
    with torch.no_grad(), contextlib.closing(batches), share_errors(world):
        for batch in batches:
            taken = to_device(encode.select(batch), world.device, float_dtype=number.parameter_dtype)
            with number.autocast(world.device):
                encoded: Tensor = encode.function(**taken)
            start, end = end, end + len(encoded)
            rows[start:end] = encoded.float().cpu()
            labels[start:end] = batch[key]
            places[start:end] = batch["sample_index"]
    model.train(was_training)
    everyone = [world.gather_rows(each, operation="features")[0] for each in (rows, labels, places)]
    return _in_order(part, *everyone)


@contextlib.contextmanager
def share_errors(world: World) -> Iterator[None]:
    """A fault on one process inside is one on all of them: none is left waiting for the others."""
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
    """The model's `encode`. Raises ConfigError for a model that has none."""
    encode = ModelMembers.encode.get(model)
    if not callable(encode) or ModelMembers.feature_width.get(model) is None:
        raise ConfigError(
            f"{type(model).__name__}: has no `encode` and `feature_width`; probes need a model that derives from an "
            "encoder, such as dgcnn, intrapoint or crosspoint"
        )
    return encode


def feature_statistics(rows: np.ndarray) -> dict[str, float]:
    """Scale and life of features: the mean norm, deviations of dimensions, the share of those that never change.

    `variance` is the sum over the dimensions, the mean square distance from the mean: the scale that a machine with an
    offset sees, wherever the features lie.
    """
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    deviation = rows.std(axis=0, dtype=np.float64)
    is_dead = rows.max(axis=0) == rows.min(axis=0)
    return {
        "width": rows.shape[1],
        "mean_norm": float(norms.mean()),
        "variance": float((deviation**2).sum()),
        "deviation_median": float(np.median(deviation)),
        "deviation_smallest": float(deviation.min()),
        "deviation_largest": float(deviation.max()),
        "dead_share": float(is_dead.mean()),
    }


def _in_order(part: DataSubset, rows: Tensor, labels: Tensor, places: Tensor) -> Features:
    order = np.argsort(places.numpy(), kind="stable")
    assert np.array_equal(places.numpy()[order], np.sort(part.indices)), "every sample is encoded exactly once"
    ordered = rows.numpy()[order]
    broken = np.flatnonzero(~np.isfinite(ordered).all(axis=1))
    if len(broken):
        name = part.sample_name(int(broken[0]))
        raise DataError(f"{part.split}/{name}: its feature is not finite ({len(broken)} such); sightline check RUN")
    return Features(ordered, labels.numpy()[order])
