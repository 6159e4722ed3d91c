"""Rule of sets that draw: what they draw beside their data is drawn anew in each epoch."""

from __future__ import annotations

from sightline.doctor.evidence.programs.drawn import DrawnOnce
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule


@rule(
    "drawn-once",
    "note",
    "data.duplicate_randomness loss.negatives data.sampling",
    holds="a set that draws negatives, noise or crops beside its data draws them anew in each epoch",
    do="draw in __getitem__, or call the method that draws at the start of each epoch; fixed ones may be meant",
)
def drawn_once(drawn: DrawnOnce) -> Fault:
    """Say that what a set draws in its constructor is the same in all epochs."""
    call = drawn.draw
    is_inside = call.function == "__init__"
    name, place = (call.text, "") if is_inside else (call.function, f", in {call.function}()")
    given = f"its constructor is given '{drawn.given}' and calls {call.text}(){place}"
    return Fault(
        f"{drawn.name} draws in its constructor and in no epoch: what {name}() has drawn is the same in all",
        measured=f"{given}; what the set holds and gives is the same in {drawn.epochs} epochs",
        where=FindingLocation(file=call.file, line=call.line, dataset=drawn.name),
    )
