"""Reproduction of a guilty layer: a script, its tensors and a description, for the layer's maintainers."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sightline.workbench.compare.repro_script as script
from sightline.config import RunConfig, render_config
from sightline.config.run_config import to_plain
from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_leaves
from sightline.instrument.formats import FORMATS
from sightline.workbench.compare.comparison import VariantComparison
from sightline.workbench.compare.layerwise import LOSS, LayerComparison, find_module
from sightline.workbench.compare.recording import Writer, write_tensors


@dataclass(frozen=True)
class LayerOrigin:
    """Sources of layers that are not torch's own: the run's config and facts, its plugins, the user's file."""

    config: RunConfig
    facts: Mapping[str, Any]
    plugins: Sequence[Path]
    file: Path | None


def write_repro(folder: Path, comparison: VariantComparison, origin: LayerOrigin) -> str:
    """Write the first guilty layer into a folder, and return a sentence about what was written.

    Raises UserError if the folder is not empty.
    """
    assert_empty_folder(folder)
    row = next(
        (
            candidate
            for candidate in comparison.guilty_rows
            if candidate.unit is not None and candidate.unit.call.path != LOSS
        ),
        None,
    )
    if row is None or row.unit is None:
        return "nothing to reproduce: no layer deviates by itself"
    if comparison.models is None:
        return f"nothing to reproduce: a record contains the output of {row.layer}, but not the layer itself"
    if origin.file is not None and row.unit.inner:
        return f"nothing to reproduce: {row.layer} calls submodules, and {origin.file} has other names for them"
    variant, reference = (find_module(model, row) or model for model in comparison.models)
    writer = Writer()
    layers = [
        _describe_layer(module, weights, row.unit.call.path, writer, file)
        for module, weights, file in ((variant, "variant", None), (reference, "reference", origin.file))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _copy_origins(folder, layers, origin)
    document = _describe_call(row, writer) | {"variant": layers[0], "reference": layers[1]}
    document["is_training"] = variant.training
    write_tensors(folder / "tensors.safetensors", writer.tensors)
    (folder / "repro.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(str(script.__file__), folder / "repro.py")
    return f"{row.layer} alone: python {folder / 'repro.py'}"


def assert_empty_folder(folder: Path) -> None:
    """Raise UserError if a folder is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--repro {folder}: is not an empty folder; give another")


def _describe_layer(module: nn.Module, weights: str, path: str, writer: Writer, file: Path | None) -> dict[str, Any]:
    """Describe how a script builds the layer, and add its weights to the writer's tensors."""
    for name, tensor in module.state_dict().items():
        writer.tensors[f"{weights}.{name}"] = tensor.detach().cpu().contiguous().clone()
    about: dict[str, Any] = {"weights": weights}
    if type(module).__module__.startswith("torch.nn.") and not list(module.children()):
        call = ast.parse(f"f({module.extra_repr()})", mode="eval").body
        assert isinstance(call, ast.Call)
        arguments = [_parse_argument(argument) for argument in call.args]
        keywords = {argument.arg: _parse_argument(argument.value) for argument in call.keywords}
        return about | {"kind": "torch", "class": type(module).__name__, "args": arguments, "kwargs": keywords}
    if file is not None:
        return about | {"kind": "file", "file": "reference.py", "path": path.removeprefix("network.")}
    return about | {"kind": "sightline", "path": path.removeprefix("network."), "plugins": []}


def _parse_argument(written: ast.expr) -> Any:
    """Parse an argument as `extra_repr` prints it; text such as `padding=same` has no quotes there."""
    return written.id if isinstance(written, ast.Name) else ast.literal_eval(written)


def _copy_origins(folder: Path, layers: Sequence[dict[str, Any]], origin: LayerOrigin) -> None:
    """Copy the files from which the layers are built into the folder of the script."""
    for layer in layers:
        if layer["kind"] == "file" and origin.file is not None:
            shutil.copyfile(origin.file, folder / layer["file"])
        if layer["kind"] == "sightline":
            (folder / "config.yaml").write_text(render_config(origin.config, origins=False), encoding="utf-8")
            (folder / "facts.json").write_text(json.dumps(to_plain(dict(origin.facts))), encoding="utf-8")
            for plugin in origin.plugins:
                shutil.copyfile(plugin, folder / plugin.name)
                layer["plugins"].append(plugin.name)


def _describe_call(row: LayerComparison, writer: Writer) -> dict[str, Any]:
    """Describe the call: inputs, outputs of nested calls, and gradients of the outputs."""
    unit = row.unit
    assert unit is not None
    dtype = next((dtype for dtype, inner_call in FORMATS.items() if inner_call == unit.call.format), torch.float32)
    prefix = f"{unit.call.path}." if unit.call.path else ""
    nested = [
        {
            "path": inner_call.path.removeprefix(prefix),
            "made": writer.nest(inner_call.outputs),
            "learns": bool(inner_call.output_gradients),
        }
        for inner_call in unit.inner
    ]
    paths = {path for path, _ in tree_leaves(unit.call.outputs)}
    gradients: dict[str, Tensor] = {path: g for path, g in unit.call.output_gradients.items() if path in paths}
    return {
        "layer": row.layer,
        "pass": row.which,
        "what": row.what,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "given": writer.nest(unit.call.inputs),
        "inner": nested,
        "arriving": {path: writer.nest(gradient)["tensor"] for path, gradient in gradients.items()},
    }
