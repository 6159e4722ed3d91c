"""A run's frozen network on a config's data, and its twins with random weights."""

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
"""The folder of a run that features are kept in."""

_OF_MODEL = "model."


@dataclass(frozen=True, eq=False)
class ProbedRun:
    """A run, ready to be probed: `config` builds its network, `data` is what it is probed on.

    `learnt` is the config that it was trained by; the two differ by overrides of the model alone. `is_test_selected`
    is whether the test part chose the checkpoint.
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
        """The network with the weights of the checkpoint, in evaluation mode."""
        model = open_run(self.run, config=self.config, checkpoint=str(self.checkpoint), world=world).model
        get_encode(model)
        return model

    @property
    def recipe(self) -> EncoderRecipe:
        """How clouds become features here."""
        return EncoderRecipe(self.config.model, self.config.train.precision)


@dataclass(frozen=True, eq=False)
class FeatureComparison:
    """Features by the run's weights, and by random ones of each seed."""

    trained: FeatureSplit
    random: Mapping[int, FeatureSplit]


def open_probed(
    run: Path, *, checkpoint: str, data: Path | None, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()
) -> ProbedRun:
    """A run on the data of the config at `data`, or on its own.

    Overrides of `model.` change the run's network (its number of neighbours, for one), others the config of the data.
    Raises UserError for what is not a run, and ConfigError for data that does not go with it.
    """
    trained = open_run(run, checkpoint=checkpoint, plugins=plugins)
    learnt = config = trained.config
    of_model = [each for each in overrides if each.strip().startswith(_OF_MODEL)]
    others = [each for each in overrides if each not in of_model]
    if of_model:
        config = read_config(run / "config.yaml", of_model)
    facts = trained.facts
    opened = open_data(read_config(config_path_of_run(run if data is None else data), others))
    ours, theirs = facts.get("in_channels"), opened.facts.get("in_channels")
    if ours != theirs:
        raise ConfigError(f"{run}: was trained on {ours} channels a point; the data to probe on has {theirs}")
    lineage = read_lineage(run)
    remarks = [f"warning: {line}" for line in trained.notes]
    remarks += [] if lineage is None else [describe_lineage(lineage)]
    weights = trained.checkpoint_path.resolve()
    is_test_selected = checkpoint != "last" and learnt.evaluate.select == "test" and weights == _best_of(run)
    if is_test_selected:
        remarks.append(
            "warning: the test part chose the run's best checkpoint (test-selected); 'last' was chosen by none"
        )
    remarks += warnings_on_data(learnt, read_inputs(run, learnt), config.model, opened)
    if opened.left_out:
        remarks.append(f"not applied, for they make pairs: transforms.evaluate {', '.join(opened.left_out)}")
    return ProbedRun(run, weights, config, learnt, facts, opened, is_test_selected, tuple(remarks))


def _best_of(run: Path) -> Path | None:
    best = run / "checkpoints" / "best"
    return best.resolve() if best.exists() else None


def extract_with_random_baselines(
    probed: ProbedRun, world: World, *, num_random: int, cache: Path | None = None
) -> FeatureComparison:
    """Features of both parts by the run's weights and by as many random ones, seeded by the numbers after its own."""
    kept = FeatureCache(probed.run / CACHE if cache is None else cache)
    trained = extract_split(probed.network(world), probed.recipe, probed.data, world, cache=kept)
    seeds = range(probed.config.seed + 1, probed.config.seed + 1 + num_random)
    random = {}
    for seed in seeds:
        model = random_model(probed.config, probed.facts, world, seed=seed)
        random[seed] = extract_split(model, probed.recipe, probed.data, world, cache=kept)
    return FeatureComparison(trained, random)
