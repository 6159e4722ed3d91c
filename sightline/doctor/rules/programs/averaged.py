"""Rule of a loop's own evaluation: what it averages over batches is a mean over samples."""

from __future__ import annotations

from sightline.doctor.evidence.programs.averaged import Averaged
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule


@rule(
    "per-batch-metric",
    "warning",
    "eval.aggregation eval.protocol",
    holds="a figure that is averaged over batches is that of all their samples at once",
    do="collect the predictions and targets of all batches, or their counts, and compute the figure once at the end",
)
def averaged_over_batches(averaged: Averaged) -> Fault:
    """Name the function whose figures of batches are averaged, although it is no mean over samples."""
    listed = ", ".join(f"{figure:.4g}" for figure in averaged.figures)
    sizes = "/".join(map(str, dict.fromkeys(averaged.sizes)))
    return Fault(
        f"{averaged.name}() is averaged over batches, and is no mean over samples: it depends on the batch size",
        measured=f"{listed} in batches of {sizes}, {averaged.mean:.4g} on average; {averaged.whole:.4g} of the same "
        f"{sum(averaged.sizes)} samples at once",
        where=FindingLocation(file=averaged.file, line=averaged.line),
    )
