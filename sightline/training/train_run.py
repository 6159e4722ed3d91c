"""Training run from a config: run folder, checks, session and results; nothing is printed."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sightline.compression.parametrised import weight_sizes
from sightline.config import RunConfig
from sightline.config.plain_values import list_component_names
from sightline.contract.cell_plugins import describe_modules, record_cells
from sightline.contract.dataset import get_data_digest
from sightline.contract.errors import RunError, UserError
from sightline.contract.plugins import Plugin, plugin_options
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device.numerics import describe_nondeterminism, set_backends
from sightline.engine.distributed import World, start_world
from sightline.engine.failures import describe_failed_kernel, exit_process
from sightline.engine.finite_state import NonFiniteStateError
from sightline.engine.process_inputs import describe_command
from sightline.engine.records import Observer
from sightline.engine.run_data import Data
from sightline.engine.train import NonFiniteGradientError
from sightline.runs import checkpoint
from sightline.runs.environment import collect_environment
from sightline.runs.inputs import CHECKS_FILE
from sightline.runs.run_directory import remove_dead_lock
from sightline.runs.run_documents import load_document, read_lines
from sightline.runs.run_files import RunFiles
from sightline.store.files.image_files import describe_photo_reading
from sightline.training.later_end import describe_later_end, list_later_ends
from sightline.training.mean_pose import pose_baselines
from sightline.training.probe_metrics import probe_metrics
from sightline.training.published_results import list_published
from sightline.training.resume import RunLocation, create_run_folder, resolve_run_location
from sightline.training.run_findings import add_findings, end_findings, read_findings
from sightline.training.session import TrainingSession
from sightline.training.stop_request import StopRequest, StopRequestedError, restore_signal_handlers
from sightline.training.train_result import Reporter, TrainResult

if TYPE_CHECKING:
    from sightline.doctor.evidence.levels import Levels
    from sightline.doctor.finding import Finding
    from sightline.doctor.record import Chance
    from sightline.doctor.watch.watch import Watch

logger = logging.getLogger(__name__)

_NUM_STAGES = 3
"""Parts of a run before its first step is done: what it is made of, the check, and the step."""
_MAX_MEASURED = 400
"""Largest number of steps of a long run that are watched closely; the others are only counted."""


def train_run(
    config: RunConfig,
    *,
    plugins: Sequence[Plugin] = (),
    out: Path | None = None,
    resume: str | None = None,
    checks: bool = True,
    device: str | torch.device = "auto",
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
    shows_progress: bool = False,
) -> TrainResult:
    """Train a config, or resume its run, in this process and those that a launcher started with it.

    The run goes to `out`, without it to a new folder `runs/<name>/<number>`; `resume` is `auto`, a run directory or a
    checkpoint. During training, SIGTERM and SIGINT save its state and end it; their handlers are restored afterwards,
    except for a `stop` of the caller, which stays installed. `observers` receive the records of the run's steps and
    evaluations on the first process. With `shows_progress`, progress is written to standard
    error. Raises UserError, ConfigError, DataError or CheckpointError if the run cannot start, RunError if it fails.
    """
    is_main = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    plugins = (*plugins, *record_cells(list_component_names(config)))
    with contextlib.ExitStack() as stack:
        if stop is None and is_main:
            stack.enter_context(restore_signal_handlers())
        stop_request = StopRequest() if stop is None else stop  # one that is not requested yet is false
        options = {"resume": resume if resume in (None, "auto") else "PATH", "no-check": not checks}
        describe = partial(describe_command, "train", config, **options)
        world = stack.enter_context(
            start_world(device=device, timeout_s=config.distributed.timeout_s, describe=describe)
        )
        if is_main:  # not before: a signal ends a process that still waits for the others
            stop_request.install_handlers(is_acknowledged=shows_progress and world.size == 1)
        run = _TrainRun(
            config,
            plugins,
            world,
            reporter or Reporter(),
            stop_request,
            checks,
            observers=observers,
            is_quiet=not shows_progress,
        )
        try:
            return run(out=out, resume=resume)
        finally:
            run.end_start()


class _TrainRun:
    """Training run on one process, from its folder to its results."""

    def __init__(
        self,
        config: RunConfig,
        plugins: Sequence[Plugin],
        world: World,
        reporter: Reporter,
        stop: StopRequest,
        has_checks: bool,
        *,
        observers: Sequence[Observer],
        is_quiet: bool,
    ) -> None:
        self._observers = tuple(observers)
        self._config = config
        self._plugins = plugins
        self._world = world
        self._reporter = reporter
        self._note = world.rank_zero_only(reporter.note)
        self._tell = world.rank_zero_only(reporter.doing)
        self._stop = stop
        self._has_checks = has_checks
        self._is_quiet = is_quiet
        self._examined: dict[str, Any] = {}
        self._earlier: tuple[Finding, ...] = ()

    def _doing(self, number: int, describe: Callable[[], str] | str) -> None:
        """Tell what is being done, and the how manieth part it is of what comes before the first step."""
        text = describe if callable(describe) else lambda: describe
        self._tell(lambda: f"{number} of {_NUM_STAGES}, {text()}")

    def end_start(self) -> None:
        """Tell that the first step is done, or that there will be none."""
        self._tell(None)

    def __call__(self, *, out: Path | None, resume: str | None) -> TrainResult:
        config, world = self._config, self._world
        location = resolve_run_location(config, self._plugins, world, out=out, resume=resume)
        for line in (*location.notes, *describe_modules(list_component_names(config))):
            self._note(line)
        if location.is_finished:
            assert location.path is not None, "a finished run has a path"
            path = Path(location.path)
            world.rank_zero_only(remove_dead_lock)(path)
            return TrainResult(path, document=world.rank_zero_only(self._report_finished_run)(path))
        set_backends(config.train)
        built = build(
            location.keep_recorded(config), world, is_resumed=bool(location.checkpoint), doing=partial(self._doing, 1)
        )
        _ = built.lineage  # traced before a folder is made: that of the source may be damaged
        for key in ("precision", "batch_size"):
            if getattr(config.train, key) == "auto":
                self._note(f"train.{key}: auto is {getattr(built.config.train, key)} in this run")
        config = built.config
        findings = self._preflight(built)
        if any(finding.severity == "error" for finding in findings):
            return TrainResult(None, findings)
        self._doing(3, "computes the first step")
        path = create_run_folder(location, config, world)
        directory = world.run_directory(path)
        with directory.lock(is_cancelled=lambda: bool(self._stop)):
            world.rank_zero_only(location.assert_unchanged)(path)
            record = collect_environment() | {
                "plugins": [plugin.record() for plugin in self._plugins],
                "checked": self._has_checks,
                "num_processes": world.size,
                "num_parameters": sum(weight_sizes(built.job.model).values()),
                "data": get_data_digest(built.data.train.dataset),
                "photos": describe_photo_reading() if "image" in built.data.train.dataset.info.fields else None,
            }
            session = TrainingSession(
                built,
                world,
                directory,
                stop=self._stop,
                record=record,
                extra_observers=self._observers,
                final_metrics=partial(probe_metrics, config, world, self._reporter.note),
                is_quiet=self._is_quiet,
                started=self.end_start,
            )
            self._begin_session(session, location, findings)
            result = self._train(session, findings)
        if session.is_cut and world.size > 1:
            exit_process(
                result.exit_code
            )  # the others may wait in a collective of the interrupted evaluation, and end by the signal
        return result

    def _report_finished_run(self, path: Path) -> Mapping[str, Any]:
        final, advice = path / "final.json", ""
        if checkpoint.list_checkpoints(path):
            ends = list_later_ends(self._config.train, checkpoint.load(path))
            words = " ".join(f"{key}={later}" for key, (later, _) in ends.items())
            ends_now = ", ".join(str(end) for _, end in ends.values())
            plugins = plugin_options(RunFiles(path).environment.get("plugins", ()), path)
            run = shlex.join([str(path), *plugins])
            advice = (
                f" To train it longer, name a later end: sightline train {run} --resume auto {words} (now {ends_now})"
            )
        self._reporter.note(f"{path}: this run is finished; nothing to do. Figures: {final}.{advice}")
        document = load_document(final)
        self._reporter.final_document(document)
        return document

    def _preflight(self, built: TrainingSetup) -> tuple[Finding, ...]:
        """Run the quick checks, reported by the first process; findings are the same on every process."""
        from sightline.workbench.check.batch_of_one import refuse_batch_of_one
        from sightline.workbench.check.examination import RunExamination
        from sightline.workbench.check.suite import run_quick

        if not self._has_checks:
            self._note("checks skipped (--no-check); the run records that")
            refuse_batch_of_one(built, self._world)
            return ()
        examination = RunExamination()
        self._doing(2, lambda: f"check: {examination.doing}")
        cut: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._world.size == 1:  # several processes end a check together
            cut = self._stop.raise_on_signal(then="ending the check, saving before the first step")
        try:
            with cut:
                findings = tuple(run_quick(built, self._world, examination=examination))
        except StopRequestedError:
            self._has_checks = False
            self._note("the check was stopped; the run records that, and --resume auto begins with a check")
            return ()
        self._examined = examination.to_dict()
        self._world.rank_zero_only(self._reporter.findings)(findings)
        return findings

    def _begin_session(self, session: TrainingSession, location: RunLocation, findings: Sequence[Finding]) -> None:
        """Write the initial files of a session, and start or resume it."""
        directory = session.directory
        session.start_files()
        for plugin in self._plugins:
            for name, content in plugin.files().items():
                directory.write_bytes(f"plugins/{name}", content)
        directory.append_line("sessions.jsonl", {**session.record, "resumed": location.checkpoint})
        if self._examined:
            directory.write_json(CHECKS_FILE, self._examined)
        if location.checkpoint:
            self._world.rank_zero_only(self._warn_of_changes)(session)
            session.resume(Path(location.checkpoint))
            self._earlier = read_findings(directory, session.job.step)
        else:
            session.start()
        directory.write_json("findings.json", [finding.to_dict() for finding in (*findings, *self._earlier)])
        if location.is_longer:
            recorded = RunFiles(directory.path).config
            planned, early_end = session.planned_steps, session.early_end
            self._note(describe_later_end(session.built, recorded, planned_steps=planned, early_end=early_end))
        if location.checkpoint or location.is_longer:
            session.update_config()
        self._note("\n".join([*session.start_summary(), sample_counts(session.built.data)]))
        resumed = f", resumed at step {session.job.step}" if location.checkpoint else ""
        self._note(f"run directory: {directory.path}{resumed}")

    def _warn_of_changes(self, session: TrainingSession) -> None:
        """Warn if the data, or on a CPU the number of threads, differ from the run's first session."""
        files, now = RunFiles(session.directory.path), session.record
        if (change := files.check_data(now["data"])) is not None:
            logger.warning("%s: the run trains on both; if that is not intended, start a new run", change)
        began = files.environment.get("num_threads")
        if self._world.device.type == "cpu" and began not in (None, now["num_threads"]):
            logger.warning(
                "resume-other-threads: begun with OMP_NUM_THREADS=%s, resumed with %s: sums are rounded otherwise, so "
                "that the bits differ from those of a run that was not interrupted",
                *(began, now["num_threads"]),
            )

    def _train(self, session: TrainingSession, findings: tuple[Finding, ...]) -> TrainResult:
        path, job = session.directory.path, session.job
        with self._errors_explained(session), self._watch(session) as watch:
            job.watch = watch
            document = session.run()
            if document is not None and self._has_checks and self._world.size == 1:  # a run that is stopped ends now
                watch.chance_source = partial(_measure_chances, session.built)
        during = (*self._earlier, *watch.findings)
        findings = (*findings, *during)
        if document is None:
            done = f"{job.step} of {job.num_steps}"
            out = shlex.quote(str(path))
            self._note(f"stopped after step {done}, state saved; go on with --resume auto --out {out}")
            return TrainResult(path, findings, stopped_by=self._stop.signal or signal.SIGTERM)
        return TrainResult(path, findings, self._world.rank_zero_only(self._report)(session, document, during))

    def _watch(self, session: TrainingSession) -> Watch:
        """Watch the steps of the session; each finding is logged, and added to findings.json, at its step.

        Without checks, the record of sizes, losses and figures alone is kept: it costs next to nothing.
        """
        from sightline.doctor.watch.watch import EVERY, Watch
        from sightline.training.outcomes import OutcomeObserver, name_sample

        job, directory = session.job, session.directory
        watch = Watch(
            {"": job.model},
            optimizers=[job.optimizer],
            averages=[] if job.ema is None else [job.ema],
            every=max(EVERY, job.num_steps // _MAX_MEASURED),  # a GPU computes such a step anew, ten times as slow
            declared=frozenset(session.config.checks.skip),
            watches_passes=not job.compile,  # torch.compile would trace hooks: losses, gradients and updates are left
            takes_losses=False,
            keeps_record_alone=not self._has_checks,
            name_sample=partial(name_sample, session),
            first_step=job.step,
            receive=partial(add_findings, directory),
        )
        metrics = directory.path / "metrics.jsonl"  # not there before the first lines are written
        lines = read_lines(metrics) if job.step and metrics.exists() else ()
        session.extra_observers += (OutcomeObserver(watch, session, lines),)
        if self._world.size == 1 and self._has_checks:
            watch.level_source = partial(_measure_levels, session.built)
        return watch

    @contextlib.contextmanager
    def _errors_explained(self, session: TrainingSession) -> Iterator[None]:
        """Convert errors of a step or an evaluation to RunError, with cause and remedy."""
        try:
            yield
        except KeyError:
            from sightline.workbench.check.first_step_rules import missing_keys_explained

            with missing_keys_explained(session.config, session.job.model):
                raise
        except (NonFiniteGradientError, NonFiniteStateError) as error:
            from sightline.workbench.check.non_finite import diagnose_non_finite

            finding = diagnose_non_finite(error, self._world)
            end_findings(session, finding)
            raise RunError(str(finding)) from error
        except ValueError as error:
            from sightline.workbench.check.first_step_rules import explain_failure
            from sightline.workbench.check.non_finite import explain_fault

            if "more than 1 value per channel" in str(error):
                raise RunError(f"step {session.job.step}: {error}; {explain_failure(error)[1]}") from error
            diagnosis = None if isinstance(error, UserError) else explain_fault(error, session.job)
            if diagnosis is None:
                raise
            end_findings(session, diagnosis)
            raise RunError(str(diagnosis)) from error
        except torch.OutOfMemoryError as error:
            step = session.job.step
            raise RunError(
                f"step {step}: the GPU's memory is full; raise train.micro_batches, which keeps the results"
            ) from error
        except (RuntimeError, IndexError) as error:
            from sightline.workbench.check.failed_steps import explain_index

            if (out_of_range := explain_index(error, session.job.step)) is not None:
                end_findings(session, out_of_range)
                raise RunError(str(out_of_range)) from error
            failed = describe_failed_kernel(error)
            named = describe_nondeterminism(error) if failed is None else RunError(f"step {session.job.step}: {failed}")
            if named is None:
                raise
            raise named from error

    def _report(
        self, session: TrainingSession, document: dict[str, Any], findings: Sequence[Finding]
    ) -> dict[str, Any]:
        """Report the metrics of the last weights, and what was found in training."""
        built, directory, reporter = session.built, session.directory, self._reporter
        if early := session.early_end:
            reporter.note(f"early-stopping: {early}")
        test = built.data.test
        if "mean_error_mm" in document["metrics"]:  # centre refinement has no metric to compare with it
            document |= pose_baselines(test, built.data)
        config = built.config
        rows = list_published(config.data, test.dataset.info, document["metrics"], model=config.model)
        if rows:
            document |= {"published": rows}
            directory.write_json("published.json", {"rows": rows})
        title = f"{built.config.name}: last checkpoint on {test.split}"
        reporter.evaluation(document, title=title, dataset=test.dataset)
        reporter.findings(findings)
        directory.assert_lock_held()
        reporter.final_document(document)
        command = shlex.join(["sightline", "report", str(directory.path)])
        reporter.note(f"a page with its curves, tables and pictures: {command}")
        reporter.note(f"run directory: {directory.path}")
        return document


def _measure_levels(built: TrainingSetup) -> Levels:
    """Measure the losses of the trained network, of zeros, and of the best constants."""
    from sightline.workbench.check.run_subject import measure_run_levels

    return measure_run_levels(built, built.job.model)


def _measure_chances(built: TrainingSetup) -> list[Chance]:
    """Measure what the trained network knows of its targets, beside one that looks at other samples."""
    from sightline.workbench.check.targets.chance import measure_chances

    return measure_chances(built, built.job.evaluation_model)


def sample_counts(data: Data) -> str:
    """Describe the numbers of samples for training, selection and test."""
    chosen, test = data.selection, data.test
    held_out = ", held out of the training part" if chosen.dataset is data.train.dataset else ""
    choosing = "" if chosen.split == "test" else f", {len(chosen.indices)} of validation{held_out}"
    num_train, repeats = len(data.train.indices), data.train.dataset.repeats
    visits = f" ({num_train // repeats} visited {repeats} times in an epoch)" if repeats > 1 else ""
    return f"samples: {num_train} of training{visits}{choosing}" + (
        f", {len(test.indices)} of test" if test.split == "test" else ", no test part"
    )
