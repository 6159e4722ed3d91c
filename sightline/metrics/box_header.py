"""Header of box metric tables: protocol, label counts, and reasons of missing figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sightline.metrics.base import State

__all__ = ["nan_mean", "protocol_header"]


def protocol_header(protocol: str, state: State) -> dict[str, Any]:
    """Return the protocol, the number of counted and ignored labels, and `undefined`: NaN figures with the reason."""
    num_ignored = int((state["labels"][:, 7] > 0).sum())
    num_boxes = len(state["labels"]) - num_ignored
    undefined = {} if num_boxes else {"all": "no label counts"}
    return {"protocol": protocol, "num_boxes": num_boxes, "num_ignored": num_ignored, "undefined": undefined}


def nan_mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    valid = [value for value in values if not np.isnan(value)]
    return float(np.mean(valid)) if valid else float("nan")
