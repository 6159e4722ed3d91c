"""A guilty layer alone: a script, its tensors and what it is, for those who maintain the layer."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sightline.compare.repro_script as script
from sightline.compare.comparison import VariantComparison
from sightline.compare.formats import FORMATS
from sightline.compare.layerwise import LOSS, LayerComparison
from sightline.compare.records import Writer
from sightline.compare.settings import find_module
from sightline.config import RunConfig, render_config
from sightline.config.yaml_writer import to_plain
from sightline.errors import UserError
from sightline.pytree import tree_leaves

__all__ = ["LayerOrigin", "assert_empty_folder", "write_repro"]


@dataclass(frozen=True)
class LayerOrigin:
    """Where layers that are not torch's own come from: the run's config and facts, its plugins, the user's file."""

    config: RunConfig
    facts: Mapping[str, Any]
    plugins: Sequence[Path]
    file: Path | None


def write_repro(folder: Path, comparison: VariantComparison, origin: LayerOrigin) -> str:
    """Write the first guilty layer into a folder; what was written, in words.

    Raises UserError where the folder is not empty.
    """
    assert_empty_folder(folder)
    row = next((each for each in comparison.unexplained if each.unit is not None and each.unit.call.path != LOSS), None)
    if row is None or row.unit is None:
        return "nothing to reproduce: no layer deviates by itself"
    if comparison.models is None:
        return f"nothing to reproduce: a record keeps what {row.layer} made, and no layer to build it from"
    if origin.file is not None and row.unit.inner:
        return f"nothing to reproduce: {row.layer} calls layers of its own, and {origin.file} names them otherwise"
    variant, reference = (find_module(model, row) or model for model in comparison.models)
    writer = Writer()
    layers = [
        _layer(module, weights, row.unit.call.path, writer, own)
        for module, weights, own in ((variant, "variant", None), (reference, "reference", origin.file))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _write_origins(folder, layers, origin)
    document = _document(row, writer) | {"variant": layers[0], "reference": layers[1]}
    document["is_training"] = variant.training
    save_file(writer.tensors, folder / "tensors.safetensors")
    (folder / "repro.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(str(script.__file__), folder / "repro.py")
    return f"{row.layer} alone: python {folder / 'repro.py'}"


def assert_empty_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--repro {folder}: is not an empty folder; give another")


def _layer(module: nn.Module, weights: str, path: str, writer: Writer, file: Path | None) -> dict[str, Any]:
    """What a script needs to build the layer; its weights go to the tensors."""
    for name, tensor in module.state_dict().items():
        writer.tensors[f"{weights}.{name}"] = tensor.detach().cpu().contiguous().clone()
    about: dict[str, Any] = {"weights": weights}
    if type(module).__module__.startswith("torch.nn.") and not list(module.children()):
        call = ast.parse(f"f({module.extra_repr()})", mode="eval").body
        assert isinstance(call, ast.Call)
        arguments = [_plain(each) for each in call.args]
        named = {each.arg: _plain(each.value) for each in call.keywords}
        return about | {"kind": "torch", "class": type(module).__name__, "args": arguments, "kwargs": named}
    if file is not None:
        return about | {"kind": "file", "file": "reference.py", "path": path.removeprefix("network.")}
    return about | {"kind": "sightline", "path": path.removeprefix("network."), "plugins": []}


def _plain(written: ast.expr) -> Any:
    """An argument as `extra_repr` writes it; words such as `padding=same` stand there without quotes."""
    return written.id if isinstance(written, ast.Name) else ast.literal_eval(written)


def _write_origins(folder: Path, layers: Sequence[dict[str, Any]], origin: LayerOrigin) -> None:
    """The files that layers are built from, beside the script."""
    for layer in layers:
        if layer["kind"] == "file" and origin.file is not None:
            shutil.copyfile(origin.file, folder / layer["file"])
        if layer["kind"] == "sightline":
            (folder / "config.yaml").write_text(render_config(origin.config, origins=False), encoding="utf-8")
            (folder / "facts.json").write_text(json.dumps(to_plain(dict(origin.facts))), encoding="utf-8")
            for plugin in origin.plugins:
                shutil.copyfile(plugin, folder / plugin.name)
                layer["plugins"].append(plugin.name)


def _document(row: LayerComparison, writer: Writer) -> dict[str, Any]:
    """The call: what was given, what calls inside made, and the gradients that arrived."""
    unit = row.unit
    assert unit is not None
    dtype = next((dtype for dtype, each in FORMATS.items() if each == unit.call.format), torch.float32)
    prefix = f"{unit.call.path}." if unit.call.path else ""
    inner = [
        {"path": each.path.removeprefix(prefix), "made": writer.nest(each.made), "learns": bool(each.to_made)}
        for each in unit.inner
    ]
    places = {place for place, _ in tree_leaves(unit.call.made)}
    arriving: dict[str, Tensor] = {place: g for place, g in unit.call.to_made.items() if place in places}
    return {
        "layer": row.layer,
        "pass": row.which,
        "what": row.what,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "given": writer.nest(unit.call.given),
        "inner": inner,
        "arriving": {place: writer.nest(gradient)["tensor"] for place, gradient in arriving.items()},
    }
