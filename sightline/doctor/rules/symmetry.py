"""Rules of symmetry: rows follow their points, maps move with their image."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.doctor.evidence.symmetry import Place
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_ALL, _NONE = 0.95, 0.05
"""Shares of rows that follow their points: before the fault, and after it. A sampling in index order is in between."""
_SIMILAR, _UNLIKE = 0.6, 0.2
"""The same for the correlation of shifted maps, which borders lower a little at each layer."""
_WHAT_TO_DO = "look for view or reshape where transpose is meant, for exchanged axes, and for the axis of the pooling"


@rule(
    "point-order",
    "error",
    "data.layout model.structure",
    holds="the same outputs, at their points: a cloud is a set",
    do=_WHAT_TO_DO,
)
def point_order(permuted_points: list[Place]) -> Fault | None:
    """Find the first layer whose rows do not follow permuted points, where those before it do."""
    found = _find_break(permuted_points, high=_ALL, low=_NONE)
    if found is None:
        return None
    place, before = found
    return Fault(
        f"the network mixes unrelated points: {place.text} does not follow its points"
        if place.is_many
        else f"the network depends on the order of the points, at {place.text}",
        severity="error" if place.is_many else "warning",
        measured=f"points permuted, in evaluation mode: {place.agreement:.0%} of the rows of {place.text} stay, "
        + (f"{before.agreement:.0%} of {before.text}" if before is not None else "all of the points given"),
        causes=("data.layout", "model.structure") if place.is_many else ("model.structure", "data.layout"),
        where=FindingLocation(layer=place.layer or None),
    )


@rule(
    "pixel-order",
    "warning",
    "data.layout model.structure",
    holds="maps that move with the image: it is a grid",
    do=_WHAT_TO_DO,
)
def pixel_order(shifted_images: list[Place]) -> Fault | None:
    """Find the first map that does not move with shifted noise, where those before it do."""
    found = _find_break(shifted_images, high=_SIMILAR, low=_UNLIKE)
    if found is None:
        return None
    place, before = found
    return Fault(
        f"the network mixes unrelated pixels: {place.text} does not move with the image",
        measured=f"shifted noise in its place: correlation {place.agreement:.2f} at {place.text}, "
        + (f"{before.agreement:.2f} at {before.text}" if before is not None else "1 of what is given"),
        where=FindingLocation(layer=place.layer or None),
    )


def _find_break(places: Sequence[Place], *, high: float, low: float) -> tuple[Place, Place | None] | None:
    """Return the first place whose agreement is below `low`, and the one before it; None if it fell slowly.

    The code between layers is judged: borders, which a layer of torch pads, may lower the agreement as well.
    """
    before: Place | None = None
    for place in places:
        if place.agreement is not None and place.agreement <= low and not place.is_result:
            return place, before
        if place.agreement is None or place.agreement < high:
            return None
        before = place
    return None
