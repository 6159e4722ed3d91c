"""Benchmark of an optimiser step over many tensors: ours against torch's implementations."""

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
            make=_make_network,
            baseline=Implementation("torch_default", _make_steps(_build_torch_adam), _compare_steps),
            variants=(
                Implementation("torch_foreach", _make_steps(partial(_build_torch_adam, foreach=True)), _compare_steps),
                Implementation("sightline", _make_steps(Adam(**_ARGUMENTS).build), _compare_steps),
            ),
        )
    ]


def _make_network(*, embedding: int) -> list[Tensor]:
    """Return the parameters of CrossPoint with DGCNN and ResNet-18, all that an optimiser step needs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CrossPoint(points=DGCNNEncoder(in_channels=3, embedding=embedding), images=ResNet18Encoder())
    return [parameter.detach() for parameter in model.parameters()]


def _build_torch_adam(model: nn.Module, **form: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), **_ARGUMENTS, **form)


def _make_steps(
    build: Callable[[nn.Module], torch.optim.Optimizer],
) -> Callable[[Sequence[Tensor]], AbstractContextManager[Run]]:
    """Make optimiser steps with constant gradients; each returns the updated tensors."""

    @contextmanager
    def open_steps(inputs: Sequence[Tensor]) -> Iterator[Run]:
        model = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in inputs])
        generator = torch.Generator().manual_seed(0)
        for parameter in model:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer = build(model)

        def run() -> list[Tensor]:
            optimizer.step()
            return list(model)

        yield run

    return open_steps


def _compare_steps(inputs: Sequence[Tensor], expected: Sequence[Tensor], actual: Sequence[Tensor]) -> str | None:
    """Compare every number to 1e-5 of the learning rate plus 1e-6 of itself."""
    for index, (expected_tensor, actual_tensor) in enumerate(zip(expected, actual, strict=True)):
        if not torch.allclose(expected_tensor, actual_tensor, rtol=1e-6, atol=1e-5 * _ARGUMENTS["lr"]):
            return f"tensor {index} differs by up to {float((expected_tensor - actual_tensor).abs().max()):.3g}"
    return None
