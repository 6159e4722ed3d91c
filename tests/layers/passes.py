"""One forward and backward pass of a layer, and what it leaves behind, to be held against another form of the layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.layers.batch_norm import convert_sync_batchnorm
from tests.limits import HANG_S
from tests.ops.threads import with_one_and_three_threads

BOUND = 1e-9
"""What is asked of two forms in float64; rounding of 2e-16 over sums of a few thousand terms is a thousandth of it."""


class Ranks:
    """Threads that play processes: each reduction meets at a barrier, and autograd runs through the joint sum."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=HANG_S)
        self._parts: list[Tensor | None] = [None] * size

    def reducer(self, rank: int) -> Callable[[Tensor], Tensor]:
        def all_reduce_sum(tensor: Tensor) -> Tensor:
            self._parts[rank] = tensor
            self._barrier.wait()
            total = torch.stack([part for part in self._parts if part is not None]).sum(0)
            self._barrier.wait()
            return total

        return all_reduce_sum

    def run(self, models: Sequence[nn.Module], parts: Sequence[Tensor]) -> list[Tensor]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(lambda model, part: model(part), models, parts))


@dataclass
class Pass:
    """Outputs side by side, gradients of inputs and parameters by name, and the state afterwards."""

    output: Tensor
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def run(layer: nn.Module, given: Mapping[str, Tensor | None], weight: Tensor) -> Pass:
    """The pass of `layer(**given)`; the last of several outputs, the logits of a model, is weighted and summed."""
    own = {
        name: value.clone().requires_grad_() if value is not None and value.is_floating_point() else value
        for name, value in given.items()
    }
    output = layer(**own)
    output = output["logits"] if isinstance(output, dict) else output
    output = output[-1] if isinstance(output, tuple) else output
    (output * weight).sum().backward()
    leaves = own | dict(layer.named_parameters())
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.grad is not None}
    return Pass(output.detach(), gradients, {name: value.clone() for name, value in layer.state_dict().items()})


def assert_passes_agree(found: Pass, expected: Pass, bound: float) -> None:
    """Gradients are compared to their own size, or to that of the largest where they are zero but for rounding."""
    torch.testing.assert_close(found.output, expected.output, rtol=bound, atol=bound)
    assert found.gradients.keys() == expected.gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        assert gradient.shape == found.gradients[name].shape
        torch.testing.assert_close(found.gradients[name], gradient, rtol=bound, atol=bound * largest, msg=name)
    for name, value in expected.state.items():
        torch.testing.assert_close(found.state[name], value, rtol=bound, atol=bound)


def make_pair(plain_kind: Callable[..., nn.Module], quick_kind: Callable[..., nn.Module], **arguments: Any) -> Any:
    """One state in both forms, in float64; half of the norms' weights are negative, and one of each is exactly 0."""
    plain, quick = plain_kind(**arguments).double(), quick_kind(**arguments).double()
    unsettle(plain)
    quick.load_state_dict(plain.state_dict())
    return plain, quick


def unsettle(module: nn.Module) -> None:
    """Give every batch norm weights of both signs, one that is exactly 0, and running statistics that matter."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for values in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            with torch.no_grad():
                norm.weight[1] = 0


def assert_processes_agree(
    layer: nn.Module, given: Mapping[str, Tensor], weight: Tensor, sizes: Sequence[int], expected: Pass
) -> None:
    """The layer on parts of `sizes` samples, with the statistics of all, leaves what the whole batch does.

    Threads play the processes, so every batch norm must be inside a layer that reduces in its own backward.
    """
    ranks = Ranks(len(sizes))
    layers = [convert_sync_batchnorm(layer, ranks.reducer(rank)) for rank in range(ranks.size)]
    split = zip(*(value.split(list(sizes)) for value in given.values()), strict=True)
    parts = [dict(zip(given, part, strict=True)) for part in split]
    with ThreadPoolExecutor(ranks.size) as pool:
        passes = list(pool.map(run, layers, parts, weight.split(list(sizes))))
    output = torch.cat([one.output for one in passes])
    together: dict[str, Any] = {
        name: torch.cat([one.gradients[name] for one in passes])
        if name in given
        else sum(one.gradients[name] for one in passes)
        for name in passes[0].gradients
    }
    for one in passes:
        assert_passes_agree(Pass(output, together, one.state), expected, BOUND)


def assert_bf16_errs_no_more(plain: nn.Module, fused: nn.Module, given: Mapping[str, Tensor], weight: Tensor) -> None:
    """Under bf16 autocast the fused form is as near to float64 as the plain form under autocast, give or take the luck
    of rounding: the output, and every gradient that is not zero but for rounding, by its distance.

    Inputs are bfloat16 numbers, given once as float32 and once as bfloat16; 1 and 3 threads leave the same bits.
    """
    given = {name: value.bfloat16().float() for name, value in given.items()}
    state = {name: value.clone() for name, value in plain.state_dict().items()}

    def passed(layer: nn.Module, dtype: torch.dtype, of_inputs: torch.dtype) -> Pass:
        layer.to(dtype).load_state_dict(state)
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            return run(layer, {name: value.to(of_inputs) for name, value in given.items()}, weight.to(dtype))

    exact = passed(plain, torch.float64, torch.float64)
    largest = max(gradient.norm().item() for gradient in exact.gradients.values())
    for of_inputs in (torch.float32, torch.bfloat16):
        rounded = passed(plain, torch.float32, of_inputs)
        again = passed(fused, torch.float32, of_inputs)
        found = with_one_and_three_threads(partial(passed, fused, torch.float32, of_inputs))
        assert all(torch.equal(one.output, again.output) for one in found)
        for name, truth in {"output": exact.output, **exact.gradients}.items():
            of_fused, of_plain = (
                (one.output if name == "output" else one.gradients[name]).double() for one in (found[0], rounded)
            )
            if name != "output":
                assert all(torch.equal(one.gradients[name], again.gradients[name]) for one in found)
            slack = 0.0 if name == "output" else 2**-8 * largest
            assert (of_fused - truth).norm() <= 1.5 * (of_plain - truth).norm() + slack, name
        for name, value in exact.state.items():
            torch.testing.assert_close(found[0].state[name].double(), value.double(), rtol=2**-6, atol=2**-6)
