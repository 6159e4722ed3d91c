"""Explanation of a step that failed by an index out of range: the field of the batch that holds it, and its sample."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping

from torch import Tensor

from sightline.contract.types import Batch
from sightline.doctor.finding import Fault, Finding, FindingLocation
from sightline.doctor.rules import get_rule
from sightline.workbench.check.dry_run import take_rows_of
from sightline.workbench.check.run_rules import label_range

_OUT_OF_RANGE = re.compile(r"(?:index|Target) (-?\d+) is out of bounds(?: for dimension \d+ with size (\d+))?")
_PLACES = ("sample_index", "offsets")


def explain_index(error: Exception, step: int) -> Finding | None:
    """Explain the error of a step by the integer of its batch that is out of range; None for another error.

    `step` counts from 0.
    """
    found = _OUT_OF_RANGE.search(str(error))
    batch = _find_batch(error)
    if found is None or batch is None:
        return None
    number, size = int(found[1]), found[2]
    division = {name: value for name, value in batch.items() if name.endswith(_PLACES)}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.is_floating_point() or name in division:
            continue
        for row, sample in enumerate(batch["sample_index"].tolist()):
            if bool((take_rows_of(value, division, [row], name) == number).any()):
                range_words = f"0 to {int(size) - 1}" if size else "below the number of classes"
                fault = Fault(
                    f"'{name}' of a sample is out of range",
                    measured=f"{number} in '{name}' of sample {sample}; allowed here: {range_words}",
                    where=FindingLocation(sample=sample, step=step + 1),
                    evidence={"field": name},
                )
                return get_rule(label_range).build(fault)
    return None


def _find_batch(error: Exception) -> Batch | None:
    """Find the batch that the frames of an error worked on."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, Mapping) and isinstance(value.get("sample_index"), Tensor):
                return dict(value)
    return None
