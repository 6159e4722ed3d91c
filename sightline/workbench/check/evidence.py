"""What is measured of a run, from which its rules judge: splits and samples, the first step, evaluations, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.config import RunConfig
from sightline.contract.task import Task
from sightline.contract.types import Batch
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import FindingLocation
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.run_data import DataSubset
from sightline.workbench.check.batch_of_one import BatchOfOne, find_batch_of_one
from sightline.workbench.check.context import Context, JudgedMetric, metrics
from sightline.workbench.check.dry_evaluation import DryEvaluation
from sightline.workbench.check.dry_run import DryRun, Outputs
from sightline.workbench.check.sample_statistics import ClassCounts, PartStatistics, distinct_parts
from sightline.workbench.check.targets.reaching import Reaching


def place(part: DataSubset, sample: int | None = None) -> FindingLocation:
    """Return the place of a split, or of a sample of it; the name of its set is added where a finding is located."""
    return FindingLocation(dataset=part.split, sample=sample, config_path="data")


@measure()
def parts(run: Context) -> list[DataSubset]:
    """Return the splits of the run, each once; the first is that of the training."""
    return distinct_parts(run.built.data)


@measure()
def config(run: Context) -> RunConfig:
    """Return the config of the run."""
    return run.config


@measure()
def task(run: Context) -> Task:
    """Return the task of the run."""
    return run.built.job.task


@measure()
def facts(run: Context) -> Mapping[str, Any]:
    """Return what the training's data set states of itself."""
    return run.built.data.facts


@measure()
def plan(run: Context) -> BatchSampler:
    """Return the plan by which steps get their samples."""
    return run.built.job.stream.plan


@measure()
def lone_batch(run: Context) -> BatchOfOne | None:
    """Run the first batch of one sample of the training, if it has one; None where it succeeds."""
    return find_batch_of_one(run.built, run.world)


@measure()
def surveys(run: Context) -> list[PartStatistics]:
    """Return the statistics of the samples of each split."""
    return run.statistics


@measure()
def reaching(run: Context) -> Reaching:
    """Return the targets and inputs of the first samples of training."""
    return run.reaching


@measure()
def class_counts(run: Context) -> list[ClassCounts | None]:
    """Return the counts of classes in each split."""
    return run.class_counts


@measure()
def rehearsal(run: Context) -> DryRun:
    """Take the first step of the run on copies, as far as it succeeds."""
    return run.dry_run


@measure()
def first_step(rehearsal: DryRun) -> DryRun:
    """Return the first step of the run, if it succeeds."""
    if not rehearsal.is_sound:
        raise LeftOutError("the first step fails")
    return rehearsal


@measure()
def untrained_outputs(run: Context, first_step: DryRun) -> tuple[Batch, Outputs]:
    """Return a batch and the outputs for it of a model that neither weights nor a step has trained."""
    if not run.is_fresh:
        raise NotApplicableError("a trained model")
    return run.first_outputs


@measure()
def last_layer(run: Context) -> str | None:
    """Return the name of the last module with parameters of its own; None if there is none."""
    return run.last_layer


@measure()
def evaluations(run: Context) -> list[DryEvaluation]:
    """Evaluate a few samples of each evaluated split on copies."""
    return run.dry_evaluations


@measure()
def judged_metrics(run: Context) -> list[JudgedMetric]:
    """List the metrics of the evaluation that chooses the checkpoint."""
    return list(metrics(run))
