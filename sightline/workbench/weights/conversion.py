"""Published weights as a run directory: evaluated, predicted with and fine-tuned like a run of our own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config import RunConfig, render_config
from sightline.config.plain_values import to_plain
from sightline.contract import registry
from sightline.contract.errors import CheckpointError, UserError
from sightline.contract.plugins import Plugin
from sightline.contract.schema import suggest
from sightline.contract.types import DataInfo
from sightline.engine.device.numerics import Precision, seed_everything
from sightline.engine.distributed import World
from sightline.engine.run_model import build_model
from sightline.instrument.random_state import preserve_random_state
from sightline.published.files import PublishedFile, choose_layout, make_meta_model, read_source
from sightline.published.rows import FACTS, PublishedLayout, list_names, read_layout
from sightline.published.translation import convert_state_dict, find_layouts, published_name, unused_names
from sightline.runs import checkpoint
from sightline.runs.environment import collect_environment
from sightline.runs.inputs import INPUTS_FILE, inputs_document
from sightline.runs.lineage import LINEAGE_FILE
from sightline.runs.optimizer_state import optimizer_tensors
from sightline.runs.random_states import get_rng_state
from sightline.runs.run_directory import RunDirectory
from sightline.runs.weights import load_weights
from sightline.store.files.atomic_write import whole_folder
from sightline.store.prepared.prepared_set import compute_sha256
from sightline.workbench.weights import recipe

_MAX_LISTED = 5


@dataclass(frozen=True)
class ConversionResult:
    """Result of a conversion: the run's folder, its lineage, and notes for the user."""

    path: Path
    lineage: Mapping[str, Any]
    notes: tuple[str, ...]


def convert_published_weights(
    file: Path,
    *,
    target: Path,
    layout: str | None = None,
    config_path: Path | None = None,
    data_name: str | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[Plugin] = (),
) -> ConversionResult:
    """Write the weights of a third-party file as a run at `target`; nothing is written if anything does not fit.

    The model is that of the layout, by default the one that the tensors' names and shapes tell; its sizes are those of
    the tensors. All else is a config: of `config_path`, or a one on the data set `data_name` (by default the layout's),
    with `overrides` applied. Raises CheckpointError for a file that does not fit the layout, or fits several and none
    is named, ConfigError for a config or a data set that contradicts the weights, and UserError for a target that is
    not empty.
    """
    assert_empty_or_absent(target, option="--to")
    source = read_source(file, None if layout is None else _read_layout(layout))
    layout = layout or choose_layout(source.state, str(file), is_for_weights=False, advice="give --layout NAME")
    published = read_layout(layout)
    weights = _translate_weights(source, published, file)
    sizes = {name: size.read(weights) for name, size in published.sizes.items() if name not in FACTS}
    counts = _read_counts(published, weights)
    base_config = recipe.make_config(recipe.set_image_size(published, sizes), counts, config_path, data_name, overrides)
    config, assumed = recipe.set_model(base_config, published, sizes, target)
    info, notes = recipe.make_expected_info(config)
    notes += [*recipe.list_contradictions(base_config.model, published), *published.unseen]
    weights = select_classes(weights, published, info)
    file_counts, counts = counts, _read_counts(published, weights)
    if counts != file_counts:
        selection = f"{counts['num_classes']} of '{config.data.name}'"
        notes.append(f"of the file's {file_counts['num_classes']} classes the {selection} are kept, by their names")
    if not published.keeps_head and counts.get("num_classes", 0) != info.facts.get("num_classes", 0):
        weights = _without_module(weights, published.optional)
    absent_module = _find_absent_module(weights, published.optional)
    if absent_module is not None:
        notes.append(_describe_fresh_head(counts.pop("num_classes", None), info, config))
    up_axis = info.facts.get("up_axis", published.up_axis)
    if published.up_axis not in (None, up_axis):
        notes.append(
            f"the authors of {layout} trained with {published.up_axis} up, '{config.data.name}' has {up_axis} up: "
            "weights of theirs will not reach their figures on it"
        )
    facts = {**info.facts, **recipe.collect_transform_facts(config, info)}
    recipe.assert_same_counts(counts, facts, config, published, file)
    with preserve_random_state():
        seed_everything(config.seed)
        model = build_model(config, {**facts, **counts}, World())
    _load_weights(model, weights, layout, file, absent_module)
    lineage = {
        **_identify_file(file, published.parts),
        "layout": layout,
        "containers": list(source.containers),
        "left_out": list(source.other_entries),
        "unused": dict(Counter(unused_names(source.state, layout).values())),
        "fresh": [] if absent_module is None else [absent_module],
        "model": config.model.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "from_shapes": {**counts, **sizes},
        "assumed": to_plain(assumed),
    }
    _write_run(target, config, info, facts, model, lineage, plugins)
    return ConversionResult(target, lineage, tuple(notes))


def assert_empty_or_absent(target: Path, *, option: str) -> None:
    """Raise UserError for the folder of an option that cannot become a run."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        state = "is not empty" if target.is_dir() else "is a file"
        raise UserError(f"{option} {target}: {state}; give another folder, or remove it first")
    if not target.name:
        raise UserError(
            f"{option} {target}: is the folder that you are in, which the run would replace; name a new one"
        )


def _read_layout(name: str) -> PublishedLayout:
    names = list_names()
    if name not in names:
        otherwise = f"; there are {', '.join(names)}"
        raise CheckpointError(f"--layout {name}: no such layout is known{suggest(name, names, otherwise=otherwise)}")
    return read_layout(name)


# --- the weights ------------------------------------------------------------------------------------------------------


def _identify_file(file: Path, parts: Mapping[str, str]) -> dict[str, Any]:
    """Describe the converted file, or the files of a folder: path, SHA-256, size in bytes."""
    if not file.is_dir():
        return {"file": str(file.resolve()), "sha256": compute_sha256(file), "bytes": file.stat().st_size}
    files = {name: _identify_file(file / name, {}) for name in parts}
    digest = hashlib.sha256("".join(identity["sha256"] for identity in files.values()).encode()).hexdigest()
    total = sum(identity["bytes"] for identity in files.values())
    return {"file": str(file.resolve()), "sha256": digest, "bytes": total, "parts": files}


def _read_counts(published: PublishedLayout, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Read from the weights' shapes the facts that the layout's model needs; no `num_classes` without a head."""
    return {name: size.read(weights) for name, size in published.facts.items() if size.name in weights}


def select_classes(weights: dict[str, Tensor], published: PublishedLayout, info: DataInfo) -> dict[str, Tensor]:
    """Select the data set's classes in the head, if the published set has all of their names."""
    size, class_indices = published.num_classes, published.class_indices
    if size is None or not class_indices or size.name not in weights or size.read(weights) != max(class_indices) + 1:
        return weights
    promise = registry.data.get_class(published.protocol.data).expected_info
    assert promise is not None, published.protocol.data
    index_of = dict(zip(promise().facts["class_names"], class_indices, strict=True))
    names = info.facts.get("class_names", ())
    if not names or not {*names} <= {*index_of}:
        return weights
    rows = [index_of[name] for name in names]
    layer = [size.name, size.name.removesuffix("weight") + "bias"]
    chosen = {name: weights[name].unflatten(0, (size.divisor, -1))[:, rows].flatten(0, 1) for name in layer}
    return weights | chosen


def _describe_fresh_head(num_classes: int | None, info: DataInfo, config: RunConfig) -> str:
    """Describe why the run has an untrained head, and what to do with it."""
    cause = "the file has no head" if num_classes is None else f"the file's head of {num_classes} classes is left out"
    return (
        f"{cause}: that of the {info.facts['num_classes']} classes of '{config.data.name}' is made from seed "
        f"{config.seed}; train it before you read its predictions"
    )


def _translate_weights(source: PublishedFile, published: PublishedLayout, file: Path) -> dict[str, Tensor]:
    """Translate the weights to our names. Raises CheckpointError naming tensors that are missing or do not fit."""
    layout = published.name
    try:
        weights = convert_state_dict(source.state, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}{_suggest_layout(source.state, layout)}") from None
    model = make_meta_model(published)
    needed = _without_module(model.state_dict(), _find_absent_module(weights, published.optional))
    missing = [published_name(name, layout) for name in needed if name not in weights]
    if missing:
        raise CheckpointError(
            f"{file}: lacks {len(missing)} of the {len(needed)} tensors of the layout '{layout}': "
            f"{_join_names(missing)}{_suggest_layout(source.state, layout) or '; get a whole file'}"
        )
    misshapen = [name for name, value in needed.items() if weights[name].ndim != value.ndim]
    shapes = [f"{published_name(name, layout)} {list(weights[name].shape)}" for name in misshapen]
    what = f"have another number of axes than in the layout '{layout}'"
    _assert_none(shapes, file, what, "is it a variant of it?")
    unsound = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    _assert_none([published_name(name, layout) for name in unsound], file, "hold NaN or infinity", "get another file")
    return weights


def _find_absent_module(weights: Mapping[str, Tensor], optional: str | None) -> str | None:
    """Return the optional module of a layout if the file contains none of its tensors, else None."""
    return optional if optional is not None and len(_without_module(weights, optional)) == len(weights) else None


def _without_module(tensors: Mapping[str, Tensor], module: str | None) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if module is None or not name.startswith(f"{module}.")}


def _suggest_layout(state: Mapping[str, Tensor], layout: str) -> str:
    fitting = [name for name in find_layouts(state) if name != layout]
    return f"; its names are those of --layout {' or '.join(fitting)}" if fitting else ""


def _join_names(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join([*names[:_MAX_LISTED], *(["..."] if len(names) > _MAX_LISTED else [])])


def _assert_none(faults: Sequence[str], file: Path, what: str, advice: str, *, separator: str = ", ") -> None:
    """Raise CheckpointError naming the first tensors that have a fault, if there are any."""
    if faults:
        raise CheckpointError(f"{file}: {len(faults)} tensors {what}: {_join_names(faults, separator)}; {advice}")


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor], layout: str, file: Path, fresh: str | None) -> None:
    """Load the weights; every shape must be the model's. The module `fresh` keeps its random weights."""
    state = model.state_dict()
    extra = [published_name(name, layout) for name in weights if name not in state]
    _assert_none(extra, file, f"are none of this model of the layout '{layout}'", "is it a variant of it?")
    wrong = [
        f"{published_name(name, layout)} {list(value.shape)}, needed is {list(state[name].shape)}"
        for name, value in weights.items()
        if value.shape != state[name].shape
    ]
    what = f"have another shape than this model of the layout '{layout}'"
    _assert_none(wrong, file, what, "is it a variant of it?", separator="; ")
    load_weights(model, weights, may_be_missing=() if fresh is None else (fresh,))


# --- the folder -------------------------------------------------------------------------------------------------------


def _write_run(
    target: Path,
    config: RunConfig,
    info: DataInfo,
    facts: Mapping[str, Any],
    model: nn.Module,
    lineage: Mapping[str, Any],
    plugins: Sequence[Plugin],
) -> None:
    """Write the run's files to a folder that is renamed to `target` when all of them are there."""
    with whole_folder(target) as folder:
        directory = RunDirectory(folder, is_writer=True)
        record = {"plugins": [plugin.record() for plugin in plugins], "checked": False, "num_processes": 1}
        directory.write_json("environment.json", collect_environment() | record)
        for plugin in plugins:
            for name, content in plugin.files().items():
                directory.write_bytes(f"plugins/{name}", content)
        directory.write_json("facts.json", to_plain(dict(facts)))
        directory.write_json(INPUTS_FILE, inputs_document(info))
        directory.write_json(LINEAGE_FILE, lineage)
        checkpoint.save(folder, _make_snapshot(config, model), keep_last=1, is_best=True)
        directory.write_text("config.yaml", render_config(config, origins=False))


def _make_snapshot(config: RunConfig, model: nn.Module) -> checkpoint.Snapshot:
    """Build the checkpoint of a run at step 0: the weights and an optimiser without state."""
    recipe = registry.optimizers.build(config.optimizer, facts={})
    optimizer = recipe.build(model)
    scaler = Precision(config.train.precision).scaler(torch.device("cpu"))
    weights = dict(model.state_dict())
    state = {
        "num_steps": 0,
        "epoch": 0,
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "best": {"step": None, "value": None, "metric": config.evaluate.metric},
        "random": [get_rng_state()],
        "scaler": scaler.state_dict(),
        "num_skipped": 0,
        "unwritten": [],
        "versions": {"torch": torch.__version__},
    }
    return checkpoint.Snapshot(
        step=0,
        model=weights,
        optimizer=optimizer_tensors(model, optimizer),
        ema=None if config.train.ema_decay is None else dict(weights),
        state=state,
    )
