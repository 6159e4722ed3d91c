"""A training held to what its config expects of it: looks at the samples of `fit-one` at the steps that are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sightline.config.expectations import Expectation
from sightline.describe.trace import preserve_all_rng_states
from sightline.doctor.overfit.fit_one import FitOptions, make_setup
from sightline.doctor.overfit.layer_trace import ExpectationResult, assert_known_quantity, measured_in
from sightline.doctor.overfit.layers import snapshot
from sightline.doctor.overfit.loss_probe import probe_loss
from sightline.engine.build import TrainingSetup
from sightline.engine.records import EvaluationRecord, StepRecord, StopRun

__all__ = ["ExpectationObserver", "expectation_observers"]


def expectation_observers(built: TrainingSetup, *, note: Callable[[str], object]) -> list[ExpectationObserver]:
    """The observer of a run whose config expects something of its training; none of any other.

    Every process may look before the first step: all have the same weights. Afterwards one suffices, the first. `note`
    gets a line on entries that training passes over: those of `share`, which is of a fit to the end, and those of steps
    after the last. Raises ConfigError for an entry of an output, layer or loss that there is not.
    """
    asked = [pair for pair in enumerate(built.config.expect) if pair[1].get("only", "train") == "train"]
    held = [(place, entry) for place, entry in asked if entry["quantity"] != "share"]
    if passed := [f"expect.{place}" for place, entry in asked if (place, entry) not in held]:
        note(f"{', '.join(passed)}: passed over, share is of fit-one alone")
    last = built.job.num_steps
    for place, entry in held:
        if entry["step"] > last:
            note(f"expect.{place}: passed over, its step is {entry['step']} and training ends after step {last}")
    return [ExpectationObserver(built, held)] if held else []


class ExpectationObserver:
    """Ends a run at the first entry that is not met. Entries of steps that a resumed run has done are passed over."""

    may_stop = True

    def __init__(self, built: TrainingSetup, entries: Sequence[tuple[int, Expectation]]) -> None:
        self._built = built
        self._entries = entries
        with preserve_all_rng_states():
            self._bench, _ = make_setup(built, FitOptions())
            self._probe = probe_loss(self._bench)
            assert_known_quantity(built, snapshot(self._bench, built.job, built.job.step), self._probe)

    def assert_begun_well(self) -> None:
        """Raises StopRun for an entry of step 0 that the weights that a new run begins with do not meet."""
        self._hold(self._built.job.step)

    def on_step(self, record: StepRecord) -> None:
        self._hold(record.step)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        pass

    def on_end(self, reason: str) -> None:
        pass

    def _hold(self, step: int) -> None:
        due = [(place, entry) for place, entry in self._entries if entry["step"] == step]
        if not due:
            return
        with preserve_all_rng_states():
            look = snapshot(self._bench, self._built.job, step)
        met = [ExpectationResult(place, entry, measured_in(entry, look, self._probe)) for place, entry in due]
        if missed := [each.line for each in met if not each.is_met]:
            raise StopRun(f"{'; '.join(missed)}; the run ends, set expect otherwise, or only: fit_one for the entry")
