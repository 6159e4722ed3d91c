"""Run one layer in two variants on the same tensors, and print the numbers that are farthest apart.

Needs torch alone. `repro.json` beside this file describes the layer and its two variants, `tensors.bin` has the bytes
of all tensors. Ends with 1 if the variants differ by more than rounding explains, else with 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

# --- The layer's own classes follow here ---

HERE = Path(__file__).resolve().parent
Sources = dict[str, torch.Tensor]


def main() -> int:
    """Run both variants, and compare the tensor in question."""
    record = json.loads((HERE / "repro.json").read_text(encoding="utf-8"))
    tensors = read_tensors(record["tensors"])
    sides = record["variant"], record["reference"]
    if any(side["device"] == "cuda" for side in sides) and not torch.cuda.is_available():
        say("needs a CUDA device")
        return 2
    measured, expected = (run(record, side, tensors).double().cpu() for side in sides)
    names = " beside ".join(record["names"])
    say(f"{record['layer']}, {record['what']}: {names}, torch {torch.__version__}")
    if measured.shape != expected.shape:
        say(f"measured shape {tuple(measured.shape)}, expected {tuple(expected.shape)}")
        return 1
    same = (measured == expected) | (measured.isnan() & expected.isnan())
    error = torch.where(same, 0.0, (measured - expected).abs()).nan_to_num(nan=torch.inf).flatten()
    scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max())
    worst = int(error.argmax())
    entry = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), measured.shape))
    numbers = [float(values.flatten()[worst]) for values in (measured, expected)]
    say(f"entry {entry}: measured {numbers[0]:.9g}, expected {numbers[1]:.9g}")
    tolerated = record["tolerated"] * scale
    say(f"off by {float(error[worst]):.3g} where the largest value is {scale:.3g}; rounding explains {tolerated:.3g}")
    differs = not float(error[worst]) <= tolerated
    say("they differ" if differs else "they agree")
    return int(differs)


def run(record: Mapping[str, Any], side: Mapping[str, Any], tensors: list[torch.Tensor]) -> torch.Tensor:
    """Run the layer in one variant, forward and backward; return the tensor in question."""
    dtype, device, sources = getattr(torch, side["dtype"]), torch.device(side["device"]), Sources()

    def load(value: Any, prefix: str, receivers: list[str]) -> Any:
        return decode(value, tensors, lambda path, t: move(t, f"{prefix}.{path}", path in receivers))

    def move(tensor: torch.Tensor, name: str, receives: bool) -> torch.Tensor:
        moved = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        if receives:
            sources[name] = moved.clone().requires_grad_()
            return sources[name].clone()
        return moved.clone()

    module = build(side["layer"], tensors).to(device=device, dtype=dtype)
    results: Sources = {}
    calls = iter(enumerate(record["inner"]))

    def answer(*args: Any, **kwargs: Any) -> Any:
        number, call = next(calls)
        results.update({f"{number}.given.{path}": tensor for path, tensor in leaves((args, kwargs))})
        return load(call["outputs"], f"{number}.made", call["receives"])

    for path in dict.fromkeys(call["path"] for call in record["inner"]):
        module.get_submodule(path).forward = answer
    args, kwargs = load(record["inputs"], "given", record["receives"])
    if record["random_state"] is not None:
        torch.set_rng_state(tensors[record["random_state"]])
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=side["cudnn"]), lowered(side, device):
        outputs = module(*args, **kwargs)
    results.update({f"out.{path}": tensor for path, tensor in leaves(outputs)})
    results.update({f"buffer.{name}": buffer for name, buffer in module.named_buffers()})
    name = record["tensor"]
    if not name.startswith("to "):
        return results[name].detach()
    targets = {**sources, **{f"parameter.{n}": p for n, p in module.named_parameters()}}
    arriving = {n: tensors[i] for n, i in record["gradients"].items() if n in results and results[n].requires_grad}
    (gradient,) = torch.autograd.grad(
        [results[n] for n in arriving],
        [targets[name.removeprefix("to ")]],
        [tensor.to(device, results[n].dtype) for n, tensor in arriving.items()],
        allow_unused=True,
    )
    return torch.zeros_like(targets[name.removeprefix("to ")]) if gradient is None else gradient


def lowered(side: Mapping[str, Any], device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of autocast, if the variant has it."""
    return nullcontext() if side["autocast"] is None else torch.autocast(device.type, getattr(torch, side["autocast"]))


def build(layer: Mapping[str, Any], tensors: list[torch.Tensor]) -> Any:
    """Make a module without calling its constructor: from its attributes, tensors and submodules."""
    kind: Any = find(layer["class"])
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, value in layer["attributes"].items():
        object.__setattr__(module, name, decode(value, tensors, lambda _, tensor: tensor))
    for name, index in layer["parameters"].items():
        module.register_parameter(name, None if index is None else nn.Parameter(tensors[index].clone()))
    for name, index in layer["buffers"].items():
        module.register_buffer(name, None if index is None else tensors[index].clone())
    for name, inner in layer["modules"].items():
        module.add_module(name, None if inner is None else build(inner, tensors))
    if layer["avoids_cudnn"]:
        module.forward = without_cudnn(module.forward)
    return module


def without_cudnn(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward pass that avoids cuDNN."""

    def run_without(*args: Any, **kwargs: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return forward(*args, **kwargs)

    return run_without


def find(name: str) -> Any:
    """Find a class or function: of torch by its path, else one of this file."""
    first, *rest = name.split(".")
    return reduce(getattr, rest, torch) if first == "torch" else globals()[name]


def decode(value: Any, tensors: list[torch.Tensor], load: Callable[[str, torch.Tensor], Any], path: str = "") -> Any:
    """Make a value from its description; `load(path, tensor)` takes the place of each tensor."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return load(path, tensors[content])
    if kind == "torch":
        return find(content)
    pairs = content if kind == "dict" else [[str(index), item] for index, item in enumerate(content)]
    items = [(key, decode(item, tensors, load, f"{path}.{key}" if path else str(key))) for key, item in pairs]
    return dict(items) if kind == "dict" else (list if kind == "list" else tuple)(item for _, item in items)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over the tensors of a value, each with its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        yield from leaves(item, f"{path}.{name}" if path else str(name))


def read_tensors(rows: list[list[Any]]) -> list[torch.Tensor]:
    """Read all tensors: rows are dtype, shape and the first byte."""
    content = bytearray((HERE / "tensors.bin").read_bytes())
    tensors = []
    for name, shape, start in rows:
        dtype, count = getattr(torch, name), int(torch.Size(shape).numel())
        flat = (
            torch.frombuffer(content, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
        )
        tensors.append(flat.reshape(shape).clone())
    return tensors


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
