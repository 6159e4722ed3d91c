"""Every shipped recipe on a GPU: the step of a CPU, and how often the host waits for it. Without a GPU nothing runs.

python -m tests.test_gpu      prints the differences and the waits of each recipe
"""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from sightline.instrument.random_state import preserve_random_state
from sightline.layers.range_image import MeanPool2d
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.ops.waits import send
from tests.devices import rounded_to
from tests.recipe_steps import RECIPES, SmallStep
from tests.test_devices import CALLS

_MAX_DIFFERENCE = 2e-3
"""Of a mean loss in float32: a GPU adds in another order, and a maximum of nearly equal numbers may be another."""
_MAX_WAITS = 2


class GpuStep(NamedTuple):
    """Loss means of a first step on a CPU and on a GPU; waits of the second step there, by place."""

    on_cpu: dict[str, float]
    on_gpu: dict[str, float]
    waits: Counter[str]

    @property
    def difference(self) -> float:
        """Largest difference of a loss, as a share of it, or of 1 for one below that."""
        pairs = [(self.on_cpu[name], self.on_gpu[name]) for name in self.on_cpu]
        return max(abs(here - there) / max(1.0, abs(here)) for here, there in pairs)


def run_steps(recipe: str, folder: Path) -> GpuStep:
    """Run a step of a small form of a recipe, in float32, on a CPU and on a GPU, and a second one on the GPU."""
    backend = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [each.fp32_precision for each in backend]
    try:
        for each in backend:
            each.fp32_precision = "ieee"
        means = []
        for device in ("cpu", "cuda"):
            (folder / device).mkdir()
            step = SmallStep(recipe, folder / device, "train.precision=float32", device=device)
            stop_draws(step.job.model)
            means.append(dict(step.run().losses))
        step.run()
        return GpuStep(*means, count_waits(step))
    finally:
        for each, value in zip(backend, before, strict=True):
            each.fp32_precision = value


def stop_draws(model: nn.Module) -> None:
    """Turn off dropout and stochastic depth: a GPU draws other numbers than a CPU."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def count_waits(step: SmallStep) -> Counter[str]:
    """Count the places at which torch reports that the host waits for the GPU in a step; inputs are sent before."""
    sent = step.send()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step.run(sent)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    return Counter(places)


@pytest.mark.parametrize("recipe", RECIPES if torch.cuda.is_available() else [])
def test_a_step_is_that_of_a_cpu_and_hardly_waits(recipe: str, tmp_path: Path) -> None:
    step = run_steps(recipe, tmp_path)
    assert step.on_cpu.keys() == step.on_gpu.keys()
    assert all(map(math.isfinite, step.on_gpu.values()))
    assert step.difference <= _MAX_DIFFERENCE, step
    assert step.waits.total() <= _MAX_WAITS, step.waits


@pytest.mark.parametrize("padding", [0, 1, (1, 0)] if torch.cuda.is_available() else [])
def test_mean_pooling_has_the_gradient_of_a_cpu(padding: int | tuple[int, int]) -> None:
    """With channels last: torch's own layer has another one (issue 188344 of torch)."""
    generator = torch.Generator().manual_seed(0)
    gradients = []
    values = torch.randn(2, 5, 8, 12, dtype=torch.float64, generator=generator)
    for device in ("cpu", "cuda"):
        image = values.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
        pooled = MeanPool2d(3, 2, padding)(image)
        (pooled * torch.arange(pooled.numel(), device=device).view(pooled.shape)).sum().backward()
        assert image.grad is not None
        gradients.append(image.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("size", [4096] if torch.cuda.is_available() else [])
def test_values_have_arrived_when_the_host_has_them(size: int) -> None:
    """Those of a queue that is long at work."""
    factor = torch.eye(size, device="cuda")
    product = factor * 3
    for _ in range(50):
        product = product @ factor
    assert torch.equal(send(product, torch.device("cpu")), 3 * torch.eye(size))


@pytest.mark.parametrize("size", [16] if torch.cuda.is_available() else [])
def test_the_random_state_of_a_gpu_is_put_back(size: int) -> None:
    drawn = []
    torch.cuda.manual_seed(0)
    for _ in range(2):
        with preserve_random_state():
            drawn.append(torch.rand(size, device="cuda"))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", CALLS if torch.cuda.is_available() else [])
def test_numbers_are_those_of_a_cpu(name: str) -> None:
    function, inputs = CALLS[name]
    found = function(*(tensor.cuda() for tensor in inputs))
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), function(*inputs))


@pytest.mark.parametrize("precision", ["ieee", "tf32"] if torch.cuda.is_available() else [])
def test_neighbours_are_those_of_a_cpu_with_rounded_products(precision: str) -> None:
    points = torch.randn(2, 500, 32, generator=torch.Generator().manual_seed(0))
    with rounded_to(precision, torch.backends.cuda.matmul):
        found = nearest_neighbours(points.cuda(), num_neighbours=9)
    assert torch.equal(found.cpu(), nearest_neighbours(points, num_neighbours=9))


def main() -> None:
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                step = run_steps(recipe, Path(folder))
            except Exception as error:  # noqa: BLE001 - the table names what fails
                print(f"{recipe}: {type(error).__name__}: {error}", flush=True)  # noqa: T201
                continue
        waits = ", ".join(f"{place} x {count}" for place, count in step.waits.items())
        print(f"{recipe}: difference {step.difference:.1e}, waits {step.waits.total()}: {waits}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
