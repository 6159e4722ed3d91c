"""Rule of a loop that goes on from a file: what it holds beside the weights goes on as well."""

from __future__ import annotations

from typing import NamedTuple

from sightline.doctor.evidence.programs.resumes import Continued
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule


class _Kind(NamedTuple):
    says: str
    measured: str
    causes: tuple[str, ...]
    action: str


_KINDS = {
    "optimizer": _Kind(
        "{optimizer} begins without a state, and where the weights were loaded from there is one: '{part}' of {source}",
        "'{part}' has the state of {size} parameters and the settings of {optimizer}, whose state is empty",
        ("optim.state", "ckpt.incomplete_state"),
        "load it, too: optimizer.load_state_dict(saved['{part}']), before the first update",
    ),
    "schedule": _Kind(
        "a schedule begins at its first step, and where the weights were loaded from it has {size}: '{part}' of "
        "{source}",
        "'{part}' has made {size} steps; each schedule of {optimizer} is at step 0, at a rate of {rate:.3g}",
        ("optim.scheduler", "ckpt.incomplete_state"),
        "load it, too: scheduler.load_state_dict(saved['{part}']), after that of the optimizer",
    ),
    "average": _Kind(
        "an average begins with other weights than those in '{part}' of {source}, where the weights were loaded from",
        "a model of the same tensors that the loop writes to, and does not train, has at the first update neither the "
        "weights of '{part}' nor the others there",
        ("ckpt.incomplete_state", "ckpt.stale"),
        "load it, too: average.load_state_dict(saved['{part}']), before the first update",
    ),
}


@rule(
    "lost-state",
    "warning",
    "optim.state optim.scheduler ckpt.incomplete_state ckpt.stale",
    holds="a training that goes on has all that was saved with its weights",
    do="load each part of the file before the first update",
)
def left_in_file(continued: Continued) -> Fault:
    """Name the part that the loop goes on without."""
    kind, words = _KINDS[continued.kind], continued._asdict()
    at_first = "at the first update the weights are those of '{weights}' to the bit; "
    return Fault(
        kind.says.format(**words),
        measured=(at_first + kind.measured).format(**words),
        causes=kind.causes,
        action=kind.action.format(**words),
        evidence={"mode": continued.kind},
    )
