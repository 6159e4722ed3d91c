"""A training run from its config: its folder, the checks before, the session, the figures; nothing is printed."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sightline.config import RunConfig
from sightline.describe.mean_pose import pose_baselines
from sightline.engine.build import Data, TrainingSetup, build
from sightline.engine.distributed import World, start_world
from sightline.engine.evaluate import Evaluation
from sightline.engine.failure import exit_process
from sightline.engine.precision import describe_nondeterminism, set_backends
from sightline.engine.resume import RunLocation, create_run_folder, resolve_run_location
from sightline.engine.session import StopRequest, TrainingSession, evaluation_document
from sightline.engine.train import NonFiniteGradientError
from sightline.errors import RunError, UserError
from sightline.optional_members import DataMembers
from sightline.plugins import Plugin
from sightline.regular_files import parse_json, read_regular_file
from sightline.runs.run_directory import collect_environment
from sightline.runs.run_documents import load_document
from sightline.training.final_probe import probe_metrics
from sightline.training.published_results import beside_published

if TYPE_CHECKING:
    from sightline.doctor.core.finding import Finding
    from sightline.doctor.overfit.expected import ExpectationObserver

__all__ = ["Reporter", "TrainResult", "restore_signal_handlers", "train_run"]

logger = logging.getLogger(__name__)


class Reporter:
    """Receives what a run reports as it goes, on the first process alone. This one ignores all of it."""

    def note(self, text: str) -> None:
        """One or more lines for a person."""

    def findings(self, findings: Sequence[Finding]) -> None:
        """What the checks found, notes included, before or after training."""

    def evaluation(self, document: Mapping[str, Any], *, title: str, dataset: object) -> None:
        """The figures of the last weights, as `final.json` holds them, with the baselines of the data."""

    def finished(self, document: Mapping[str, Any]) -> None:
        """The run is finished, now or since before, and these are its figures."""


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training run.

    `path` is its folder, None where an error among `findings` kept it from starting. `document` holds the figures of
    the last weights where the run is finished, on the first process. `stopped_by` is the signal that ended it early;
    its state is saved, and `resume="auto"` continues it.
    """

    path: Path | None
    findings: tuple[Finding, ...] = ()
    document: Mapping[str, Any] | None = None
    stopped_by: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its last step and was evaluated."""
        return self.path is not None and self.stopped_by is None

    @property
    def exit_code(self) -> int:
        """The exit code of `sightline train`: 0, 1 where it was kept from starting, 128 and the signal's number."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 0 if self.is_finished else 1


def train_run(
    config: RunConfig,
    *,
    plugins: Sequence[Plugin] = (),
    out: Path | None = None,
    resume: str | None = None,
    checks: bool = True,
    device: str = "auto",
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
    shows_progress: bool = False,
) -> TrainResult:
    """Train a config, or resume its run, in this process and in those that a launcher started beside it.

    The run goes to `out`, without it to a new folder `runs/<name>/<number>`; `resume` is `auto`, a run directory or a
    checkpoint. While it trains, SIGTERM and SIGINT save its state and end it; their handlers are restored afterwards,
    except with a `stop` of the caller's own, which goes on listening. Standard error gets the progress of steps where
    `shows_progress`. Raises UserError, ConfigError, DataError or CheckpointError for what cannot start, RunError for
    what fails.
    """
    is_main = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    with contextlib.ExitStack() as stack:
        if stop is None and is_main:
            stack.enter_context(restore_signal_handlers())
        asked = stop or StopRequest()
        world = stack.enter_context(start_world(device=device, timeout_s=config.distributed.timeout_s))
        if is_main:  # not before: a signal ends a process that still waits for the others
            asked.install_handlers(is_acknowledged=shows_progress and world.size == 1)
        run = _TrainRun(config, plugins, world, reporter or Reporter(), asked, checks, is_quiet=not shows_progress)
        return run(out=out, resume=resume)


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Afterwards a signal does what it did before: between two runs it ends the program, not the run that is over."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _TrainRun:
    """A training run, from its folder to its figures, on one of its processes."""

    def __init__(
        self,
        config: RunConfig,
        plugins: Sequence[Plugin],
        world: World,
        reporter: Reporter,
        stop: StopRequest,
        has_checks: bool,
        *,
        is_quiet: bool,
    ) -> None:
        self._config = config
        self._plugins = plugins
        self._world = world
        self._reporter = reporter
        self._note = world.rank_zero_only(reporter.note)
        self._stop = stop
        self._has_checks = has_checks
        self._is_quiet = is_quiet

    def __call__(self, *, out: Path | None, resume: str | None) -> TrainResult:
        config, world = self._config, self._world
        place = resolve_run_location(config, self._plugins, world, out=out, resume=resume)
        for line in place.notes:
            self._note(line)
        if place.is_finished:
            assert place.path is not None, "what is finished lies somewhere"
            return TrainResult(Path(place.path), document=world.rank_zero_only(self._repeat_figures)(Path(place.path)))
        set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
        built = build(config, world, is_resumed=bool(place.checkpoint))
        findings = self._preflight(built)
        if any(finding.severity == "error" for finding in findings):
            return TrainResult(None, findings)
        held = self._held(built)
        for each in held if place.checkpoint is None else ():
            each.assert_begun_well()
        path = create_run_folder(place, config, world)
        directory = world.run_directory(path)
        with directory.lock():
            world.rank_zero_only(place.assert_unchanged)(path)
            record = collect_environment() | {
                "plugins": [plugin.record() for plugin in self._plugins],
                "checked": self._has_checks,
                "num_processes": world.size,
                "data": DataMembers.fingerprint.get(built.data.train.dataset),
            }
            session = TrainingSession(
                built,
                world,
                directory,
                stop=self._stop,
                record=record,
                extra_observers=held,
                final_metrics=partial(probe_metrics, config, world, directory, self._reporter.note),
                is_quiet=self._is_quiet,
            )
            self._begin(session, place, findings)
            result = self._train(session, findings)
        if session.is_cut and world.size > 1:
            exit_process(
                result.exit_code
            )  # the others may wait in a collective of what was cut off, and end by the signal
        return result

    def _repeat_figures(self, path: Path) -> Mapping[str, Any]:
        final = path / "final.json"
        length = self._config.train
        key, value = ("epochs", length.epochs) if length.steps is None else ("steps", length.steps)
        self._reporter.note(
            f"{path}: this run is finished; nothing to do. Figures: {final}. To train it longer, name a later end: "
            f"sightline train {path} --resume auto train.{key}={2 * value} (now {value})"
        )
        document = load_document(final)
        self._reporter.finished(document)
        return document

    def _preflight(self, built: TrainingSetup) -> tuple[Finding, ...]:
        """Findings of the quick checks, reported by the first process; the same on every process."""
        from sightline.doctor.suite import run_quick

        if not self._has_checks:
            self._note("checks skipped (--no-check); the run records that")
            return ()
        findings = tuple(run_quick(built, self._world))
        self._world.rank_zero_only(self._reporter.findings)(findings)
        return findings

    def _held(self, built: TrainingSetup) -> list[ExpectationObserver]:
        """What holds the run to the config's `expect`."""
        if not built.config.expect:
            return []
        from sightline.doctor.overfit.expected import expectation_observers

        return expectation_observers(built, note=self._note)

    def _begin(self, session: TrainingSession, place: RunLocation, findings: Sequence[Finding]) -> None:
        """The files that a session starts with, and the step that it starts from."""
        directory = session.directory
        session.start_files()
        for plugin in self._plugins:
            directory.write_text(f"plugins/{plugin.path.name}", plugin.text)
        directory.append_line("sessions.jsonl", {**session.record, "resumed": place.checkpoint})
        directory.write_json("findings.json", [finding.to_dict() for finding in findings])
        if place.checkpoint:
            self._world.rank_zero_only(self._warn_of_other_data)(session)
            session.resume(Path(place.checkpoint))
        else:
            session.start()
        if place.is_longer:
            self._note(session.extend())
        self._note("\n".join([*session.start_summary(), sample_counts(session.built.data)]))
        resumed = f", resumed at step {session.job.step}" if place.checkpoint else ""
        self._note(f"run directory: {directory.path}{resumed}")

    def _warn_of_other_data(self, session: TrainingSession) -> None:
        """A moved folder has the digest that the run began with; another set, and one prepared again, has not."""
        began = load_document(session.directory.path / "environment.json").get("data")
        if began is not None and began != session.record["data"]:
            logger.warning(
                "data-changed: data.root holds another set, or one prepared again, than this run began with (%.12s, "
                "now %.12s): the figures are of both; if that is not meant, start a new run",
                *(began, session.record["data"]),
            )

    def _train(self, session: TrainingSession, findings: tuple[Finding, ...]) -> TrainResult:
        path, job = session.directory.path, session.job
        with self._faults_explained(session):
            final = session.run()
        if final is None:
            done = f"{job.step} of {job.num_steps}"
            self._note(f"stopped after step {done}, state saved; go on with --resume auto --out {path}")
            return TrainResult(path, findings, stopped_by=self._stop.signal or signal.SIGTERM)
        document, later = self._world.rank_zero_only(self._report)(session, final) or (None, ())
        return TrainResult(path, (*findings, *later), document)

    @contextlib.contextmanager
    def _faults_explained(self, session: TrainingSession) -> Iterator[None]:
        """Raises RunError, with the cause and what to do, for what may go wrong in a step or an evaluation."""
        try:
            yield
        except KeyError:
            from sightline.doctor.checks.model.first_evaluation import missing_keys_explained

            with missing_keys_explained(session.config, session.job.model):
                raise
        except NonFiniteGradientError as error:
            from sightline.doctor.checks.optimiser.non_finite import diagnose_non_finite

            finding = diagnose_non_finite(error, self._world)
            session.directory.write_json("findings.json", [finding.to_dict()])
            raise RunError(str(finding)) from error
        except ValueError as error:
            from sightline.doctor.checks.optimiser.non_finite import explain_fault

            found = None if isinstance(error, UserError) else explain_fault(error, session.job)
            if found is None:
                raise
            session.directory.write_json("findings.json", [found.to_dict()])
            raise RunError(str(found)) from error
        except torch.OutOfMemoryError as error:
            step = session.job.step
            raise RunError(f"step {step}: the GPU's memory is full; raise train.micro_batches, same numbers") from error
        except RuntimeError as error:
            named = describe_nondeterminism(error)
            if named is None:
                raise
            raise named from error

    def _report(self, session: TrainingSession, final: Evaluation) -> tuple[dict[str, Any], tuple[Finding, ...]]:
        """The figures of the last weights, and findings on what training left."""
        built, directory, reporter = session.built, session.directory, self._reporter
        test = built.data.test
        document = evaluation_document(built.config, final, test, "last")
        if "mean_error_mm" in document["metrics"]:  # a refiner of centres has no figure to compare with it
            document |= pose_baselines(test, built.data)
        rows = beside_published(built.config, test, final.metrics, which="last", lineage=built.lineage)
        document |= {"published": rows} if rows else {}
        title = f"{built.config.name}: last checkpoint on {test.split}"
        reporter.evaluation(document, title=title, dataset=test.dataset)
        findings = self._look_back(session) if self._has_checks else ()
        directory.assert_lock_held()
        reporter.finished(document)
        reporter.note(f"run directory: {directory.path}")
        return document, findings

    def _look_back(self, session: TrainingSession) -> tuple[Finding, ...]:
        """Findings on what training left, reported and added to findings.json; by this process alone."""
        from sightline.doctor.suite import run_after

        built, directory = session.built, session.directory
        findings = tuple(
            run_after(built, World(device=built.job.device), run=directory.path, first_loss=session.first_loss)
        )
        if findings:
            self._reporter.findings(findings)
            before = parse_json(read_regular_file(directory.path / "findings.json"))
            directory.write_json("findings.json", [*before, *(finding.to_dict() for finding in findings)])
        return findings


def sample_counts(data: Data) -> str:
    """How many samples train, choose the best weights, and are reported on."""
    chosen, test = data.selection, data.test
    held_out = ", held out of the training part" if chosen.dataset is data.train.dataset else ""
    choosing = "" if chosen.split == "test" else f", {len(chosen.indices)} of validation{held_out}"
    return f"samples: {len(data.train.indices)} of training{choosing}" + (
        f", {len(test.indices)} of test" if test.split == "test" else ", no test part"
    )
