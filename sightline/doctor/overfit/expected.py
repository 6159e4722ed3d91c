"""Observer of a training that checks the config's expectations on the samples of `fit-one`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sightline.config.expectations import Expectation
from sightline.describe.trace import preserve_all_rng_states
from sightline.doctor.overfit.fit_one import FitOptions, make_setup
from sightline.doctor.overfit.layer_trace import ExpectationResult, assert_known_quantity, measure_quantity
from sightline.doctor.overfit.layers import snapshot
from sightline.doctor.overfit.loss_probe import probe_loss
from sightline.engine.build import TrainingSetup
from sightline.engine.records import EvaluationRecord, StepRecord, StopRun

__all__ = ["ExpectationObserver", "expectation_observers"]


def expectation_observers(built: TrainingSetup, *, note: Callable[[str], object]) -> list[ExpectationObserver]:
    """Build the observer of a run whose config has expectations of its training; else an empty list.

    Before the first step every process may check: all have the same weights. Later the first process suffices. `note`
    gets a line about entries that training ignores: those of `share`, which belongs to a complete fit, and those of
    steps after the last. Raises ConfigError for an entry of an unknown output, layer or loss.
    """
    entries = [pair for pair in enumerate(built.config.expect) if pair[1].get("only", "train") == "train"]
    checked = [(index, entry) for index, entry in entries if entry["quantity"] != "share"]
    if ignored := [f"expect.{index}" for index, entry in entries if (index, entry) not in checked]:
        note(f"{', '.join(ignored)}: ignored, share exists only in fit-one")
    last = built.job.num_steps
    for index, entry in checked:
        if entry["step"] > last:
            note(f"expect.{index}: ignored, its step is {entry['step']} and training ends after step {last}")
    return [ExpectationObserver(built, checked)] if checked else []


class ExpectationObserver:
    """Observer that ends a run at the first unmet entry; a resumed run ignores entries of finished steps."""

    may_stop = True

    def __init__(self, built: TrainingSetup, entries: Sequence[tuple[int, Expectation]]) -> None:
        self._built = built
        self._entries = entries
        with preserve_all_rng_states():
            self._bench, _ = make_setup(built, FitOptions())
            self._probe = probe_loss(self._bench)
            assert_known_quantity(built, snapshot(self._bench, built.job, built.job.step), self._probe)

    def assert_begun_well(self) -> None:
        """Raise StopRun for an entry of step 0 that the initial weights of a new run do not meet."""
        self._check_expectations(self._built.job.step)

    def on_step(self, record: StepRecord) -> None:
        self._check_expectations(record.step)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        pass

    def on_end(self, reason: str) -> None:
        pass

    def _check_expectations(self, step: int) -> None:
        due = [(index, entry) for index, entry in self._entries if entry["step"] == step]
        if not due:
            return
        with preserve_all_rng_states():
            model_snapshot = snapshot(self._bench, self._built.job, step)
        results = [
            ExpectationResult(index, entry, measure_quantity(entry, model_snapshot, self._probe))
            for index, entry in due
        ]
        if unmet := [result.line for result in results if not result.is_met]:
            raise StopRun(f"{'; '.join(unmet)}; the run ends; change expect, or set only: fit_one for the entry")
