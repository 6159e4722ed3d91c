"""What a search for bits must not do, as functions of plain values that its driver calls before and after it.

Each returns findings; none holds a model or reads a run.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.doctor.checks.compression.quantised_outputs import changed_tensors
from sightline.doctor.context import FindingBuilder
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.runs.packed import compression_ratios

__all__ = ["search_split", "size_promise", "unreset_episode"]

_TOLERANCE = 1e-4
"""Of a ratio: a reported one is rounded by less."""
_TEXTS: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "search-split": (
        "G45",
        ("eval.protocol", "data.split"),
        "not a sample in common: the policy was chosen on those that the search reads",
        "search on the held-out part of the training set, and report on test",
    ),
    "unreset-episode": (
        "G19",
        ("quant.state_leak", "eval.mode"),
        "the trained model, bit by bit, before and after each evaluation of a policy",
        "quantise a copy in evaluation mode, or load the whole state again, by strict names",
    ),
    "size-promise": (
        "G40",
        ("quant.accounting", "report.budget"),
        "the bytes on disk, as promised and within the budget, and the ratios of codes, codebooks and file",
        "take promise and budget from packed_size, and what is reported from ratios",
    ),
}
"""Of each code its guard, its causes, what is expected, and what to do."""


def search_split(calibration: Iterable[Hashable], report: Iterable[Hashable]) -> list[Finding]:
    """Of the samples that a search reads and those that it is reported on, as (split, index) or any other name."""
    reported, read = set(report), set(calibration)
    common = [sample for sample in read if sample in reported]
    if not common:
        return []
    summary = f"the search chooses by {len(common)} samples that its result is reported on"
    measured = f"{len(common)} of {len(read)}, {min(common, key=repr)} first"
    return [_found("search-split", summary, measured, config_path="data")]


def unreset_episode(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Finding]:
    """Of the state of the model that policies are applied to: a copy from before any evaluation, and after some."""
    changed = changed_tensors(before, after)
    measured, summary = f"{len(changed)} tensors: {'; '.join(changed[:3])}", "an evaluation leaves another model behind"
    return [_found("unreset-episode", summary, measured, param=changed[0].split()[0])] if changed else []


def size_promise(
    file: Path,
    *,
    promised: int,
    budget: int | None,
    reported: Mapping[str, float],
    layers: Iterable[tuple[int, int, int]],
    state: Mapping[str, Tensor],
) -> list[Finding]:
    """Of a packed file: its bytes are those promised and hold the budget, and all three ratios are reported.

    `reported` are the ratios by the names of `Ratios`; `layers` and `state` are those of `runs.packed.ratios`.
    """
    size, faults = file.stat().st_size, []
    if size != promised:
        faults.append(f"{size:,} bytes on disk, {promised:,} promised")
    if budget is not None and size > budget:
        faults.append(f"{size:,} bytes on disk, {size - budget:,} above the budget of {budget:,}")
    for name, value in compression_ratios(layers, file_bytes=size, state=state)._asdict().items():
        found = reported.get(name)
        if found is None or not math.isclose(found, value, rel_tol=_TOLERANCE):
            faults.append(f"ratio '{name}' {'is not reported' if found is None else f'{found:.5g}'}, {value:.5g} found")
    summary = "the packed file is not of the size that is reported"
    return [_found("size-promise", summary, "; ".join(faults), file=str(file))] if faults else []


def _found(code: str, summary: str, measured: str, **place: Any) -> Finding:
    guard, causes, expected, action = _TEXTS[code]
    reporter = FindingBuilder(guard=guard, code=code, causes=causes, expected=expected, action=action)
    return reporter.finding(FindingLocation(**place), summary, measured=measured)
