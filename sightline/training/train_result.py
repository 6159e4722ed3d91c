"""Reports of a training while it runs, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.contract.dataset import Dataset
    from sightline.doctor.finding import Finding


class Reporter:
    """Base class of reporters, which receive the progress of a run on the first process; it ignores all of it."""

    def note(self, text: str) -> None:
        """Receive one or more lines for the user."""

    def doing(self, describe: Callable[[], str] | None) -> None:
        """Receive what says what is being done before the first step, at any moment; None when that is done."""

    def findings(self, findings: Sequence[Finding]) -> None:
        """Receive the findings of checks, including notes, before or after training."""

    def evaluation(self, document: Mapping[str, Any], *, title: str, dataset: Dataset) -> None:
        """Receive the metrics of the last weights, as in `final.json`, with the baselines of the data."""

    def final_document(self, document: Mapping[str, Any]) -> None:
        """Receive the metrics of a run that is finished, now or by an earlier session."""


_SHOWN_FIGURES = 4


@dataclass(frozen=True, repr=False)
class TrainResult:
    """Result of a training run.

    `path` is its folder, None where an error among `findings` kept it from starting. `document` holds the figures of
    the last weights where the run is finished, on the first process. `stopped_by` is the signal that ended it early;
    its state is saved, and `resume="auto"` continues it.
    """

    path: Path | None
    findings: tuple[Finding, ...] = ()
    document: Mapping[str, Any] | None = None
    stopped_by: int | None = None

    def __repr__(self) -> str:
        problems = [str(finding) for finding in self.findings if finding.severity in ("error", "warning")]
        if self.path is None:
            return "\n".join(["TrainResult(not started:", *problems, ")"])
        metrics = {} if self.document is None else self.document["metrics"]
        figures = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float)]
        state = [] if self.stopped_by is None else [f"stopped by signal {self.stopped_by}"]
        warnings = [f"{len(problems)} warning{'s' * (len(problems) != 1)}"] if problems else []
        return f"TrainResult({', '.join([str(self.path), *state, *figures[:_SHOWN_FIGURES], *warnings])})"

    @property
    def is_finished(self) -> bool:
        """True if the run reached its last step and was evaluated."""
        return self.path is not None and self.stopped_by is None

    @property
    def exit_code(self) -> int:
        """The exit code of `sightline train`: 0, 1 if it could not start, 128 + the signal's number."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 0 if self.is_finished else 1
