"""Rules of stated lengths: they count what the padding leaves, from the place where a series begins."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.evidence.models.lengths import Stated
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule


@rule(
    "padded-points",
    "warning",
    "data.padding",
    holds="the stated length of a series is where its padding begins",
    do="state the lengths before padding, and pad behind the values: pad_sequence(rows, batch_first=True)",
)
def lengths_of_padding(stated_lengths: list[Stated]) -> Iterator[Fault]:
    """Name the lengths that count padding, and those of series that are padded before their values."""
    for each in stated_lengths:
        name = f" {each.path}" if each.path else ""
        if each.kind == "counted":
            yield Fault(
                f"the stated lengths count the padding of the input{name}",
                measured=f"'{each.numbers}' is {each.lengths[0]} for each series of each batch, of which "
                f"{min(each.padding)} to {max(each.padding)} places are filled with one number at the end",
            )
        else:
            yield Fault(
                f"the input{name} is padded before its values, and the model reads lengths from the front",
                measured=f"{min(each.padding)} to {max(each.padding)} places are filled at the front, as many as "
                f"'{each.numbers}' leaves; outputs of these series do not move with their last values",
            )
