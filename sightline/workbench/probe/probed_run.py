"""Run to probe: its frozen encoder, the data of a config to probe it on, and features by its weights or random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from sightline.config import RunConfig, read_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, DataInfo, SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_data import DataSubset, build_part
from sightline.engine.run_loading import open_run
from sightline.engine.run_model import build_model
from sightline.instrument.random_state import preserve_random_state
from sightline.ops.points.grouping import scale_num_neighbours
from sightline.runs.checkpoint import follow
from sightline.runs.encoder_blocks import find_neighbour_graph
from sightline.runs.preprocessing_signature import (
    is_for_pairs,
    keep_normalising,
    preprocessing_signature,
    read_fields,
    signature_differences,
)
from sightline.runs.run_files import RunFiles, config_path_of_run
from sightline.workbench.probe.features import FeatureSplit, extract, get_encode, label_key
from sightline.workbench.probe.methods import UnprobableError
from sightline.workbench.probe.saved_features import FOLDER, SavedFeatures, make_key

_VIEW_ARGUMENTS = frozenset({"views", "background"})
"""Arguments of a data set that add pictures of its clouds."""


@dataclass(frozen=True)
class ProbedData:
    """Training and test split of a config's data, read with its evaluation transforms, but without pairs.

    The transform that scales the clouds of a pair to the unit sphere is kept, if the data set's clouds are not in it.
    `left_out` names the transforms that were not applied.
    """

    config: RunConfig
    train: DataSubset
    test: DataSubset
    left_out: tuple[str, ...]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the training split (cached)."""
        return self.train.dataset.info.facts

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        names = "category_names" if label_key(self.train) == "category" else "class_names"
        return len(self.facts.get(names, ())) or int(self.facts["num_classes"])

    @property
    def num_points(self) -> int:
        """Number of points of the first cloud as the encoder receives it."""
        batch = self.train.reader([SampleKey(int(self.train.indices[0]), 0, self.config.seed)])
        return int(batch["points"].shape[-2])


def open_data(config: RunConfig) -> ProbedData:
    """Open the splits to probe on. Raises UnprobableError without a test split or a class for each cloud."""
    transforms = tuple(t for t in config.transforms.evaluate if not is_for_pairs(t))
    left_out = tuple(t.name for t in config.transforms.evaluate if is_for_pairs(t))
    normalising_transforms = keep_normalising(config.transforms.evaluate)
    config = dataclasses.replace(config, transforms=dataclasses.replace(config.transforms, evaluate=transforms))
    if not any("image" in read_fields(transform) for transform in transforms):
        config = dataclasses.replace(config, data=_remove_views(config.data))
    train = build_part(config, "train")
    clouds = train.dataset.info.clouds
    if normalising_transforms and (clouds is None or clouds.unit_sphere == "none"):
        config = dataclasses.replace(
            config, transforms=dataclasses.replace(config.transforms, evaluate=normalising_transforms)
        )
        train = build_part(config, "train")
    if "test" not in train.dataset.info.split_sizes:
        raise UnprobableError(
            f"{config.data.location}: data set '{config.data.name}' has no test part to score a probe on"
        )
    test = build_part(config, "test")
    if label_key(train) is None:
        raise UnprobableError(
            f"{config.data.location}: data set '{config.data.name}' gives no class for each cloud (label or category), "
            "which a probe learns; give other data"
        )
    return ProbedData(config, train, test, left_out)


def extract_split(model: nn.Module, precision: str, data: ProbedData, world: World) -> FeatureSplit:
    """Extract the features of both splits."""
    return FeatureSplit(
        *(extract(model, part, world, config=data.config, precision=precision) for part in (data.train, data.test))
    )


def random_model(config: RunConfig, facts: Mapping[str, Any], world: World, *, seed: int) -> nn.Module:
    """Build the config's network with random weights of another seed. Global random states do not change."""
    with preserve_random_state():
        return build_model(dataclasses.replace(config, seed=seed), facts, world)


def _remove_views(component: ComponentConfig) -> ComponentConfig:
    """Remove from a data set's block the pictures that it would read or render for each cloud.

    Unchanged if pictures are required.
    """
    arguments = component.arguments
    views = registry.data.entry(component).arguments.get("views")
    if views is None or views.default not in (None, 0):
        return component
    remaining = {name: value for name, value in arguments.items() if name not in _VIEW_ARGUMENTS}
    return dataclasses.replace(component, arguments=remaining)


def warnings_on_data(learnt: RunConfig, info: DataInfo, model: ComponentConfig, data: ProbedData) -> list[str]:
    """List warnings on differences between the data to probe on and the data of training.

    `learnt` and `info` are the config and the data set of training, `model` is the block that is probed. The number of
    points may differ on purpose; its effect on the neighbour graph is reported.
    """
    training = preprocessing_signature(learnt, info)
    probing = preprocessing_signature(data.config, data.train.dataset.info)
    probing["num_points"] = probing["encoder"] = None  # the model of the data's config is not the one that is probed
    lines = signature_differences(training, probing, names=("what was learnt on", "the data to probe on"))
    return [f"warning: {line}" for line in (*_reach_note(training, data.num_points, model), *lines)]


def _reach_note(training: Mapping[str, Any], num_points: int, model: ComponentConfig) -> list[str]:
    """Return a line if the probed neighbour graph has a smaller or larger reach than that of training."""
    num_neighbours, training_points = training["neighbours"], training["num_points"]
    graph = find_neighbour_graph(model, num_points)
    if num_neighbours is None or graph is None:
        return []
    equal_reach = scale_num_neighbours(num_neighbours, reference_num_points=training_points, num_points=num_points)
    if graph.neighbours == equal_reach:
        return []
    advised = equal_reach
    if graph.expected_num_points is not None:
        advised = scale_num_neighbours(
            equal_reach, reference_num_points=num_points, num_points=graph.expected_num_points
        )
    advice = f"{graph.path}.num_neighbours={advised}"
    if graph.can_grow and graph.expected_num_points is None and graph.neighbours == num_neighbours:
        advice = f"{graph.path}.neighbours_at={training_points}"  # PCT's second groups stay as they are
    return [
        f"the encoder learnt on clouds of {training_points} points with {num_neighbours} neighbours each; "
        f"of {num_points} points {graph.neighbours} "
        f"reach {'less far' if graph.neighbours < equal_reach else 'farther'}: {advice} keeps their reach"
    ]


_MODEL_PREFIX = "model."


@dataclass(frozen=True, eq=False)
class ProbedRun:
    """Run to probe: `config` builds its network, `data` is the data of the probe.

    It differs from the config of the run's `files` only by overrides of the model. `is_test_selected`: the checkpoint
    was selected on the test split.
    """

    files: RunFiles
    checkpoint: Path
    config: RunConfig
    data: ProbedData
    is_test_selected: bool
    notes: tuple[str, ...]

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.files.path

    def network(self, world: World) -> nn.Module:
        """Load the network with the weights of the checkpoint, in evaluation mode."""
        model = open_run(self.files, config=self.config, checkpoint=str(self.checkpoint), world=world).model
        get_encode(model)
        return model


def open_probed(
    run: Path, *, checkpoint: str, data: Path | None, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()
) -> ProbedRun:
    """Open a run to probe it on the data of the config at `data`, by default on its own.

    Overrides of `model.` change the run's network (for example its number of neighbours), others the config of the
    data. Raises UserError for a path that is not a run, and ConfigError for data that does not fit it.
    """
    files = RunFiles(run)
    trained = open_run(files, checkpoint=checkpoint, plugins=plugins)
    config = trained.config
    model_overrides = [override for override in overrides if override.strip().startswith(_MODEL_PREFIX)]
    data_overrides = [override for override in overrides if override not in model_overrides]
    if model_overrides:
        config = read_config(run / "config.yaml", model_overrides)
    opened = open_data(read_config(config_path_of_run(run if data is None else data), data_overrides))
    run_channels, data_channels = files.facts.get("in_channels"), opened.facts.get("in_channels")
    if run_channels != data_channels:
        raise ConfigError(
            f"{run}: was trained on {run_channels} channels a point; the data to probe on has {data_channels}"
        )
    remarks = [*(f"warning: {line}" for line in trained.notes), *files.list_lineage_notes()]
    weights = trained.checkpoint_path.resolve()
    is_test_selected = (
        checkpoint != "last" and files.config.evaluate.select == "test" and weights == _best_checkpoint(run)
    )
    if is_test_selected:
        remarks.append(
            "warning: the run's best checkpoint was selected on the test split (test-selected); 'last' was not selected"
        )
    remarks += warnings_on_data(files.config, files.inputs, config.model, opened)
    if opened.left_out:
        remarks.append(f"not applied, as they make pairs: transforms.evaluate {', '.join(opened.left_out)}")
    return ProbedRun(files, weights, config, opened, is_test_selected, tuple(remarks))


def _best_checkpoint(run: Path) -> Path | None:
    best = run / "checkpoints" / "best"
    return follow(best).resolve() if best.exists() else None


def extract_with_random(
    probed: ProbedRun, world: World, *, note: Callable[[str], None]
) -> tuple[FeatureSplit, FeatureSplit]:
    """Extract features by the run's weights, and by random ones of the seed after the run's own.

    Those that an earlier probe has saved in the run's folder are loaded; `note` gets a line on each.
    """
    config, data = probed.config, probed.data
    random = random_model(config, probed.files.facts, world, seed=config.seed + 1)

    def load_or_extract(kind: str, model: nn.Module) -> FeatureSplit:
        return SavedFeatures(probed.run / FOLDER, kind).load_or_extract(
            partial(make_key, model, config, data.config, (data.train, data.test), world.device),
            partial(extract_split, model, config.train.precision, data, world),
            world=world,
            note=note,
        )

    return load_or_extract("trained", probed.network(world)), load_or_extract("random", random)
