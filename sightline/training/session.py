"""Training session in a run directory: resume, train, evaluate, save checkpoints, finish."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from sightline.config import read_config, render_config
from sightline.config.plain_values import to_plain
from sightline.contract.errors import CheckpointError, RunError, summarise_error
from sightline.draw.pictures import encode_png
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from sightline.engine.finite_state import FiniteState
from sightline.engine.loggers.mlflow import Mlflow
from sightline.engine.loggers.tensorboard import TensorBoard
from sightline.engine.loggers.wandb import Wandb
from sightline.engine.loop import train
from sightline.engine.observers import EpochTimes, MetricsLog, TrainLog
from sightline.engine.optimizers import format_module_rates, set_momentum
from sightline.engine.records import EvaluationRecord, Observer, Observers, StepRecord
from sightline.runs import checkpoint
from sightline.runs.best_checkpoint import BestCheckpoint, BestCheckpointTracker
from sightline.runs.curves import RESULTS_PICTURE, draw_runs
from sightline.runs.inputs import INPUTS_FILE, inputs_document
from sightline.runs.lineage import LINEAGE_FILE, describe_lineage, describe_stage
from sightline.runs.optimizer_state import optimizer_tensors, restore_optimizer
from sightline.runs.random_states import get_rng_state, set_rng_state
from sightline.runs.run_directory import RunDirectory
from sightline.runs.run_records import CAPTIONS_FILE
from sightline.runs.weights import load_weights, plain_state
from sightline.training.progress import Progress
from sightline.training.stop_request import StopRequest, StopRequestedError
from sightline.workbench.evaluate.documents import evaluation_document

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _SavedState:
    """Part that a resumed run reads of a checkpoint's state; its types are checked first."""

    num_steps: int
    groups: list[dict[str, Any]]
    best: BestCheckpoint
    random: list[dict[str, str]]
    scaler: dict[str, float]
    unwritten: list[dict[str, Any]]
    num_skipped: int
    evaluation_due: bool = False


_SAVED_STATE = TypeAdapter(_SavedState)


def _describe_misfit(error: Exception) -> str:
    """Describe in a few words what a state lacks, or has of another type."""
    if not isinstance(error, ValidationError):
        return summarise_error(error, max_length=200)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3])


class TrainingSession:
    """Session that trains into a run directory, from the start or a checkpoint, to the end or to a signal."""

    def __init__(
        self,
        built: TrainingSetup,
        world: World,
        directory: RunDirectory,
        *,
        stop: StopRequest,
        record: Mapping[str, Any],
        extra_observers: Sequence[Observer] = (),
        final_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
        is_quiet: bool = False,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a session; `final_metrics` computes more metrics of the last weights, on every process.

        `started` is called before the first record of a step or an evaluation is shown.

        `is_cut` is True if a signal ended the last evaluation, so that the processes may be at different steps.
        """
        self.built = built
        self.config = built.config
        self.job = built.job
        self.world = world
        self.directory = directory
        self.stop = stop
        self.record = record
        self.selection = BestCheckpointTracker(built.config)
        self._finite_state = FiniteState(built.job)
        self.metrics_log = MetricsLog(directory, every=self.config.log.every)
        self.observers = Observers([])
        self.extra_observers = tuple(extra_observers)
        self._final_metrics = final_metrics
        self._is_quiet = is_quiet
        self._started = started
        self.is_cut = False
        self._is_evaluation_due = False
        self._latest: tuple[int, Evaluation] | None = None
        self.planned_steps: int | None = None
        self._verified_steps: set[int] = set()

    # --- before -----------------------------------------------------------------------------------------------------

    def start_files(self) -> None:
        """Write config and record of a new run; the config comes last, as it makes the folder a run."""
        if not (self.directory.path / "config.yaml").exists():
            self.directory.write_json("environment.json", self.record)
            self.directory.write_json("facts.json", to_plain(dict(self.built.data.facts)))
            self.directory.write_json(INPUTS_FILE, inputs_document(self.built.data.train.dataset.info))
            if self.built.lineage is not None:
                self.directory.write_json(LINEAGE_FILE, self.built.lineage)
            self.directory.write_text("config.yaml", render_config(self.config, origins=False))

    def start(self) -> None:
        """Start at the first step, and remove lines of an attempt that ended before its first checkpoint."""
        self.directory.remove("final.json")
        self.directory.truncate_lines("metrics.jsonl", after_step=0)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint: weights, optimiser, EMA, best, and the random states of every process."""
        snapshot = checkpoint.load(path)
        job, state = self.job, snapshot.state
        if snapshot.step > job.num_steps:
            raise CheckpointError(f"{path}: is of step {snapshot.step}, after the run's last step {job.num_steps}")
        load_weights(job.model, snapshot.model, where=path)
        job.losses.load(snapshot.losses, where=path)
        restore_optimizer(job.trained_module, job.optimizer, snapshot.optimizer)
        try:
            saved_state = _SAVED_STATE.validate_json(json.dumps(state), strict=True)
            for group, saved in zip(job.optimizer.param_groups, state["groups"], strict=True):
                group["lr"] = saved["lr"]  # every step sets it; a save before the next step has to repeat it
                if "momentum" in saved or "betas" in saved:
                    set_momentum(group, saved["betas"][0] if "betas" in saved else saved["momentum"])
            job.scaler.load_state_dict(state["scaler"])
            self.metrics_log.restore(state["unwritten"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path}/state.json: is not the state of this training: {_describe_misfit(error)}; resume from another "
                "checkpoint"
            ) from error
        if job.ema is not None:
            if snapshot.ema is None:
                raise CheckpointError(f"{path}: contains no EMA of the weights, which train.ema_decay requires")
            load_weights(job.ema, snapshot.ema, where=path)
        if job.losses_ema is not None:
            job.losses_ema.load(snapshot.losses_ema, where=path)
        job.step = self._finite_state.sound_step = snapshot.step
        self.planned_steps = state["num_steps"]
        self._verified_steps.add(snapshot.step)
        self.selection.best = saved_state.best
        job.num_skipped = saved_state.num_skipped
        if len(state["random"]) == self.world.size:
            set_rng_state(state["random"][self.world.rank])
        else:
            self.world.rank_zero_only(logger.warning)(
                "resume-other-size: saved by %d processes, resumed by %d: data order is the same, the random numbers "
                "of dropout are not",
                len(state["random"]),
                self.world.size,
            )
        self.world.barrier("checkpoint read")
        self.directory.remove("final.json")
        rewind = self.world.rank_zero_only(checkpoint.rewind)
        rewind(self.directory.path, step=snapshot.step, assert_own=self.directory.assert_lock_held)
        self._is_evaluation_due = state.get("evaluation_due", False)
        # Steps that were unwritten when the checkpoint was saved may have been written by the run as it ended.
        last_written_step = snapshot.step - bool(state["unwritten"])
        split = (
            "train" if self._is_evaluation_due and last_written_step == snapshot.step else None
        )  # its own line may be there
        self.directory.truncate_lines("metrics.jsonl", after_step=last_written_step, last_split=split)

    def update_config(self) -> None:
        """Write into the config of a resumed run where its data lie now, and its later end."""
        recorded, now = read_config(self.directory.path / "config.yaml"), self.config.train
        length = replace(recorded.train, epochs=now.epochs, steps=now.steps, early_stopping=now.early_stopping)
        texts = [
            render_config(config, origins=False)
            for config in (recorded, replace(recorded, train=length, data=self.config.data))
        ]
        if texts[0] != texts[1]:
            self.directory.write_text("config.yaml", texts[1])

    def start_summary(self) -> list[str]:
        """Describe this stage before it starts: source of its weights, learning rates of its modules."""
        built = self.built
        lines = [describe_stage(self.config, built.job.model)]
        lines += [f"losses that learn: {built.job.losses}"] if built.job.losses else []
        if built.lineage is not None:
            lines += [describe_lineage(built.lineage), f"init from {built.lineage['from']}: {built.init_report}"]
            lines += [f"stages: {built.lineage['unknown']}"] if built.lineage["unknown"] else []
        return lines + format_module_rates(built.module_rates)

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any] | None:
        """Train to the end, evaluate the last weights on the test split, and return the document of `final.json`.

        Returns None if a signal stopped the run.
        """
        is_stopped = bool(self.stop) and self.world.size == 1  # several processes agree on a stop in a step
        self.stop.begin_steps()
        self.observers = Observers(self.world.rank_zero_only(self._default_observers)() or [])
        reason = "failed"
        try:
            logger.info(
                "%s: %d samples, %d steps from step %d, %d process(es), device %s",
                self.config.name,
                len(self.built.data.train.indices),
                self.job.num_steps,
                self.job.step,
                self.world.size,
                self.world.device,
            )
            lineage = self.built.lineage or {"differences": []}
            for line in [*self.start_summary(), *(f"stages differ: {line}" for line in lineage["differences"])]:
                logger.info("%s", line)
            if self._is_evaluation_due:
                logger.info("step %d: its evaluation was not finished; evaluating it now", self.job.step)
                self._evaluate()
                self._save()
            if is_stopped and self.job.step < self.job.num_steps:
                self._save()
            elif not self.selection.is_stale:
                train(self.job, self.world, self._on_step_end, self.stop, self._is_read_after)
            if early := self.early_end:
                logger.info("early-stopping: %s", early)
            final = self._finish() if self.job.step == self.job.num_steps or self.selection.is_stale else None
            if final is None:
                reason = f"stopped by signal {self.stop.signal} after step {self.job.step}; state saved"
            else:
                reason = "done"
            return final
        finally:
            self.observers.on_end(reason)

    def _default_observers(self) -> list[Observer]:
        log, path, assert_own = self.config.log, self.directory.path, self.directory.assert_lock_held
        observers: list[Observer] = [TrainLog(path / "train.log"), EpochTimes(), self.metrics_log]
        if not self._is_quiet:
            observers.append(Progress(metric=self.config.evaluate.metric))
        if log.tensorboard:
            observers.append(TensorBoard(path, every=log.every, assert_own=assert_own))
        if log.wandb != "off":
            observers.append(
                Wandb(
                    path,
                    project="sightline",
                    name=self.config.name,
                    mode=log.wandb,
                    config=to_plain(self.config),
                    every=log.every,
                    assert_own=assert_own,
                )
            )
        if log.mlflow is not None:
            observers.append(
                Mlflow(
                    path,
                    uri=log.mlflow,
                    name=self.config.name,
                    config=to_plain(self.config),
                    text=render_config(self.config, origins=False),
                    every=log.every,
                    unwritten=self.metrics_log.state(),
                    assert_own=assert_own,
                )
            )
        return [*observers, *self.extra_observers]

    def _on_step_end(self, record: StepRecord, stop_requested: bool) -> bool:
        self._started()
        self.observers.on_step(record)
        is_evaluated, is_saved = self._find_dues(record.step)
        if is_evaluated:
            self._save(is_evaluation_due=True)  # even if the evaluation fails, the weights of this step are saved
            self._evaluate()
        if is_evaluated or is_saved or stop_requested:
            self._save()
        return stop_requested or self.selection.is_stale

    @property
    def early_end(self) -> str:
        """Why the training ends before its last step; empty where it does not."""
        return self.selection.describe_early_end(self.job.step, self.job.num_steps)

    def _find_dues(self, step: int) -> tuple[bool, bool]:
        """Return whether an evaluation and a checkpoint are due after so many steps."""
        config = self.config
        num_epochs, within = divmod(step, self.job.stream.plan.steps_per_epoch)
        is_evaluated = step == self.job.num_steps or (within == 0 and num_epochs % config.evaluate.every == 0)
        every_steps = config.checkpoint.every_steps
        is_saved = every_steps is not None and step % every_steps == 0
        return is_evaluated, is_saved or (within == 0 and num_epochs % config.checkpoint.every == 0)

    def _is_read_after(self, step: int) -> bool:
        """Return True if the numbers of a step are read at once: those that are logged, evaluated or saved."""
        return step % self.config.log.every == 0 or any(self._find_dues(step))

    def _evaluate(self) -> None:
        job, config = self.job, self.config
        with self._evaluation_state():
            evaluation = self.built.selection_evaluator(
                job.evaluation_model, self.world, pictures=self._are_pictures_read()
            )
        self._started()  # an evaluation that a stopped run left open comes before its first step
        self._latest = (job.step, evaluation)
        self.selection.take(job.step, evaluation.metrics)
        self.observers.on_evaluation(
            EvaluationRecord(
                step=job.step,
                epoch=job.stream.plan.compute_epoch(job.step - 1),
                split="test-selected" if config.evaluate.select == "test" else self.built.data.selection.split,
                metrics=evaluation.metrics,
                losses=evaluation.losses,
                seconds=evaluation.seconds,
                num_samples=evaluation.num_samples,
                is_best=self.selection.is_new,
                pictures=evaluation.pictures,
                phase_seconds=evaluation.phase_seconds,
            )
        )

    @contextlib.contextmanager
    def _evaluation_state(self) -> Iterator[None]:
        """Context for evaluation: buffers equal on all processes, losses in evaluation mode with their EMA, if any."""
        job = self.job
        self.world.broadcast_buffers(job.evaluation_model)
        self.world.broadcast_buffers(job.losses)
        with job.losses.evaluation_mode(job.losses_ema):
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"step {job.step}: the GPU's memory is full in an evaluation; lower evaluate.batch_size"
                ) from error

    def _save(self, *, is_evaluation_due: bool = False) -> None:
        """Save a checkpoint; if its evaluation is due, it is saved again afterwards, with the result.

        The second save writes the state alone: files of tensors are the first one's. A run that is killed between them
        resumes from the first, and evaluates before it trains. Raises NonFiniteStateError, on all processes alike,
        instead of saving what is no longer finite.
        """
        job, world = self.job, self.world
        world.broadcast_buffers(job.model)
        world.broadcast_buffers(job.losses)
        if job.ema is not None:
            world.broadcast_buffers(job.ema)
        self._finite_state.assert_finite()
        random_states = world.gather_text(json.dumps(get_rng_state()), operation="random states")
        world.rank_zero_only(self._write_checkpoint)(random_states, is_evaluation_due=is_evaluation_due)
        self.selection.is_new = False
        world.barrier("checkpoint saved")

    def _write_checkpoint(self, random_states: Sequence[str], *, is_evaluation_due: bool) -> None:
        job = self.job
        state = {
            "num_steps": job.num_steps,
            "epoch": job.epoch,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in job.optimizer.param_groups],
            "best": self.selection.to_dict(),
            "random": [json.loads(text) for text in random_states],
            "scaler": job.scaler.state_dict(),
            "num_skipped": job.num_skipped,
            "unwritten": self.metrics_log.state(),
            "evaluation_due": is_evaluation_due,
            "versions": {"torch": torch.__version__},
        }
        snapshot = checkpoint.Snapshot(
            step=job.step,
            model=plain_state(job.model),
            optimizer=optimizer_tensors(job.trained_module, job.optimizer),
            ema=None if job.ema is None else plain_state(job.ema),
            state=state,
            losses=job.losses.plain_state(),
            losses_ema=None if job.losses_ema is None else job.losses_ema.plain_state(),
        )
        checkpoint.save(
            self.directory.path,
            snapshot,
            keep_last=self.config.checkpoint.keep_last,
            is_best=self.selection.is_new,
            verified_steps=self._verified_steps,
            assert_own=self.directory.assert_lock_held,
        )
        self._verified_steps.add(job.step)

    def _are_pictures_read(self) -> bool:
        """Return True if an observer may read the pictures of an evaluation now, or the run keeps them as its last."""
        log, job = self.config.log, self.job
        may_be_last = job.step == job.num_steps or self.config.train.early_stopping is not None
        is_kept = may_be_last and self._is_selected_on_test()
        is_logged = log.tensorboard or log.wandb != "off" or log.mlflow is not None
        return (
            is_kept or is_logged or any(getattr(observer, "reads_pictures", True) for observer in self.extra_observers)
        )

    def _is_selected_on_test(self) -> bool:
        part, selection = self.built.data.test, self.built.data.selection
        return selection.split == part.split and selection.dataset is part.dataset

    def _finish(self) -> dict[str, Any] | None:
        """Evaluate the last weights and write final.json; None if a signal came first: a resumed run will evaluate."""
        try:
            with self.stop.raise_on_signal(then="the state is saved; ending"):
                final = self._evaluate_last()
        except StopRequestedError:
            self.is_cut = True
            return None
        captions = {}
        for picture in final.pictures:
            name = re.sub(r"[^\w .-]+", "_", picture.name)[:100].strip("._ ") or "picture"  # a plugin's may be anything
            self.directory.write_bytes(f"predictions/{name}.png", encode_png(picture.pixels))
            captions[f"{name}.png"] = picture.caption
        if captions:
            self.directory.write_json(CAPTIONS_FILE, captions)
        if self.config.log.curves and self.directory.is_writer:
            self.directory.write_text(RESULTS_PICTURE, draw_runs([self.directory.path]))
        data = self.built.data
        document = evaluation_document(self.config, final, data.test, "last", facts=data.facts)
        if self.job.step < self.job.num_steps:
            document["ended_early"] = {"step": self.job.step, "of": self.job.num_steps}
        self.directory.write_json("final.json", document)  # last: a run that has it is finished
        return document

    def _evaluate_last(self) -> Evaluation:
        if self._is_selected_on_test() and self._latest is not None and self._latest[0] == self.job.step:
            final = self._latest[1]  # these weights were just evaluated on this split
        else:
            with self._evaluation_state():
                final = self.built.test_evaluator(self.job.evaluation_model, self.world, pictures=True)
        if self._final_metrics is None:
            return final
        return replace(final, metrics={**final.metrics, **self._final_metrics(self.job.evaluation_model)})
