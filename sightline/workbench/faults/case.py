"""Cases: faults with their true cause, and healthy runs that only look odd."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.workbench.check.core.finding import CAUSES
from sightline.workbench.faults.loops import Loop, find_watch
from sightline.workbench.faults.planting import Plant, Planter


@dataclass(frozen=True, kw_only=True)
class HealthyCase:
    """Run on a bench, changed by overrides of its config and by a plant; healthy, though it may look odd."""

    id: str
    title: str
    bench: str
    overrides: tuple[str, ...] = ()
    plant: Plant | None = None

    def plant_into(self, planter: Planter) -> None:
        """Change the bench as the case says."""
        planter.override(*self.overrides)
        if self.plant is not None:
            self.plant(planter)


@dataclass(frozen=True, kw_only=True)
class FaultCase(HealthyCase):
    """Fault in one seam of a bench (or, where our loop cannot have it, of a plain loop), and its true cause.

    `names` is a regular expression: a refusal or a warning that matches it names the cause in words. `pits` are the
    numbers of the pits in notes of real projects (P1 to P98) that it is.
    """

    cause: str
    names: str = ""
    pits: tuple[str, ...] = ()
    loop: Loop | None = None

    def __post_init__(self) -> None:
        assert self.cause in CAUSES, f"case {self.id} has a cause outside the vocabulary: {self.cause}"

    @property
    def needs_watch(self) -> bool:
        """True for a plain loop while there is no `sightline.watch`, which looks into such loops."""
        return self.loop is not None and find_watch() is None
