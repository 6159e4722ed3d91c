"""An optimiser's step over a network of many tensors: ours beside the forms that torch has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.bench.case import BenchmarkCase, Implementation, Run
from sightline.engine.optimizers import Adam
from sightline.models.crosspoint import CrossPoint
from sightline.models.dgcnn import DGCNNEncoder
from sightline.models.resnet import ResNet18Encoder

__all__ = ["cases"]

_ARGUMENTS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-4}


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="train",
            label="adam_step_crosspoint_{embedding}",
            size={"embedding": 1024},
            quick={"embedding": 8},
            make=_network,
            baseline=Implementation("torch_default", _steps(_torch_adam), _same_steps),
            variants=(
                Implementation("torch_foreach", _steps(partial(_torch_adam, foreach=True)), _same_steps),
                Implementation("sightline", _steps(Adam(**_ARGUMENTS).build), _same_steps),
            ),
        )
    ]


def _network(*, embedding: int) -> list[Tensor]:
    """The tensors of CrossPoint with DGCNN and ResNet-18, and no more: a step looks at nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CrossPoint(points=DGCNNEncoder(in_channels=3, embedding=embedding), images=ResNet18Encoder())
    return [parameter.detach() for parameter in model.parameters()]


def _torch_adam(model: nn.Module, **form: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), **_ARGUMENTS, **form)


def _steps(
    build: Callable[[nn.Module], torch.optim.Optimizer],
) -> Callable[[Sequence[Tensor]], AbstractContextManager[Run]]:
    """Steps along the same gradients; the answer is the tensors after them."""

    @contextmanager
    def opened(inputs: Sequence[Tensor]) -> Iterator[Run]:
        model = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in inputs])
        draws = torch.Generator().manual_seed(0)
        for parameter in model:
            parameter.grad = torch.randn(parameter.shape, generator=draws)
        optimizer = build(model)

        def run() -> list[Tensor]:
            optimizer.step()
            return list(model)

        yield run

    return opened


def _same_steps(inputs: Sequence[Tensor], expected: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    """Every number to 1e-5 of the learning rate and 1e-6 of itself."""
    for place, (wanted, given) in enumerate(zip(expected, found, strict=True)):
        if not torch.allclose(wanted, given, rtol=1e-6, atol=1e-5 * _ARGUMENTS["lr"]):
            return f"tensor {place} differs by up to {float((wanted - given).abs().max()):.3g}"
    return None
