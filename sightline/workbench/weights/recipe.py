"""Configs of published layouts: the authors' recipe, the sizes of the weights, and facts that both must agree on."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.config import RunConfig, read_config
from sightline.config.plain_values import to_plain
from sightline.config.run_config import Init
from sightline.config.yaml_writer import format_inline
from sightline.contract import registry
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.types import ComponentConfig, DataInfo
from sightline.engine.run_data import build_transforms
from sightline.published.rows import PublishedLayout
from sightline.runs.preprocessing_signature import IGNORED_ARGUMENTS
from sightline.runs.run_files import config_path_of_run

_FIRST_POINTS = {"modelnet40": 1024}
"""Numbers of points that the authors' recipes take from the beginning of a cloud, by data set."""


def make_config(
    published: PublishedLayout,
    counts: Mapping[str, int],
    path: Path | None,
    data_name: str | None,
    overrides: Sequence[str],
) -> RunConfig:
    """Read the config at `path`, or make that of the layout's recipe. Raises ConfigError for what does not fit it."""
    if path is not None and data_name is not None:
        raise UserError("weights: --config has its own data; give --config or --data")
    if path is not None:
        return read_config(config_path_of_run(path), overrides)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / f"{published.name}.yaml"
        data_name = data_name or published.protocol.data
        plain.write_text(_format_recipe(published, counts, data_name), encoding="utf-8")
        try:
            return read_config(plain, overrides)
        except ConfigError as error:
            raise ConfigError(*(f.replace(str(plain), f"recipe of {published.name}") for f in error.faults)) from None


def _format_recipe(published: PublishedLayout, counts: Mapping[str, int], data_name: str) -> str:
    """Format a config, as YAML, to evaluate as the authors did and to fine-tune with a small learning rate."""
    protocol = published.protocol
    data: dict[str, Any] = {"name": data_name}
    if published.takes_first_points and data_name in _FIRST_POINTS:
        data["num_points"] = _FIRST_POINTS[data_name]
    if data_name == protocol.data:
        data |= protocol.arguments.get(counts.get("in_channels", 0), {})
    sections = {
        "name": published.name,
        "task": {"name": protocol.task, **published.task},
        "data": data,
        "transforms": {"train": list(published.trains), "evaluate": list(published.evaluate)},
        "model": {"name": published.model, **{name: {"name": block} for name, block in published.blocks.items()}},
        "losses": list(published.losses),
        "metrics": list(protocol.metrics),
        "optimizer": {"name": "adam", "lr": 1e-4},
        "train": {"epochs": 10, "batch_size": 32},
        "evaluate": {"metric": protocol.metric, "batch_size": protocol.batch_size},
    }
    return "".join(f"{key}: {format_inline(value)}\n" for key, value in sections.items())


def set_model(
    config: RunConfig, published: PublishedLayout, sizes: Mapping[str, int], target: Path
) -> tuple[RunConfig, dict[str, Any]]:
    """Set the layout's model and the weights' sizes in the config; return the arguments that had to be assumed, too.

    `init` names the run itself: trained again, it starts from these weights.
    """
    model = config.model
    if model.name != published.model:
        raise ConfigError(
            f"{model.location}: the config's model is '{model.name}', the layout '{published.name}' is of "
            f"'{published.model}'; set model.name={published.model}"
        )
    for name, expected in published.blocks.items():
        block: ComponentConfig = model.arguments[name]
        if block.name != expected:
            raise ConfigError(
                f"{block.location}: is '{block.name}', the layout '{published.name}' is of '{expected}'; set "
                f"model.{name}.name={expected}"
            )
    for path, size in sizes.items():
        value = _get_argument(model, path)
        if path in model.origins and value != size:
            raise ConfigError(f"{model.origins[path]}: is {format_inline(value)}, the weights have {size}; remove it")
    assumed = {name: value for name, value in published.assumed.items() if name not in model.origins}
    changed = _replace_arguments(model, {**sizes, **assumed})
    return dataclasses.replace(config, model=changed, init=Init(str(target.resolve()))), assumed


def list_contradictions(model: ComponentConfig, published: PublishedLayout) -> list[str]:
    """List notes on arguments that a config states otherwise than the authors, and that no tensor shows.

    What the command line states is meant, and what changes no number in evaluation does no harm.
    """
    notes = []
    for name, theirs in ((name, value) for name, value in published.assumed.items() if name not in IGNORED_ARGUMENTS):
        ours, usual = (format_inline(to_plain(value)) for value in (_get_argument(model, name), theirs))
        origin = model.origins.get(name)
        if origin is not None and origin.source != "command line" and ours != usual:
            notes.append(
                f"model.{name} is {ours} by the config, and {usual} where {published.name} was trained, which no "
                "tensor shows: leave it out, unless the file has another"
            )
    return notes


def set_image_size(published: PublishedLayout, sizes: Mapping[str, int]) -> PublishedLayout:
    """Set the image size that the weights need in the transforms that resize images."""
    size = {"size_px": sizes["images.size_px"]} if "images.size_px" in sizes else {}

    def resize(transforms: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [{**block, **size} if block["name"] == "resize_image" else block for block in transforms]

    return dataclasses.replace(published, trains=resize(published.trains), evaluate=resize(published.evaluate))


def _get_argument(component: ComponentConfig, path: str) -> Any:
    """Return the argument at a dotted path."""
    name, _, inner_path = path.partition(".")
    return _get_argument(component.arguments[name], inner_path) if inner_path else component.arguments[name]


def _replace_arguments(component: ComponentConfig, values: Mapping[str, Any]) -> ComponentConfig:
    """Replace the arguments of a component at dotted paths."""
    arguments = dict(component.arguments)
    for path, value in values.items():
        name, _, inner_path = path.partition(".")
        arguments[name] = _replace_arguments(arguments[name], {inner_path: value}) if inner_path else value
    return dataclasses.replace(component, arguments=arguments)


def make_expected_info(config: RunConfig) -> tuple[DataInfo, list[str]]:
    """Return the facts that every preparation of the data set states, and a note that they are the published ones.

    A data set of the user without `expected_info` is read, and so is one in a folder that the config names: photos
    prepared as COCO have classes of their own.
    """
    expected_info = registry.data.get_class(config.data).expected_info
    root = config.data.arguments.get("root")
    if expected_info is None or (root is not None and (Path(root) / "manifest.json").is_file()):
        dataset_info: DataInfo = registry.data.build(config.data, facts={"split": "train"}).info
        return dataset_info, []
    parameters = inspect.signature(expected_info).parameters
    info: DataInfo = expected_info(
        **{name: value for name, value in config.data.arguments.items() if name in parameters}
    )
    return info, [f"{config.data.name}: its facts are the published ones, whether or not it is prepared here"]


def collect_transform_facts(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """Collect the facts that the evaluation transforms state instead of the data set's."""
    facts: dict[str, Any] = {}
    for transform in build_transforms(config.transforms.evaluate, info.facts):
        facts |= transform.apply.facts
    return facts


def assert_same_counts(
    counts: Mapping[str, int], facts: Mapping[str, Any], config: RunConfig, published: PublishedLayout, file: Path
) -> None:
    """Raise ConfigError if weights were trained with other counts, by name, than the data set of a config has."""
    for name, count in counts.items():
        stated = facts.get(name)
        if stated != count:
            protocol = published.protocol
            arguments = protocol.arguments.get(count, {})
            settings = " ".join(f"data.{key}={str(value).lower()}" for key, value in arguments.items())
            advice = {
                "num_classes": "name the data set that they were trained on with --data NAME or --config CONFIG",
                "num_joints": "name the data set whose joints they are of with --data NAME or --config CONFIG",
                "in_channels": f"give the points as many; in {protocol.data} that is {settings or 'not to be had'}",
            }[name]
            raise ConfigError(
                f"{file}: its weights have {name} = {count}, the data set '{config.data.name}' has {stated}; {advice}"
            )
