"""Rules of what counts: each class, each range of a target, each sample that rows of a target belong to."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.counted import HiddenPlaces, RowsReach, Silent, Threshold
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_MIN_HIDDEN, _MAX_BOTH = 0.1, 0.8


@rule(
    "loss-form",
    "error",
    "data.ignore_handling data.label_mapping loss.form",
    holds="one ignored label, outside of the classes",
    do="give the label that is no class to the loss as ignore_index, and do not clamp or move the labels before it",
)
def silent_class(silent_classes: list[Silent]) -> Iterator[Fault]:
    """Expect all classes to count where labels that are none do not: one of both is ignored."""
    for label, num, outside, num_outside, number in silent_classes:
        yield Fault(
            f"class {label} does not count in the loss, and {outside}, which is no class, does not either",
            measured=f"no gradient at all {num} places of class {label}, of {number} classes, and at all "
            f"{num_outside} of label {outside}",
        )


@rule(
    "loss-form",
    "warning",
    "data.ignore_handling data.normalisation loss.form",
    holds="a mask of what has a target, at a gap of the targets",
    do="take the mask (target > 0) before the target is standardised",
    is_statistical=True,
)
def masked_range(thresholds: list[Threshold]) -> Iterator[Fault]:
    """Expect what is left out to be holes, not all below a bound; one at 0 or the mean was taken of standardised."""
    for share, highest, lowest, is_standardised in thresholds:
        yield Fault(
            f"targets below {lowest:.3g} do not count in the loss, though they are no holes",
            severity="warning" if is_standardised else "note",  # a range may be asked for
            measured=f"{share:.0%} of the targets that are not 0 give no gradient: all up to {highest:.4g}; all from "
            f"{lowest:.4g} on do",
        )


@rule(
    "exchanged-axes",
    "error",
    "data.pairing data.layout assign.box_format",
    holds="rows of a target that reach the outputs of more samples than one",
    do="write the number of its sample into each row where samples are collated: for i, rows in enumerate(boxes): "
    "rows[:, 0] = i",
)
def rows_of_one_sample(rows_reach: list[RowsReach]) -> Iterator[Fault]:
    """Expect more rows than samples to belong to more than one of them."""
    for path, rows, samples, answering in rows_reach:
        if answering == 1:
            yield Fault(
                f"all rows of a batch's target belong to one sample{f' ({path})' if path else ''}",
                measured=f"{rows} rows for {samples} samples: if their numbers move, the gradients of one sample do",
            )


@rule(
    "still-statistics",
    "warning",
    "model.norm_mode model.frozen_unintended",
    holds="statistics that a training step moves: evaluation computes with them",
    do="write them where self.training is True, by copy_ or in place",
)
def idle_statistics(idle_buffers: list[str]) -> Fault | None:
    """Expect what evaluation reads alone to be written by training."""
    if not idle_buffers:
        return None
    return Fault(
        f"evaluation computes with buffers that training never writes: {', '.join(idle_buffers[:3])}",
        measured="the same bits before and after a pass in training mode; outputs of evaluation depend on them, of "
        "training not",
        where=FindingLocation(layer=idle_buffers[0].rpartition(".")[0] or None),
    )


@rule(
    "loss-form",
    "error",
    "data.pairing loss.form",
    holds="a loss that counts what is hidden from the model, if some of its target is",
    do="bring mask and outputs into the order of the inputs: argsort of the order in which they were shuffled",
    is_statistical=True,
)
def counts_visible(hidden_places: HiddenPlaces) -> Fault | None:
    """Expect what is counted to be what is hidden, or all."""
    places, hidden, counted, both = hidden_places
    if not _MIN_HIDDEN * places < hidden < places or not counted:
        raise NotApplicableError("nothing of the target is hidden from the model")
    if not both or both > _MAX_BOTH * hidden or counted - both < (1 - _MAX_BOTH) * counted:  # none: padding
        return None
    return Fault(
        "the loss counts places that the model has seen, and not all that are hidden from it",
        measured=f"{counted - both} of {counted} places that count are inputs of the model; {both} of {hidden} hidden "
        "ones count",
    )


@rule(
    "label-input",
    "error",
    "data.label_leak model.structure",
    holds="an output of classes does not depend on its own labels",
    do="take the labels out of what the model is given",
)
def reads_labels(read_labels: list[str]) -> Iterator[Fault]:
    """Expect no input that equals the labels, and moves their output."""
    for path in read_labels:
        yield Fault(
            f"the labels are among the inputs{f' ({path})' if path else ''}, and the output depends on them",
            measured="an input with the bits of the target; with those of other samples the output is another",
        )
