"""Reproduction of a guilty layer for its maintainers: a script that needs torch alone, and the layer's tensors."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import runpy
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError, summarise_error
from sightline.instrument.replay import LayerUnit
from sightline.layers.native_batch_norm import Native
from sightline.runs.output_files import write_file
from sightline.workbench.compare import repro_script
from sightline.workbench.compare.comparison import VariantComparison
from sightline.workbench.compare.external_model import ExternalModel
from sightline.workbench.compare.layerwise import LOSS, TARGETS, LayerComparison, find_module
from sightline.workbench.compare.module_source import NotWritableError, SourceCollector
from sightline.workbench.compare.variants import ModelVariant

_MARK = "# --- The layer's own classes follow here ---\n"
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, float, str, type(None))


def assert_empty_folder(folder: Path) -> None:
    """Raise UserError if there is something other than an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--repro {folder}: is not an empty folder; give another")


def write_repro(folder: Path, comparison: VariantComparison) -> str:
    """Write the first guilty layer into a folder and run the script; return a sentence that says what was written.

    Nothing is written if no layer is guilty, if a script cannot hold the layer, or if the script shows no difference:
    the sentence says why.
    """
    row = next((r for r in comparison.guilty_rows if r.unit and r.unit.call.path not in (LOSS, TARGETS)), None)
    if row is None or row.unit is None or comparison.variants is None:
        return "--repro: nothing is written: no layer diverges by itself"
    writer = _Writer()
    try:
        record = writer.describe(row, row.unit, comparison.variants)
        script = _insert_sources(writer.sources)
    except NotWritableError as error:
        return f"--repro: nothing is written: {row.layer} ({row.class_name}) cannot be written alone: {error}"
    existed = folder.exists()
    write_file(folder / "repro.json", json.dumps(record, indent=1) + "\n")
    write_file(folder / "tensors.bin", bytes(writer.content))
    write_file(folder / "repro.py", script)
    code, printed = _run_script(folder / "repro.py", writer)
    if code == 1:
        return f"--repro: python {folder / 'repro.py'} ends with 1: {printed}"
    for name in ("repro.json", "tensors.bin", "repro.py"):
        (folder / name).unlink()
    if not existed:
        shutil.rmtree(folder)
    return f"--repro: nothing is written: {row.layer} ({row.class_name}) alone does not show it: {printed}"


def _run_script(path: Path, writer: _Writer) -> tuple[int, str]:
    """Run the written script in this process; return its exit code and the line with the numbers, or its failure."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), torch.random.fork_rng():
            code = int(runpy.run_path(str(path))["main"]())
    except Exception as error:  # noqa: BLE001 - of the layer's own code, without what could not be written
        left = writer.left_out.get(getattr(error, "name", None) or "")
        return 2, left or summarise_error(error, max_length=200)
    lines = printed.getvalue().splitlines()
    return code, next((line for line in lines if "measured" in line), lines[-1] if lines else "it prints nothing")


def _insert_sources(sources: SourceCollector) -> str:
    """Return the script with the layer's classes. Raises NotWritableError for a name that the script has, too."""
    text = inspect.getsource(repro_script)
    taken = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if both := sorted(taken & sources.names):
        raise NotWritableError(f"it uses something called '{both[0]}', as the script does")
    assert _MARK in text
    return text.replace(_MARK, f"{sources.text}\n\n\n" if sources.names else "")


class _Writer:
    """Encoder of a layer and its call as JSON; `content` has the bytes of all tensors."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.sources = SourceCollector()
        self.left_out: dict[str, str] = {}
        self._rows: list[list[Any]] = []

    def describe(
        self, row: LayerComparison, unit: LayerUnit, variants: tuple[ModelVariant, ModelVariant]
    ) -> dict[str, Any]:
        """Describe a row's layer in both variants. Raises NotWritableError if a script cannot hold it."""
        if "in every variant" in row.deviation.note:
            raise NotWritableError(f"it {row.deviation.note}, so that there is no exact result to set beside it")
        if isinstance(variants[1].model, ExternalModel) and unit.inner:
            raise NotWritableError("its own code is between other layers, which have other names in the other network")
        variant = find_module(variants[0].model, row)
        if variant is None:
            raise NotWritableError("the other network alone has it")
        call, prefix = unit.call, f"{unit.prefix}." if unit.prefix else ""
        replaced = [inner.path.removeprefix(prefix) for inner in unit.inner]
        state = None if call.random_state is None else self._add(call.random_state[0])
        return {
            "layer": f"{row.layer} ({row.class_name})",
            "what": row.what,
            "tensor": row.name.replace(f"parameter.{prefix}", "parameter.").replace(f"buffer.{prefix}", "buffer."),
            "tolerated": row.deviation.relative_bound,
            "names": [side.name for side in variants],
            "variant": self._describe_side(variants[0], variant, replaced),
            "reference": self._describe_side(variants[1], unit.owner, replaced),
            "inputs": self.encode(call.inputs, "inputs"),
            "receives": list(call.input_gradients),
            "random_state": state,
            "inner": [
                {
                    "path": path,
                    "outputs": self.encode(inner.outputs, f"the result of {inner.name}"),
                    "receives": list(inner.output_gradients),
                }
                for path, inner in zip(replaced, unit.inner, strict=True)
            ],
            "gradients": self._describe_gradients(unit),
            "tensors": self._rows,
        }

    def _describe_gradients(self, unit: LayerUnit) -> dict[str, int]:
        gradients = {f"out.{path}": g for path, g in unit.call.output_gradients.items()}
        for number, inner in enumerate(unit.inner):
            gradients |= {f"{number}.given.{path}": g for path, g in inner.input_gradients.items()}
        return {name: self._add(gradient) for name, gradient in gradients.items()}

    def _describe_side(self, side: ModelVariant, module: nn.Module, replaced: Collection[str]) -> dict[str, Any]:
        lowered = {"bf16": "bfloat16", "fp16": "float16"}.get(side.precision.name)
        return {
            "dtype": str(side.precision.parameter_dtype).removeprefix("torch."),
            "autocast": lowered,
            "device": side.device.type,
            "cudnn": side.cudnn != "off",
            "layer": self._describe_module(module, replaced),
        }

    def _describe_module(self, module: nn.Module, replaced: Collection[str], path: str = "") -> dict[str, Any]:
        """Describe a module as `build` of the script makes it; what is replaced is an empty module."""
        if path in replaced and path:
            return self._empty_module()
        kind: type = type(module)
        avoids_cudnn = isinstance(module, Native)
        if avoids_cudnn:
            kind = next(base for base in kind.__mro__ if not issubclass(base, Native))
        attributes = {}
        for name, value in vars(module).items():
            if name in _INTERNAL:
                continue
            try:
                attributes[name] = self.encode(value, f"its attribute {name}")
            except NotWritableError as error:
                self.left_out[name] = str(error)
        inside = f"{path}." if path else ""
        return {
            "class": self._name_class(kind),
            "avoids_cudnn": avoids_cudnn,
            "attributes": attributes,
            "parameters": {n: None if p is None else self._add(p) for n, p in module._parameters.items()},
            "buffers": {n: None if b is None else self._add(b) for n, b in module._buffers.items()},
            "modules": {
                n: None if m is None else self._describe_module(m, replaced, f"{inside}{n}")
                for n, m in module._modules.items()
            },
        }

    @staticmethod
    def _empty_module() -> dict[str, Any]:
        parts: dict[str, Any] = {"attributes": {"training": True}, "parameters": {}, "buffers": {}, "modules": {}}
        return {"class": "torch.nn.Module", "avoids_cudnn": False, **parts}

    def _name_class(self, kind: type) -> str:
        return f"{kind.__module__}.{kind.__qualname__}" if _is_of_torch(kind) else self.sources.add(kind)

    def encode(self, value: Any, where: str) -> Any:
        """Encode a value: tensors by number, containers by their kind, functions and classes of torch by their path."""
        if isinstance(value, Tensor):
            return {"tensor": self._add(value)}
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": [[key, self.encode(item, where)] for key, item in value.items()]}
        if type(value) in (list, tuple, torch.Size):
            name = "list" if isinstance(value, list) else "tuple"
            return {name: [self.encode(item, where) for item in value]}
        if isinstance(value, torch.dtype):
            return {"torch": str(value)}
        if _is_of_torch(value):
            return {"torch": f"{value.__module__}.{value.__qualname__}"}
        raise NotWritableError(f"{where} holds a {type(value).__name__}, which no file of plain numbers can")

    def _add(self, tensor: Tensor) -> int:
        values = tensor.detach().cpu().contiguous()
        if values.layout is not torch.strided or values.dtype.is_complex:
            raise NotWritableError(f"it has a tensor of {values.dtype}, {values.layout}")
        start = len(self.content)
        self.content += values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
        self.content += b"\0" * (-len(self.content) % 16)
        self._rows.append([str(values.dtype).removeprefix("torch."), list(values.shape), start])
        return len(self._rows) - 1


def _is_of_torch(value: Any) -> bool:
    """Return True for a class or function that is to be reached below `torch` under its own name."""
    names = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}".split(".")
    reached: Any = torch
    for name in names[1:]:
        reached = getattr(reached, name, None)
    return names[0] == "torch" and reached is value
