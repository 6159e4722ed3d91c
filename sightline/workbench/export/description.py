"""Description of an exported file: its inputs and outputs, what is done around it, its check, and the run's documents.

It is enough to run the file elsewhere, and for `sightline predict` and `sightline serve`, which read it back.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sightline.config.plain_values import to_plain
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.model import NetworkParts
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.runs.inputs import inputs_document
from sightline.runs.output_files import write_file
from sightline.workbench.export.graph import get_parts

if TYPE_CHECKING:
    from sightline.engine.run_loading import TrainedRun
    from sightline.workbench.export.checking import ExportCheck
    from sightline.workbench.export.graph import GraphNetwork, SplitTransforms

VERSION = "sightline export 2"
MAX_DESCRIPTION_BYTES = 16 * 2**20
DOCUMENTS = ("config.yaml", "facts.json", "inputs.json", "environment.json")
"""Files of the run that a description holds: what a run directory needs without its weights."""


_OF_ENVIRONMENT = ("plugins", "photos")
"""Keys of a run's environment that predictions depend on."""


def describe_export(
    run: TrainedRun,
    task: Any,
    split: SplitTransforms,
    network: GraphNetwork,
    *,
    content: bytes,
    free_axes: Sequence[Mapping[int, str]],
    values: Sequence[Tensor],
    check: ExportCheck,
) -> dict[str, Any]:
    """Build the description of a file."""
    with torch.no_grad():
        outputs = network(*values)
    parts = get_parts(network.model)
    fields = run.files.inputs.fields if parts is None else {}  # tables have none, though names may be equal
    inputs = [
        {
            "name": name,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [axes.get(axis, size if axis else 1) for axis, size in enumerate(value.shape)],
            "unit": fields[name].unit if name in fields else "",
            "frame": fields[name].frame if name in fields else "",
        }
        for name, value, axes in zip(network.names, values, free_axes, strict=True)
    ]
    results = [
        {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "example_shape": list(value.shape)}
        for name, value in outputs.items()
    ]
    blocks = {block.name: block for block in run.config.transforms.evaluate}
    return {
        "format": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "torch": torch.__version__,
        "task": run.config.task.name,
        "model": run.config.model.name,
        "class_names": list(run.class_names),
        "inputs": inputs,
        "outputs": results,
        "before": [
            *(_describe_transform(name, blocks) for name, _ in split.outside),
            *([] if parts is None else [_describe_gathering(parts, run.files.inputs.features)]),
        ],
        "inside": [name for name, _ in split.inside],
        "after": list(task.left_to_caller),
        "numbers": to_plain(dict(task.numbers_for_caller)),
        "check": check.to_dict(),
        "run": {"path": str(run.path), "checkpoint": run.checkpoint.name, "documents": _copy_documents(run)},
    }


def _describe_transform(name: str, blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a transform that the caller applies: name, arguments, and its first sentence."""
    block = blocks.get(name.partition(":")[0])
    if block is None:
        return {"name": name}
    what = (inspect.getdoc(registry.transforms.entry(block).builder) or "").partition("\n")[0]
    order = {"only": name.partition(": ")[2]} if ":" in name else {}
    return {"name": block.name, "arguments": to_plain(dict(block.arguments)), "what": what, **order}


def _describe_gathering(parts: NetworkParts, features: Sequence[str]) -> dict[str, Any]:
    """Describe, as a transform, the tables that a network gathers of points with these `features`."""
    arguments = {"columns": ["x", "y", "z", *features], **parts.numbers}
    return {"name": f"gather_{parts.rows}", "arguments": to_plain(arguments), "what": parts.what}


def _copy_documents(run: TrainedRun) -> dict[str, str]:
    """Copy the documents of a run directory that state what its network takes."""
    folder, environment = run.files.folder, run.files.environment
    return {
        "config.yaml": (folder / "config.yaml").read_text(encoding="utf-8"),
        "facts.json": (folder / "facts.json").read_text(encoding="utf-8"),
        "inputs.json": json.dumps(inputs_document(run.files.inputs)),
        "environment.json": json.dumps({name: environment[name] for name in _OF_ENVIRONMENT if name in environment}),
    }


def description_path(path: Path) -> Path:
    """Return the path of the description beside a file: its whole name, and .json."""
    return path.with_name(f"{path.name}.json")


def write_description(path: Path, document: Mapping[str, Any]) -> Path:
    """Write the description beside a file; return its path."""
    beside = description_path(path)
    write_file(beside, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return beside


def read_description(path: Path) -> dict[str, Any]:
    """Read the description beside a file. Raises UserError if it is missing or is not one of this package."""
    beside = description_path(path)
    try:
        document = parse_json(read_regular_file(beside, max_bytes=MAX_DESCRIPTION_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"{path}: has no description beside it ({beside.name}); copy the one that `sightline export` wrote"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{beside}: cannot be read ({reason}); export the run again") from None
    try:
        run, inputs = document["run"], document["inputs"]
        texts = [run["path"], document["sha256"], *(run["documents"][name] for name in DOCUMENTS)]
        texts += [entry["name"] for entry in inputs]
        is_sound = document["format"] == VERSION and all(isinstance(text, str) for text in texts)
        is_sound &= isinstance(inputs, list) and isinstance(document["inside"], list)
    except (KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise UserError(f"{beside}: is not a description as `sightline export` writes it; export the run again")
    description: dict[str, Any] = document
    return description
