"""Script that runs one layer in two variants on the same tensors and prints the differences.

It needs torch and safetensors. `sightline compare --repro` copies this file unchanged into a folder with `repro.json`,
which describes the layers, and `tensors.safetensors`. A layer that is not torch's own is built by sightline, or by the
user's file that was the reference. The exit code is 1 if the layers deviate, else 0.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
BOUND = 16.0


def main() -> int:
    """Run both variants, and compare results, inputs of nested layers, buffers and gradients."""
    record = json.loads((HERE / "repro.json").read_text())
    tensors = load_file(HERE / "tensors.safetensors")
    variant = run(record, record["variant"], tensors, getattr(torch, record["dtype"]))
    reference = run(record, record["reference"], tensors, torch.float64)
    worst, worst_name = 0.0, ""
    for name, exact in reference.items():
        if name not in variant:
            say(f"{name}: in the reference alone, so it is not compared")
            continue
        actual = variant[name]
        if actual.shape != exact.shape:
            say(f"{name}: shape {tuple(actual.shape)} where the reference has {tuple(exact.shape)}")
            return 1
        is_equal = (actual == exact) | (actual.isnan() & exact.isnan())
        error = float(
            torch.where(is_equal, 0.0, (actual.double() - exact.double()).abs()).nan_to_num(nan=torch.inf).max()
        )
        largest = float(exact.double().abs().nan_to_num(0.0, 0.0, 0.0).max())
        unit = torch.finfo(getattr(torch, record["dtype"])).eps * largest
        ratio = error / unit if unit else 0.0 if error == 0 else float("inf")
        worst, worst_name = max((worst, worst_name), (ratio, name))
        say(f"{name}: largest error {error:.3g} of {largest:.3g}, {ratio:.3g} units in the last place of it")
    verdict = f"deviates, most in {worst_name}" if worst > BOUND else "agrees"
    say(f"{record['layer']}: {verdict} (torch {torch.__version__})")
    return int(worst > BOUND)


def run(record: dict[str, Any], layer: dict[str, Any], tensors: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Run a layer, and return its results, inputs of nested layers, buffers, and gradients of inputs and weights."""
    module = build(layer).to(dtype).train(record["is_training"])
    state = module.state_dict()
    for name in state:
        if f"{layer['weights']}.{name}" in tensors:
            state[name] = tensors[f"{layer['weights']}.{name}"].to(state[name].dtype)
    module.load_state_dict(state)
    sources: dict[str, torch.Tensor] = {}
    inner_calls = iter(record["inner"])
    inner_inputs: dict[str, torch.Tensor] = {}

    def answer(*args: Any, **kwargs: Any) -> Any:
        inner_call = next(inner_calls)
        inner_inputs.update(
            {f"what {inner_call['path']} is given {n}".strip(): t for n, t in leaves([list(args), kwargs])}
        )
        return nest(inner_call["made"], tensors, dtype, sources if inner_call["learns"] else None)

    for path in dict.fromkeys(inner_call["path"] for inner_call in record["inner"]):
        inner = module.get_submodule(path)
        inner.forward = answer
    args, kwargs = nest(record["given"], tensors, dtype, sources)
    outputs = dict(leaves(module(*args, **kwargs)))
    tensors_made = outputs | inner_inputs
    results = {
        f"result {name}".strip(): value.detach() for name, value in tensors_made.items() if value.is_floating_point()
    }
    results |= {f"buffer {name}": b.detach().clone() for name, b in module.named_buffers() if b.is_floating_point()}
    leaves_by_name = {f"input {n}": t for n, t in sources.items()}
    leaves_by_name |= {n: p for n, p in module.named_parameters() if p.requires_grad}
    output_names = [name for name in record["arriving"] if name in outputs and outputs[name].requires_grad]
    if output_names and leaves_by_name:
        gradients = torch.autograd.grad(
            [outputs[name] for name in output_names],
            list(leaves_by_name.values()),
            [tensors[record["arriving"][name]].to(dtype) for name in output_names],
            allow_unused=True,
        )
        named_gradients = zip(leaves_by_name, gradients, strict=True)
        results |= {f"gradient of {name}": value for name, value in named_gradients if value is not None}
    return results


def build(layer: dict[str, Any]) -> Any:
    """Build the layer: torch's own from its arguments, others as a submodule of their model."""
    if layer["kind"] == "torch":
        return getattr(torch.nn, layer["class"])(*layer["args"], **layer["kwargs"])
    if layer["kind"] == "file":
        return runpy.run_path(str(HERE / layer["file"]))["build"]().get_submodule(layer["path"])
    from sightline.config import read_config
    from sightline.contract import registry
    from sightline.contract.plugins import load_plugins

    load_plugins([HERE / name for name in layer["plugins"]])
    config = read_config(HERE / "config.yaml")
    facts = json.loads((HERE / "facts.json").read_text())
    return registry.models.build(config.model, facts=facts).get_submodule(layer["path"])


def nest(value: Any, tensors: Any, dtype: torch.dtype, sources: Any) -> Any:
    """Decode a tree in the layer's dtype; floating tensors require grad and join `sources`, unless it is None."""
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(dtype)
        if sources is None:
            return tensor
        sources[str(len(sources))] = tensor.requires_grad_()
        return tensor.clone()
    if "pairs" in value:
        return {key: nest(item, tensors, dtype, sources) for key, item in value["pairs"]}
    if "dict" in value:
        return {key: nest(item, tensors, dtype, sources) for key, item in value["dict"].items()}
    if "list" in value:
        return [nest(item, tensors, dtype, sources) for item in value["list"]]
    if "tuple" in value:
        return tuple(nest(item, tensors, dtype, sources) for item in value["tuple"])
    if "class" in value:
        import sightline.layers.pyramid as levels

        fields = {key: nest(item, tensors, dtype, sources) for key, item in value["fields"].items()}
        return getattr(levels, value["class"])(**fields)
    return value["value"]


def leaves(value: Any, path: str = "") -> Any:
    """Iterate over the tensors of a tree as (path, tensor)."""
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        yield from leaves(item, f"{path}.{name}".strip("."))


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
