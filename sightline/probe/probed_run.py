"""Run to probe: its frozen network on a config's data, compared with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sightline.config import RunConfig, read_config
from sightline.engine.distributed import World
from sightline.engine.run_loading import config_path_of_run, open_run
from sightline.errors import ConfigError
from sightline.probe.cache import FeatureCache
from sightline.probe.data_mismatch import warnings_on_data
from sightline.probe.features import get_encode
from sightline.probe.probed_data import EncoderRecipe, FeatureSplit, ProbedData, extract_split, open_data, random_model
from sightline.runs.inputs import read_inputs
from sightline.runs.lineage import describe_lineage, read_lineage

__all__ = ["CACHE", "FeatureComparison", "ProbedRun", "extract_with_random_baselines", "open_probed"]

CACHE = "features"
"""Folder of cached features in a run."""

_MODEL_PREFIX = "model."


@dataclass(frozen=True, eq=False)
class ProbedRun:
    """Run to probe: `config` builds its network, `data` is the data of the probe.

    `training_config` is the config of its training; the two differ only by overrides of the model. `is_test_selected`:
    the checkpoint was selected on the test split.
    """

    run: Path
    checkpoint: Path
    config: RunConfig
    training_config: RunConfig
    facts: Mapping[str, Any]
    data: ProbedData
    is_test_selected: bool
    notes: tuple[str, ...]

    def network(self, world: World) -> nn.Module:
        """Load the network with the weights of the checkpoint, in evaluation mode."""
        model = open_run(self.run, config=self.config, checkpoint=str(self.checkpoint), world=world).model
        get_encode(model)
        return model

    @property
    def recipe(self) -> EncoderRecipe:
        """Settings of the encoder: model and number format."""
        return EncoderRecipe(self.config.model, self.config.train.precision)


@dataclass(frozen=True, eq=False)
class FeatureComparison:
    """Features by the run's weights, and by random weights of each seed."""

    trained: FeatureSplit
    random: Mapping[int, FeatureSplit]


def open_probed(
    run: Path, *, checkpoint: str, data: Path | None, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()
) -> ProbedRun:
    """Open a run to probe it on the data of the config at `data`, by default on its own.

    Overrides of `model.` change the run's network (for example its number of neighbours), others the config of the
    data. Raises UserError for a path that is not a run, and ConfigError for data that does not fit it.
    """
    trained = open_run(run, checkpoint=checkpoint, plugins=plugins)
    training_config = config = trained.config
    model_overrides = [override for override in overrides if override.strip().startswith(_MODEL_PREFIX)]
    others = [override for override in overrides if override not in model_overrides]
    if model_overrides:
        config = read_config(run / "config.yaml", model_overrides)
    facts = trained.facts
    opened = open_data(read_config(config_path_of_run(run if data is None else data), others))
    run_channels, data_channels = facts.get("in_channels"), opened.facts.get("in_channels")
    if run_channels != data_channels:
        raise ConfigError(
            f"{run}: was trained on {run_channels} channels a point; the data to probe on has {data_channels}"
        )
    lineage = read_lineage(run)
    remarks = [f"warning: {line}" for line in trained.notes]
    remarks += [] if lineage is None else [describe_lineage(lineage)]
    weights = trained.checkpoint_path.resolve()
    is_test_selected = (
        checkpoint != "last" and training_config.evaluate.select == "test" and weights == _best_checkpoint(run)
    )
    if is_test_selected:
        remarks.append(
            "warning: the run's best checkpoint was selected on the test split (test-selected); 'last' was not selected"
        )
    remarks += warnings_on_data(training_config, read_inputs(run, training_config), config.model, opened)
    if opened.left_out:
        remarks.append(f"not applied, as they make pairs: transforms.evaluate {', '.join(opened.left_out)}")
    return ProbedRun(run, weights, config, training_config, facts, opened, is_test_selected, tuple(remarks))


def _best_checkpoint(run: Path) -> Path | None:
    best = run / "checkpoints" / "best"
    return best.resolve() if best.exists() else None


def extract_with_random_baselines(
    probed: ProbedRun, world: World, *, num_random: int, cache: Path | None = None
) -> FeatureComparison:
    """Extract features by the run's weights and by `num_random` random ones, with the seeds after the run's own."""
    feature_cache = FeatureCache(probed.run / CACHE if cache is None else cache)
    trained = extract_split(probed.network(world), probed.recipe, probed.data, world, cache=feature_cache)
    seeds = range(probed.config.seed + 1, probed.config.seed + 1 + num_random)
    random = {}
    for seed in seeds:
        model = random_model(probed.config, probed.facts, world, seed=seed)
        random[seed] = extract_split(model, probed.recipe, probed.data, world, cache=feature_cache)
    return FeatureComparison(trained, random)
