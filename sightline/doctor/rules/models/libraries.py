"""Rule of the libraries that compute a model."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.evidence.models.libraries import MetFault
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule


@rule(
    "library-fault",
    "note",
    "sys.environment model.numerics",
    holds="versions of libraries whose numbers are right for the layers of the model",
    do="follow the remedy of the finding, or install another version",
)
def library_fault(library_faults: list[MetFault]) -> Iterator[Fault]:
    """Report what the installed versions are known to compute wrongly for a layer of the model."""
    for met in library_faults:
        yield Fault(
            f"{met.fault.library} {met.version}: {met.fault.what}",
            measured=f"the layer '{met.layer}' {met.fault.seen}; seen in {met.fault.first} ({met.fault.source})",
            action=met.fault.remedy,
            where=FindingLocation(layer=met.layer or None),
        )
