"""Published weights as a run directory: evaluated, predicted with and fine-tuned like a run of our own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.config import RunConfig, read_config, render_config
from sightline.config.run_config import Init
from sightline.config.yaml_writer import format_inline, to_plain
from sightline.data.store.prepared_set import compute_sha256
from sightline.engine.build import build_model, build_transforms
from sightline.engine.distributed import World
from sightline.engine.precision import Precision, seed_everything
from sightline.engine.records import preserve_rng_state
from sightline.engine.run_loading import config_path_of_run
from sightline.errors import CheckpointError, ConfigError, UserError
from sightline.geometry.volumes import Axes
from sightline.models.published.published import OPTIONAL, convert_state_dict, published_name, unused_names
from sightline.models.published.published_files import PublishedFile
from sightline.models.published.published_model import PublishedModel
from sightline.models.published.published_models import MODELS, layouts_of
from sightline.models.published.published_sources import read_source
from sightline.models.published.published_volumes import with_axes
from sightline.optional_members import DataMembers, TransformMembers
from sightline.plugins import Plugin
from sightline.runs import checkpoint
from sightline.runs.atomic_files import disk_failure, sync_folder
from sightline.runs.inputs import INPUTS_FILE, inputs_document
from sightline.runs.lineage import LINEAGE_FILE
from sightline.runs.run_directory import RunDirectory, collect_environment
from sightline.runs.weights import load_weights
from sightline.schema import suggest
from sightline.types import ComponentConfig, DataInfo

__all__ = ["ConversionResult", "convert_published_weights"]

_SHOWN = 5
_FIRST_POINTS = {"modelnet40": 1024}
"""Of how many points the authors' recipes take a cloud's first, where they do."""


@dataclass(frozen=True)
class ConversionResult:
    """What was written: the run's folder, its lineage, and notes for the user."""

    path: Path
    lineage: Mapping[str, Any]
    notes: tuple[str, ...]


def convert_published_weights(
    file: Path,
    *,
    layout: str,
    target: Path,
    config_path: Path | None = None,
    data_name: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Plugin] = (),
    images: Path | None = None,
    axes: Axes = "xyz",
) -> ConversionResult:
    """Write the weights of a third-party file as a run at `target`; nothing is written where anything does not fit.

    The model is that of the layout, its sizes those of the tensors. All else is a config: of `config_path`, or a plain
    one on the data set `data_name` (that of the layout where neither is given), with `overrides` laid over it. `images`
    is the second file of a layout that has its image branch in one, `axes` the order in which kernels over volumes
    stand in the file; the run has them in x, y, z.
    Raises CheckpointError for a file or a layout that is not what it claims to be, ConfigError for a config or a data
    set that contradicts the weights, and UserError for a target that holds something.
    """
    _assert_free(target)
    published = _published(layout)
    source = read_source(file, images, layout, published)
    weights = with_axes(_translated(source, layout, published, file), axes, layout)
    sizes = {name: size.of(weights) for name, size in published.from_shapes.items()}
    counts = _counts(published, weights)
    trains, evaluate = _resized(published.trains, sizes), _resized(published.evaluate, sizes)
    recipe = dataclasses.replace(published, trains=trains, evaluate=evaluate)
    given = _config(layout, recipe, counts, config_path, data_name, overrides)
    config, assumed = _with_model(given, published, sizes, target, layout)
    info, notes = _info(config)
    weights = _of_classes(weights, published, info)
    found, counts = counts, _counts(published, weights)
    if counts != found:
        kept = f"{counts['num_classes']} of '{config.data.name}'"
        notes.append(f"of the file's {found['num_classes']} classes the {kept} are kept, by their names")
    if not published.keeps_head and counts.get("num_classes", 0) != info.facts.get("num_classes", 0):
        weights = _without(weights, OPTIONAL[layout])
    fresh = _left_fresh(weights, layout)
    if fresh is not None:
        notes.append(_about_head(counts.pop("num_classes", None), info, config))
    up_axis = None if published.up_axis is None else _up_axis(config, info)
    if up_axis not in (None, published.up_axis):
        notes.append(
            f"the authors of {layout} trained with {published.up_axis} up, '{config.data.name}' has "
            f"{up_axis} up: weights of theirs will not reach their figures on it"
        )
    if config_path is None and published.takes_first_points and config.data.name in _FIRST_POINTS:
        count = config.data.arguments.get("num_points", _FIRST_POINTS[config.data.name])
        notes.append(
            f"the first {count} points of a cloud are taken, as the authors' recipes do; for weights of their other "
            "recipes give data.num_points and the model's arguments"
        )
    facts = {**info.facts, **_made_facts(config, info)}
    _assert_same_counts(counts, facts, config, published, file)
    with preserve_rng_state():
        seed_everything(config.seed)
        model = build_model(config, {**facts, **counts}, World())
    _fill(model, weights, layout, file, fresh)
    lineage = {
        **_identity(file, published.parts),
        **({} if images is None else {"images": _identity(images, {})}),
        "layout": layout,
        "containers": list(source.containers),
        "left_out": list(source.others),
        "unused": dict(Counter(unused_names(source.state, layout).values())),
        "fresh": [] if fresh is None else [fresh],
        "model": config.model.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "from_shapes": {**counts, **sizes},
        "assumed": to_plain(assumed),
        **({} if axes == "xyz" else {"axes": axes}),
    }
    _write(target, config, info, facts, model, lineage, plugins)
    return ConversionResult(target, lineage, tuple(notes))


def _assert_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        found = "is not empty" if target.is_dir() else "is a file"
        raise UserError(f"--to {target}: {found}; give another folder, or remove it first")


def _published(layout: str) -> PublishedModel:
    if layout not in MODELS:
        otherwise = f"; there are {', '.join(MODELS)}"
        raise CheckpointError(
            f"--layout {layout}: no such layout is known{suggest(layout, MODELS, otherwise=otherwise)}"
        )
    return MODELS[layout]


# --- the weights ------------------------------------------------------------------------------------------------------


def _identity(file: Path, parts: Mapping[str, str]) -> dict[str, Any]:
    """What was converted: a file, or the files of a folder."""
    if not file.is_dir():
        return {"file": str(file.resolve()), "sha256": compute_sha256(file), "bytes": file.stat().st_size}
    files = {name: _identity(file / name, {}) for name in parts}
    digest = hashlib.sha256("".join(each["sha256"] for each in files.values()).encode()).hexdigest()
    total = sum(each["bytes"] for each in files.values())
    return {"file": str(file.resolve()), "sha256": digest, "bytes": total, "parts": files}


def _counts(published: PublishedModel, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The facts that the weights show, of those that the layout's model takes; no classes without a head."""
    sizes = {
        "in_channels": published.in_channels,
        "num_classes": published.num_classes,
        "num_joints": published.num_joints,
    }
    return {name: size.of(weights) for name, size in sizes.items() if size is not None and size.name in weights}


def _of_classes(weights: dict[str, Tensor], published: PublishedModel, info: DataInfo) -> dict[str, Tensor]:
    """The weights with the classes of the data set alone, where their names are all among the published set's."""
    size, places = published.num_classes, published.class_places
    if size is None or not places or size.name not in weights or size.of(weights) != max(places) + 1:
        return weights
    promise = DataMembers.expected_info.get(registry.data.get_entry(published.protocol.data).builder)
    assert promise is not None, published.protocol.data
    place_of = dict(zip(promise().facts["class_names"], places, strict=True))
    names = info.facts.get("class_names", ())
    if not names or not {*names} <= {*place_of}:
        return weights
    rows = [place_of[name] for name in names]
    layer = [size.name, size.name.removesuffix("weight") + "bias"]
    chosen = {name: weights[name].unflatten(0, (size.divisor, -1))[:, rows].flatten(0, 1) for name in layer}
    return weights | chosen


def _about_head(num_classes: int | None, info: DataInfo, config: RunConfig) -> str:
    """Why the run has a head that no file gave, and what to do with it."""
    found = "the file has no head" if num_classes is None else f"the file's head of {num_classes} classes is left out"
    return (
        f"{found}: that of the {info.facts['num_classes']} classes of '{config.data.name}' is made from seed "
        f"{config.seed}; train it before you read its predictions"
    )


def _translated(source: PublishedFile, layout: str, published: PublishedModel, file: Path) -> dict[str, Tensor]:
    """The weights under our names, every one that the model needs. Raises CheckpointError naming what does not fit."""
    try:
        weights = convert_state_dict(source.state, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}{_suggestion(source.state, layout)}") from None
    # The names do not depend on the sizes.
    facts = {"num_classes": 2, "in_channels": 9, "num_categories": 2, "num_joints": 2}
    with preserve_rng_state(), torch.device("meta"):
        model = registry.models.build(ComponentConfig(published.model, _nested(_arguments(published))), facts=facts)
    needed = _without(model.state_dict(), _left_fresh(weights, layout))
    missing = [published_name(name, layout) for name in needed if name not in weights]
    if missing:
        raise CheckpointError(
            f"{file}: lacks {len(missing)} of the {len(needed)} tensors of the layout '{layout}': "
            f"{_listed(missing)}{_suggestion(source.state, layout) or '; get a whole file'}"
        )
    bent = [name for name, own in needed.items() if weights[name].ndim != own.ndim]
    if bent:
        shapes = [f"{published_name(name, layout)} {list(weights[name].shape)}" for name in bent]
        raise CheckpointError(
            f"{file}: {len(bent)} tensors have another number of axes than in the layout '{layout}': {_listed(shapes)}"
            "; is it a variant of it?"
        )
    unsound = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if unsound:
        named = [published_name(name, layout) for name in unsound]
        raise CheckpointError(
            f"{file}: {len(unsound)} tensors hold NaN or infinity: {_listed(named)}; get another file"
        )
    return weights


def _left_fresh(weights: Mapping[str, Tensor], layout: str) -> str | None:
    """The module that the layout's files may be without, where this one has nothing of it."""
    optional = OPTIONAL.get(layout)
    return optional if optional is not None and len(_without(weights, optional)) == len(weights) else None


def _without(tensors: Mapping[str, Tensor], module: str | None) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if module is None or not name.startswith(f"{module}.")}


def _suggestion(state: Mapping[str, Tensor], layout: str) -> str:
    fitting = [name for name in layouts_of(state) if name != layout]
    return f"; its names are those of --layout {' or '.join(fitting)}" if fitting else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _fill(model: nn.Module, weights: Mapping[str, Tensor], layout: str, file: Path, fresh: str | None) -> None:
    """Load the weights; every shape must be the model's. The module `fresh` stays as it was made."""
    own = model.state_dict()
    wrong = [
        f"{published_name(name, layout)} {list(value.shape)}, needed is {list(own[name].shape)}"
        for name, value in weights.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{file}: {len(wrong)} tensors have another shape than this model of the layout '{layout}': "
            f"{'; '.join(wrong[:_SHOWN])}{'; ...' if len(wrong) > _SHOWN else ''}; is it a variant of it?"
        )
    load_weights(model, weights, may_be_missing=() if fresh is None else (fresh,))


# --- the config -------------------------------------------------------------------------------------------------------


def _arguments(published: PublishedModel) -> dict[str, Any]:
    """What the model is made of and what its authors gave it, by dotted path."""
    return {**{f"{name}.name": encoder for name, encoder in published.encoders.items()}, **published.assumed}


def _nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as mappings in mappings."""
    nested: dict[str, Any] = {}
    for path, value in arguments.items():
        *outer, last = path.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def _config(
    layout: str,
    published: PublishedModel,
    counts: Mapping[str, int],
    path: Path | None,
    data_name: str | None,
    overrides: Sequence[str],
) -> RunConfig:
    if path is not None and data_name is not None:
        raise UserError("convert-weights: --config has its own data; give --config or --data")
    if path is not None:
        return read_config(config_path_of_run(path), overrides)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / f"{layout}.yaml"
        data_name = data_name or published.protocol.data
        plain.write_text(_plain_recipe(layout, published, counts, data_name), encoding="utf-8")
        try:
            return read_config(plain, overrides)
        except ConfigError as error:
            raise ConfigError(*(f.replace(str(plain), f"recipe of {layout}") for f in error.faults)) from None


def _plain_recipe(layout: str, published: PublishedModel, counts: Mapping[str, int], data_name: str) -> str:
    """A config to evaluate as the authors did, and to fine-tune with a small rate."""
    protocol = published.protocol
    data: dict[str, Any] = {"name": data_name}
    if published.takes_first_points and data_name in _FIRST_POINTS:
        data["num_points"] = _FIRST_POINTS[data_name]
    if data_name == protocol.data:
        data |= protocol.arguments.get(counts.get("in_channels", 0), {})
    sections = {
        "name": layout,
        "task": {"name": protocol.task, **published.task},
        "data": data,
        "transforms": {"train": list(published.trains), "evaluate": list(published.evaluate)},
        "model": {"name": published.model, **{name: {"name": each} for name, each in published.encoders.items()}},
        "losses": list(published.losses),
        "metrics": list(protocol.metrics),
        "optimizer": {"name": "adam", "lr": 1e-4},
        "train": {"epochs": 10, "batch_size": 32},
        "evaluate": {"metric": protocol.metric, "batch_size": protocol.batch_size},
    }
    return "".join(f"{key}: {format_inline(value)}\n" for key, value in sections.items())


def _with_model(
    config: RunConfig, published: PublishedModel, sizes: Mapping[str, int], target: Path, layout: str
) -> tuple[RunConfig, dict[str, Any]]:
    """The config with the layout's model and the sizes of the weights; and the arguments that had to be assumed.

    `init` names the run itself: trained again, it starts from these weights.
    """
    model = config.model
    if model.name != published.model:
        raise ConfigError(
            f"{model.location}: the config's model is '{model.name}', the layout '{layout}' is of '{published.model}'; "
            f"set model.name={published.model}"
        )
    for name, encoder in published.encoders.items():
        found: ComponentConfig = model.arguments[name]
        if found.name != encoder:
            raise ConfigError(
                f"{found.location}: is '{found.name}', the layout '{layout}' is of '{encoder}'; set "
                f"model.{name}.name={encoder}"
            )
    for path, size in sizes.items():
        value = _at(model, path)
        if path in model.origins and value != size:
            raise ConfigError(f"{model.origins[path]}: is {format_inline(value)}, the weights have {size}; remove it")
    assumed = {name: value for name, value in published.assumed.items() if name not in model.origins}
    changed = _replaced(model, {**sizes, **assumed})
    return dataclasses.replace(config, model=changed, init=Init(str(target.resolve()))), assumed


def _resized(transforms: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> tuple[Mapping[str, Any], ...]:
    """The transforms with images of the size that the weights take, where they show one."""
    size = {"size_px": sizes["images.size_px"]} if "images.size_px" in sizes else {}
    return tuple({**each, **size} if each["name"] == "resize_image" else each for each in transforms)


def _at(component: ComponentConfig, path: str) -> Any:
    """The argument at a dotted path."""
    name, _, rest = path.partition(".")
    return _at(component.arguments[name], rest) if rest else component.arguments[name]


def _replaced(component: ComponentConfig, values: Mapping[str, Any]) -> ComponentConfig:
    """The component with other values at these dotted paths."""
    arguments = dict(component.arguments)
    for path, value in values.items():
        name, _, rest = path.partition(".")
        arguments[name] = _replaced(arguments[name], {rest: value}) if rest else value
    return dataclasses.replace(component, arguments=arguments)


def _info(config: RunConfig) -> tuple[DataInfo, list[str]]:
    """What every form of the data set states, whether or not it is prepared here, and a note of that.

    A set of the user's own promises nothing: it is read.
    """
    promise = DataMembers.expected_info.get(registry.data.entry(config.data).builder)
    if promise is None:
        own: DataInfo = registry.data.build(config.data, facts={"split": "train"}).info
        return own, []
    known = inspect.signature(promise).parameters
    info: DataInfo = promise(**{name: value for name, value in config.data.arguments.items() if name in known})
    return info, [f"{config.data.name}: its facts are the published ones, whether or not it is prepared here"]


def _up_axis(config: RunConfig, info: DataInfo) -> str | None:
    """That of the set as it lies here, else the promised one: for a note, nothing that is written depends on it."""
    with contextlib.suppress(UserError):
        info = registry.data.build(config.data, facts={"split": "train"}).info
    axis: str | None = info.facts.get("up_axis")
    return axis


def _made_facts(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """The facts that the transforms of evaluation state in place of the data set's."""
    made: dict[str, Any] = {}
    for transform in build_transforms(config.transforms.evaluate, info.facts):
        made |= TransformMembers.facts.get(transform.apply)
    return made


def _assert_same_counts(
    counts: Mapping[str, int], facts: Mapping[str, Any], config: RunConfig, published: PublishedModel, file: Path
) -> None:
    for name, count in counts.items():
        stated = facts.get(name)
        if stated != count:
            protocol = published.protocol
            arguments = protocol.arguments.get(count, {})
            given = " ".join(f"data.{key}={str(value).lower()}" for key, value in arguments.items())
            advice = {
                "num_classes": "name the data set that they were trained on with --data NAME or --config CONFIG",
                "num_joints": "name the data set whose joints they are of with --data NAME or --config CONFIG",
                "in_channels": f"give the points as many; in {protocol.data} that is {given or 'not to be had'}",
            }[name]
            raise ConfigError(
                f"{file}: its weights have {name} = {count}, the data set '{config.data.name}' has {stated}; {advice}"
            )


# --- the folder -------------------------------------------------------------------------------------------------------


def _write(
    target: Path,
    config: RunConfig,
    info: DataInfo,
    facts: Mapping[str, Any],
    model: nn.Module,
    lineage: Mapping[str, Any],
    plugins: Sequence[Plugin],
) -> None:
    """The run's files, put in place at one instant."""
    staging = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
        directory = RunDirectory(staging, is_writer=True)
        record = {"plugins": [plugin.record() for plugin in plugins], "checked": False, "num_processes": 1}
        directory.write_json("environment.json", collect_environment() | record)
        for plugin in plugins:
            directory.write_text(f"plugins/{plugin.path.name}", plugin.text)
        directory.write_json("facts.json", to_plain(dict(facts)))
        directory.write_json(INPUTS_FILE, inputs_document(info))
        directory.write_json(LINEAGE_FILE, lineage)
        checkpoint.save(staging, _snapshot(config, model), keep_last=1, is_best=True)
        directory.write_text("config.yaml", render_config(config, origins=False))
        os.rename(staging, target)
        sync_folder(target.parent)
    except OSError as error:
        raise disk_failure(error, target) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _snapshot(config: RunConfig, model: nn.Module) -> checkpoint.Snapshot:
    """The checkpoint of a run that has not taken a step: the weights, and an optimiser that remembers nothing."""
    recipe = registry.optimizers.build(config.optimizer, facts={})
    optimizer = recipe.build(model)
    scaler = Precision(config.train.precision).scaler(torch.device("cpu"))
    weights = dict(model.state_dict())
    state = {
        "num_steps": 0,
        "epoch": 0,
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "best": {"step": None, "value": None, "metric": config.evaluate.metric},
        "random": [checkpoint.get_rng_state()],
        "scaler": scaler.state_dict(),
        "unwritten": [],
        "versions": {"torch": torch.__version__},
    }
    return checkpoint.Snapshot(
        step=0,
        model=weights,
        optimizer=checkpoint.optimizer_tensors(model, optimizer),
        ema=None if config.train.ema_decay is None else dict(weights),
        state=state,
    )
