"""Evaluation of a trained run, and scoring of prediction files, without printing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import DataError, UserError
from sightline.contract.model import Model
from sightline.contract.plugins import load_plugins
from sightline.doctor.finding import Finding
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.process_inputs import describe_command
from sightline.engine.run_data import DataSubset, build_part
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.run_files import RunFiles
from sightline.store.loading.batch_reader import BatchReader
from sightline.training.config_source import ConfigSource
from sightline.training.probe_metrics import probe_metrics
from sightline.workbench.check.other_set_rules import CODE, CloudSample, compare_sets, sample_clouds
from sightline.workbench.evaluate.documents import evaluation_document, score_document
from sightline.workbench.evaluate.scoring import find_scoring
from sightline.workbench.evaluate.surroundings import evaluate_with_surroundings

if TYPE_CHECKING:
    import torch
from sightline.training.evaluation_settings import assert_about_evaluation, override_evaluation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class RunEvaluation:
    """Figures of an evaluation or of scored files; `document` is what the command writes with `--json`."""

    title: str
    document: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures by name."""
        metrics: Mapping[str, float] = self.document["metrics"]
        return metrics

    @property
    def per_class(self) -> Mapping[str, Mapping[str, float]]:
        """The figures of each class or joint."""
        rows: Mapping[str, Mapping[str, float]] = self.document["per_class"]
        return rows

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        samples = self.document["data"]["num_samples"]
        return f"RunEvaluation({self.title}, {samples} samples: {figures})"


def evaluate_run(
    path: Path,
    checkpoint: str,
    *,
    data: ConfigSource | None,
    overrides: Sequence[str],
    plugins: Sequence[Path],
    device: str | torch.device,
) -> RunEvaluation:
    """Evaluate a checkpoint of a run on its test split, or on that of another config.

    Raises UserError for a key that defines the training, DataError for data unlike those of the training.
    """
    files = RunFiles(path)
    for line in files.check_plugins(load_plugins(plugins)):
        logger.warning("%s", line)
    assert_about_evaluation(overrides, files.config.task, verb="evaluate", also=("metrics",))
    source = Path(data) if isinstance(data, str) else data
    config = override_evaluation(files, overrides, source)
    with start_world(device=device, describe=partial(describe_command, "evaluate", config)) as world:
        run = open_run(files, config=config, checkpoint=checkpoint, world=world)
        set_backends(config.train)
        part = run.data.test if data is None else build_part(config, "test")
        if config.data != files.config.data:
            findings = compare_training_data(run, files, part, note=logger.warning)
            errors = [finding for finding in findings if finding.severity == "error"]
            if errors:
                raise DataError(f"{errors[0]}; to evaluate it anyway: 'checks.skip=[{CODE}]'")
            for finding in findings:
                logger.warning("%s", finding)
        _warn_of_batch_mates(run.model, min(config.evaluate.batch_size, len(part.indices)))
        evaluation = evaluate_with_surroundings(run, part)
        more = probe_metrics(config, world, logger.info, run.model)
        evaluation = dataclasses.replace(evaluation, metrics={**evaluation.metrics, **more})
    document = evaluation_document(config, evaluation, part, checkpoint, facts=run.facts)
    document |= {"overrides": list(overrides)} if overrides else {}
    return RunEvaluation(f"{path}, {checkpoint} on {part.split}", document)


def _warn_of_batch_mates(model: object, batch_size: int) -> None:
    """Warn of batches of several samples for a model whose outputs then depend on which ones these are."""
    if batch_size > 1 and isinstance(model, Model) and model.batch_dependence:
        logger.warning(
            "batch-mates: what the model returns for a sample depends on the %d others of its batch, as %s; set "
            "evaluate.batch_size=1",
            *(batch_size - 1, model.batch_dependence),
        )


def score_predictions(path: Path, config: RunConfig) -> RunEvaluation:
    """Score prediction files on the test split of a config's data; notes are logged."""
    dataset = registry.data.build(config.data, facts={"split": "test"})
    part = DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test")
    scored = find_scoring(dataset.info).score(part, config.metrics, path)
    for note in scored.notes:
        logger.warning("%s", note)
    return RunEvaluation(f"{path} on test", score_document(config.data, part, path, scored))


def compare_training_data(
    run: OpenRun, files: RunFiles, part: DataSubset, *, note: Callable[[str], object]
) -> Sequence[Finding]:
    """Compare data of another config with the training data of a run: findings on how they differ.

    Training data that cannot be read are replaced by the statistics that the run recorded; `note` receives that.
    """
    config, trained = run.config, files.config
    if CODE in config.checks.skip:
        return ()
    name = f"{trained.data.name}/train"
    try:
        training_inputs = sample_clouds(build_part(trained, "train"), trained, is_training=True)
    except UserError:
        training_inputs = CloudSample(files.inputs, name)
        note(f"{name}, which the run was trained on, cannot be read; the recorded statistics of the run are compared")
    origin = config.data.origins.get("root", config.data.location)
    findings = compare_sets(training_inputs, sample_clouds(part, config))
    locations = (dataclasses.replace(finding.where, file=origin.source, line=origin.line) for finding in findings)
    return [dataclasses.replace(finding, where=location) for finding, location in zip(findings, locations, strict=True)]
