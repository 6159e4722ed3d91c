"""Checks of a bit-width search, as functions of plain values that its driver calls before and after the search.

Each returns findings and needs neither a model nor a run.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from sightline.runs.packed import compression_ratios
from sightline.workbench.check.checks.compression import changed_tensors
from sightline.workbench.check.context import FindingBuilder
from sightline.workbench.check.core.finding import Finding, FindingLocation

_TOLERANCE = 1e-4
"""Relative tolerance of a reported compression ratio; rounding in reports is smaller."""
_SPLIT = FindingBuilder(
    guard="G45",
    code="search-split",
    causes=("eval.protocol", "data.split"),
    expected="no sample in common: the policy was chosen on the samples that the search reads",
    action="search on the held-out part of the training set, and report on test",
)
_EPISODE = FindingBuilder(
    guard="G19",
    code="unreset-episode",
    causes=("quant.state_leak", "eval.mode"),
    expected="the trained model, bit by bit, before and after each evaluation of a policy",
    action="quantise a copy in evaluation mode, or reload the whole state, with strict names",
)
_SIZE = FindingBuilder(
    guard="G40",
    code="size-promise",
    causes=("quant.accounting", "report.budget"),
    expected="the bytes on disk, as promised and within the budget, and the ratios of codes, codebooks and file",
    action="compute promised size and budget by packed_size, and the reported ratios by compression_ratios",
)


def search_split(calibration: Iterable[Hashable], report: Iterable[Hashable]) -> list[Finding]:
    """The search and its report have no sample in common; samples are named as (split, index) or otherwise."""
    reported, read = set(report), set(calibration)
    common = [sample for sample in read if sample in reported]
    if not common:
        return []
    summary = f"the search uses {len(common)} samples that its result is reported on"
    measured = f"{len(common)} of {len(read)}, {min(common, key=repr)} first"
    return [_SPLIT.finding(FindingLocation(config_path="data"), summary, measured=measured)]


def unreset_episode(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Finding]:
    """Evaluating policies leaves the model unchanged; `before` is a copy of its state from before any evaluation."""
    changed = changed_tensors(before, after)
    if not changed:
        return []
    measured, location = (
        f"{len(changed)} tensors: {'; '.join(changed[:3])}",
        FindingLocation(param=changed[0].split()[0]),
    )
    return [_EPISODE.finding(location, "an evaluation changes the model", measured=measured)]


def size_promise(
    file: Path,
    *,
    promised: int,
    budget: int | None,
    reported: Mapping[str, float],
    layers: Iterable[tuple[int, int, int]],
    state: Mapping[str, Tensor],
) -> list[Finding]:
    """A packed file has the promised size, is within the budget, and its three compression ratios are reported.

    `reported` maps the names of `Ratios` to ratios; `layers` and `state` are passed to `compression_ratios`.
    """
    size, faults = file.stat().st_size, []
    if size != promised:
        faults.append(f"{size:,} bytes on disk, {promised:,} promised")
    if budget is not None and size > budget:
        faults.append(f"{size:,} bytes on disk, {size - budget:,} above the budget of {budget:,}")
    for name, value in compression_ratios(layers, file_bytes=size, state=state)._asdict().items():
        actual = reported.get(name)
        if actual is None or not math.isclose(actual, value, rel_tol=_TOLERANCE):
            faults.append(
                f"ratio '{name}' {'is not reported' if actual is None else f'{actual:.5g}'}, {value:.5g} found"
            )
    summary, location = "the packed file does not have the reported size", FindingLocation(file=str(file))
    return [_SIZE.finding(location, summary, measured="; ".join(faults))] if faults else []
