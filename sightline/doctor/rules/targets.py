"""Rules of a loss that is given its own targets as outputs, or other numbers that mean the same."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.evidence.matched import Apart, Holes, Overlap, Peaks, SameThing, Sides
from sightline.doctor.evidence.places import Order
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule


@rule(
    "loss-form",
    "error",
    "loss.form model.geometry",
    holds="boxes that do not meet are no better for lying apart along a second axis",
    do="clamp both extents of the intersection at 0 before they are multiplied",
)
def boxes_apart(apart: list[Apart]) -> Iterator[Fault]:
    """Find an overlap that two negative extents make positive.

    Outputs that the loss scales before it compares them are in another unit: these are not best where targets are.
    """
    for each in apart:
        if each.at_target < each.along_one and each.along_two < each.along_one - 1e-3 * abs(each.along_one):
            yield Fault(
                f"boxes{_name(each.path)} that lie apart along two axes have a smaller loss than along one: extents of "
                "intersections are not clamped",
                measured=f"1.3 sizes apart along one axis it is {each.along_one:.4g}, along two {each.along_two:.4g}",
            )


@rule(
    "loss-form",
    "error",
    "loss.form model.activation",
    holds="an overlap (Dice, IoU) is of shares between 0 and 1",
    do="give the loss shares: a sigmoid or softmax before it",
)
def overlap_of_scores(overlaps: list[Overlap]) -> Iterator[Fault]:
    """Find a loss that is 0 at the mask itself and lower beyond it, for outputs that are no shares."""
    for each in overlaps:
        is_floor = abs(each.at_mask) < 0.02 * abs(each.at_zero)
        if is_floor and not each.is_share and each.at_tenfold < each.at_mask - 0.1 * abs(each.at_zero):
            yield Fault(
                f"an overlap of outputs{_name(each.path)} without bounds: they are no shares",
                measured=f"{each.at_mask:.3g} for outputs equal to the mask, {each.at_tenfold:.3g} for ten times as "
                f"much, {each.at_zero:.3g} for zeros",
            )


@rule(
    "loss-form",
    "warning",
    "loss.form data.target_encoding",
    holds="the loss of an angle is that of the same angle a whole turn further",
    do="wrap the difference, atan2(sin(d), cos(d)), predict sine and cosine, or convert degrees (torch.deg2rad) first",
)
def turns_count(whole_turns: list[SameThing]) -> Iterator[Fault]:
    """Find targets that fill a whole turn, and whose whole turn changes the loss."""
    for each in whole_turns:
        if abs(each.other - each.own) > 1e-3 * (1 + abs(each.own)):
            yield Fault(
                f"the targets{_name(each.path)} fill a whole turn as angles do, and a turn more changes the loss",
                measured=f"targets {each.words}; the loss is {each.own:.3g}, and {each.other:.3g} a turn further",
            )
            return


@rule(
    "loss-form",
    "warning",
    "loss.form data.target_encoding",
    holds="the loss of the quaternions q and -q is one",
    do="take the lesser loss of both signs, or 1 - |<q, t>|; or give all targets one sign (w >= 0)",
)
def signs_count(signs: list[SameThing]) -> Iterator[Fault]:
    """Find a loss that tells q from -q, where targets have both signs."""
    for each in signs:
        if each.other - each.own > 1e-2 * (1 + abs(each.own)):
            yield Fault(
                f"the targets{_name(each.path)} are unit rows of four, as quaternions, of both signs, and the loss "
                "tells q from -q",
                measured=f"at least {each.words} lie beyond every plane tried; the loss of outputs equal to the "
                f"targets is {each.own:.3g}, of the same with the other sign {each.other:.3g}",
            )
            return


@rule(
    "loss-form",
    "warning",
    "data.ignore_handling loss.form",
    holds="what stands for a missing target does not decide the loss",
    do="take the places with a target first: mask = target > 0, for outputs and target",
)
def holes_count(holes: list[Holes]) -> Iterator[Fault]:
    """Find zeros of a target of which the loss takes the logarithm."""
    for each in holes:
        if each.num >= 8 and each.at_holes > 500 * each.elsewhere > 0:
            yield Fault(
                f"places without a target{_name(each.path)} count in the loss: zeros enter a logarithm",
                measured=f"{each.num} zeros have a gradient; {each.step:.2g} more at one of them moves the loss "
                f"{each.at_holes / each.elsewhere:.3g} times as far as at another number",
            )


@rule(
    "loss-form",
    "error",
    "loss.form data.target_encoding",
    holds="the loss pushes outputs up where a target map is highest and they are far below",
    do="round centres to places before drawing, or compare with >= 0.99: a focal loss asks where the map is exactly 1",
)
def peaks_are_pushed(peaks: list[Peaks]) -> Iterator[Fault]:
    """Find maps of which no place counts as an object."""
    for each in peaks:
        if each.num > 2 and not each.pushed:
            yield Fault(
                f"nothing pushes the highest places of the target maps{_name(each.path)} up: none counts as an object",
                measured=f"the gradient is 0 or falls at all {each.num} highest places, with outputs far below",
            )


@rule(
    "loss-form",
    "error",
    "loss.normaliser data.ignore_handling",
    holds="a gradient at places with a box alone",
    do="take the places with an object first (output[mask], target[mask]), and then the mean",
)
def empty_boxes_count(empty_boxes: list[tuple[str, int, int]]) -> Iterator[Fault]:
    """Find places without an object that are pulled to a box of zeros."""
    for path, num, counted in empty_boxes:
        if counted > 0.5 * num:
            yield Fault(
                f"boxes{_name(path)} that do not exist count in the loss: they are pulled to a box of zeros",
                measured=f"a gradient at {counted} of {num} places whose target is 0, 0, 0, 0",
            )


@rule(
    "loss-form",
    "warning",
    "loss.form",
    holds="a distance of two sets asks for the nearest points in both directions",
    do="add the other direction: the minimum over axis 1 beside that over axis 2",
)
def one_direction(sides: list[Sides]) -> Iterator[Fault]:
    """Find a distance of sets that one point of the target satisfies, or that does not see a point far away."""
    for each in sides:
        whole = each.all_away - each.perfect
        is_covered = each.one_point - each.perfect > 0.02 * (each.own - each.perfect)
        is_precise = each.one_away - each.perfect > 0.1 * whole / each.size
        if whole > 0 and not (is_covered and is_precise):
            yield Fault(
                f"the distance of two sets{_name(each.path)} looks in one direction only",
                measured=f"{each.perfect:.3g} at the target, {each.one_point:.3g} for one of its points alone, "
                f"{each.one_away:.3g} with a point of {each.size} far away",
            )


@rule(
    "exchanged-axes",
    "error",
    "data.layout data.pairing data.augment_target_mismatch",
    holds="the loss looks for what is in an image at its own place of the outputs",
    do="look at meshgrid (indexing='ij' for rows first), at x and y of places, and at flips of targets",
    is_statistical=True,
)
def other_places(orders: list[Order]) -> Iterator[Fault]:
    """Find gradients that follow the image in another order of places, and not in that of the outputs.

    Gradients that are small where images are unlike one another follow their order, too.
    """
    for each in orders:
        is_sure = each.t >= 6 if each.other >= 0.25 else each.t >= 7 and each.other >= 0.05
        if is_sure and -each.other <= each.own <= 0.4 * each.other:
            yield Fault(
                f"the loss looks for what is in an image elsewhere in the outputs{_name(each.path)}: {each.name}",
                measured="where images are unlike one another, and where the gradients at the outputs are: correlation "
                f"{each.own:.2f}, and {each.other:.2f} {each.name}; t {each.t:.1f}",
            )


def _name(path: str) -> str:
    return f" '{path}'" if path else ""
