"""Runs one layer in two variants on the same tensors, and prints by how much they differ. Needs torch and safetensors.

`sightline compare --repro` copies this file, as it is, beside `repro.json`, which describes the layers, and
`tensors.safetensors`. A layer that is not torch's own is built by sightline, or by the file that was compared with.
Exit code 1 where the deviation is there, 0 where it is not.
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
    """Run both, and compare what they make, what layers inside are given, buffers and gradients."""
    record = json.loads((HERE / "repro.json").read_text())
    tensors = load_file(HERE / "tensors.safetensors")
    variant = run(record, record["variant"], tensors, getattr(torch, record["dtype"]))
    reference = run(record, record["reference"], tensors, torch.float64)
    worst, where = 0.0, ""
    for name, exact in reference.items():
        if name not in variant:
            say(f"{name}: in the reference alone, so it is not compared")
            continue
        had = variant[name]
        if had.shape != exact.shape:
            say(f"{name}: shape {tuple(had.shape)} where the reference has {tuple(exact.shape)}")
            return 1
        same = (had == exact) | (had.isnan() & exact.isnan())
        error = float(torch.where(same, 0.0, (had.double() - exact.double()).abs()).nan_to_num(nan=torch.inf).max())
        largest = float(exact.double().abs().nan_to_num(0.0, 0.0, 0.0).max())
        unit = torch.finfo(getattr(torch, record["dtype"])).eps * largest
        ratio = error / unit if unit else 0.0 if error == 0 else float("inf")
        worst, where = max((worst, where), (ratio, name))
        say(f"{name}: largest error {error:.3g} of {largest:.3g}, {ratio:.3g} units in the last place of it")
    verdict = f"deviates, most in {where}" if worst > BOUND else "agrees"
    say(f"{record['layer']}: {verdict} (torch {torch.__version__})")
    return int(worst > BOUND)


def run(record: dict[str, Any], layer: dict[str, Any], tensors: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a layer makes and gives to layers inside, its buffers, and gradients of what it was given and of weights."""
    module = build(layer).to(dtype).train(record["is_training"])
    state = module.state_dict()
    for name in state:
        if f"{layer['weights']}.{name}" in tensors:
            state[name] = tensors[f"{layer['weights']}.{name}"].to(state[name].dtype)
    module.load_state_dict(state)
    sources: dict[str, torch.Tensor] = {}
    forced = iter(record["inner"])
    seen: dict[str, torch.Tensor] = {}

    def answer(*args: Any, **kwargs: Any) -> Any:
        each = next(forced)
        seen.update({f"what {each['path']} is given {n}".strip(): t for n, t in leaves([list(args), kwargs])})
        return nest(each["made"], tensors, dtype, sources if each["learns"] else None)

    for path in dict.fromkeys(each["path"] for each in record["inner"]):
        inner = module.get_submodule(path)
        inner.forward = answer
    args, kwargs = nest(record["given"], tensors, dtype, sources)
    made = dict(leaves(module(*args, **kwargs)))
    ended = made | seen
    results = {f"result {name}".strip(): value.detach() for name, value in ended.items() if value.is_floating_point()}
    results |= {f"buffer {name}": b.detach().clone() for name, b in module.named_buffers() if b.is_floating_point()}
    wanted = {f"input {n}": t for n, t in sources.items()}
    wanted |= {n: p for n, p in module.named_parameters() if p.requires_grad}
    ends = [name for name in record["arriving"] if name in made and made[name].requires_grad]
    if ends and wanted:
        gradients = torch.autograd.grad(
            [made[name] for name in ends],
            list(wanted.values()),
            [tensors[record["arriving"][name]].to(dtype) for name in ends],
            allow_unused=True,
        )
        found = zip(wanted, gradients, strict=True)
        results |= {f"gradient of {name}": value for name, value in found if value is not None}
    return results


def build(layer: dict[str, Any]) -> Any:
    """The layer: torch's own by its arguments, another as a part of the model that it belongs to."""
    if layer["kind"] == "torch":
        return getattr(torch.nn, layer["class"])(*layer["args"], **layer["kwargs"])
    if layer["kind"] == "file":
        return runpy.run_path(str(HERE / layer["file"]))["build"]().get_submodule(layer["path"])
    from sightline import registry
    from sightline.config import read_config
    from sightline.plugins import load_plugins

    load_plugins([HERE / name for name in layer["plugins"]])
    config = read_config(HERE / "config.yaml")
    facts = json.loads((HERE / "facts.json").read_text())
    return registry.models.build(config.model, facts=facts).get_submodule(layer["path"])


def nest(value: Any, tensors: Any, dtype: torch.dtype, sources: Any) -> Any:
    """What was given or made, in the layer's format; floating tensors ask for a gradient where `sources` is given."""
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
        import sightline.geometry.point_pyramid as levels

        fields = {key: nest(item, tensors, dtype, sources) for key, item in value["fields"].items()}
        return getattr(levels, value["class"])(**fields)
    return value["value"]


def leaves(value: Any, path: str = "") -> Any:
    """The tensors in a nest, each with its place."""
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        yield from leaves(item, f"{path}.{name}".strip("."))


def say(text: str) -> None:
    """A line for the reader."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
