"""Hessians: the curvature of a run's loss, products and traces, against PyHessian and exact ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.compression.policy import WeightFormat
from sightline.compression.weights import quantisable_weights
from sightline.contract.errors import UserError
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.distributed import World
from sightline.engine.step import Step, prepare_step, single_batch_step
from sightline.workbench.compress.curvature import Curvature, build_curvature, hessian_product, hessian_traces
from sightline.workbench.compress.simulator import PolicySimulator
from tests.compare.steps import LossesAlone
from tests.golden_parity import Golden, load_golden, rule_made_state
from tests.runs.small import small_run

# --- products with the Hessian, and its trace -------------------------------------------------------------------------


KINDS = {"running_mean": "running_mean", "running_var": "running_var", "num_batches_tracked": "num_batches_tracked"}


def nets() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3)),
        nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
    ]


def loaded(net: nn.Module) -> nn.Module:
    """The net in float64 and evaluation mode, with the weights that the golden files' rule makes."""
    rule = {1: "vector"}
    entries = []
    for key, value in net.state_dict().items():
        is_norm = isinstance(net.get_submodule(key.partition(".")[0]), nn.BatchNorm1d)
        kind = KINDS.get(key.partition(".")[2]) or ("norm_weight" if is_norm and key.endswith("weight") else None)
        entries.append(
            {"key": key, "kind": kind or rule.get(value.ndim, "matrix"), "shape": value.shape, "tied_to": None}
        )
    net.double().load_state_dict(rule_made_state(entries))
    return net.eval()


def test_products_and_traces_are_those_of_logistic_regression() -> None:
    """Its Hessian in closed form, X' diag(p (1 - p)) X / n, of weights and bias together."""
    draws = np.random.default_rng(0)
    given, labels, start = draws.normal(size=(40, 5)), draws.integers(0, 2, 40), draws.normal(size=6)
    columns = np.column_stack([given, np.ones(40)])
    chances = 1 / (1 + np.exp(-columns @ start))
    hessian = columns.T @ (columns * (chances * (1 - chances))[:, None]) / 40
    weight = torch.tensor(start[:5], requires_grad=True)
    bias = torch.tensor(start[5:], requires_grad=True)

    def loss_of() -> Tensor:
        scores = torch.from_numpy(given) @ weight + bias
        return F.binary_cross_entropy_with_logits(scores, torch.from_numpy(labels.astype(np.float64)))

    for vector in np.eye(6):
        parts = hessian_product(loss_of(), [weight, bias], [*torch.from_numpy(vector).split([5, 1])])
        np.testing.assert_allclose(torch.cat(parts), hessian @ vector, rtol=0, atol=1e-15)
    found = hessian_traces(loss_of, {"weight": weight, "bias": bias}, seed=1, draws=400, tolerance=0.0)
    off = hessian - np.diag(np.diag(hessian))  # v'Hv of a block deviates by its row of H as well: |row| over sqrt(n)
    for name, rows in (("weight", slice(5)), ("bias", slice(5, 6))):
        bound = 4 * np.sqrt(2 * (off[rows] ** 2).sum() / 400)
        assert found[name] == pytest.approx(np.trace(hessian[rows, rows]), abs=bound)


def test_products_and_traces_are_those_of_pyhessian(shared: Path) -> None:
    golden = load_golden(shared, "hessian_trace", area="compress")
    recorded = sorted({key.partition("/")[0] for key in golden.arrays if "/" in key})
    assert recorded == [f"net{number}" for number in range(len(nets()))]
    for number in range(len(nets())):
        assert_is_pyhessians(golden, number)


def assert_is_pyhessians(golden: Golden, number: int) -> None:
    arrays = {key.partition("/")[2]: v for key, v in golden.arrays.items() if key.startswith(f"net{number}/")}
    net = loaded(nets()[number])
    parameters = dict(net.named_parameters())
    assert list(parameters) == golden.info[f"net{number}_params"]
    tensors, sizes = list(parameters.values()), [each.numel() for each in parameters.values()]

    def loss_of() -> Tensor:
        return F.cross_entropy(net(torch.from_numpy(arrays["x"])), torch.from_numpy(arrays["y"]))

    def product(flat: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(np.asarray(flat, dtype=np.float64)).split(sizes)
        found = hessian_product(loss_of(), tensors, [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])
        return torch.cat([each.flatten() for each in found]).numpy()

    def close(found: object, expected: np.ndarray, bound: float = 1e-9) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound * max(1e-3, np.abs(expected).max()))

    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss_of(), tensors)])
    close(gradient, arrays["loss_gradient"])
    hessian = np.stack([product(row) for row in np.eye(sum(sizes))])
    close(hessian, hessian.T)
    close(np.diag(hessian), arrays["hessian_diag"])
    values = np.linalg.eigvalsh(hessian)
    close(values, np.sort(arrays["hessian_eig"]))
    largest = values[np.argsort(-np.abs(values))[:2]]
    close(largest, arrays["top2_eigenvalues_power_iteration"], 1e-4)  # their iteration ends at a change of 1e-5
    close(np.trace(hessian), arrays["trace_exact"])
    ends = np.cumsum(sizes)[:-1]
    exact = [part.sum() for part in np.split(np.diag(hessian), ends)]
    close(exact, arrays["trace_per_parameter"])
    for signs, whole, parts in zip(arrays["rademacher"], arrays["vHv"], arrays["vHv_per_parameter"], strict=True):
        terms = signs * product(signs)
        close(terms.sum(), whole)
        close([part.sum() for part in np.split(terms, ends)], parts)
    # Hutchinson's deviation is sqrt(2 ||H - diag||^2 / draws): four of them, over all tensors together
    off = hessian - np.diag(np.diag(hessian))
    found = hessian_traces(loss_of, parameters, seed=1, draws=400, tolerance=0.0)
    assert list(found) == list(parameters)
    assert sum(found.values()) == pytest.approx(np.trace(hessian), abs=4 * np.sqrt(2 * (off**2).sum() / 400))
    assert hessian_traces(loss_of, parameters, seed=1, draws=3) == hessian_traces(loss_of, parameters, seed=1, draws=3)


def test_a_diagonal_hessian_is_exact_with_one_draw() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    linear = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 10.0, 100.0])
    found = hessian_traces(
        lambda: (scale * weight**2).sum() + linear.sum(), {"w": weight, "b": linear}, seed=0, draws=1
    )
    assert found == {"w": 222.0, "b": 0.0}
    assert hessian_traces(lambda: linear.sum(), {"b": linear}, seed=0, draws=2) == {"b": 0.0}


# --- curvature of a run's own loss ------------------------------------------------------------------------------------


CPU = torch.device("cpu")


class Regression(LossesAlone):
    """A task of two losses, sums over samples."""

    def __init__(self, first: Any = F.mse_loss) -> None:
        self.first = first

    def prepare(self, model: nn.Module, micro_batches: Any, world: Any) -> tuple[dict[str, Tensor], list[None]]:
        count = torch.tensor(float(sum(len(batch["x"]) for batch in micro_batches)))
        return {"first": count, "second": count}, [None] * len(micro_batches)

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], around: None) -> dict[str, Tensor]:
        found = model(batch["x"])
        return {"first": self.first(found, batch["y"], reduction="sum"), "second": found.pow(4).sum()}


def step_of(task: Regression, model: nn.Module, *, sizes: tuple[int, ...] = (5, 2)) -> Step:
    batches = [
        {"x": torch.randn(size, 4, dtype=torch.float64), "y": torch.randn(size, 2, dtype=torch.float64)}
        for size in sizes
    ]
    return prepare_step(task, model, batches, World())  # type: ignore[arg-type]


def curvature(model: nn.Module, step: Step) -> Curvature:
    names = tuple(name for name, each in model.named_parameters() if each.ndim > 1)
    return build_curvature(PolicySimulator(model, names, {}), step, {"first": 1.5, "second": 0.25})


def test_traces_are_those_of_the_exact_hessian_of_all_micro_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    model[1].running_var.mul_(2.0)
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    step = step_of(Regression(), model)
    found = curvature(model.requires_grad_(False).train(), step)
    assert list(found.parameters) == ["0.weight", "3.weight"]
    x, y = (torch.cat([batch[key] for batch in step.micro_batches]) for key in ("x", "y"))
    plain = {name: each.detach() for name, each in model.state_dict().items()}

    def loss_at(first: Tensor, last: Tensor) -> Tensor:
        """The mean over seven samples, written out."""
        h = x @ first.T + plain["0.bias"] - plain["1.running_mean"]
        h = h / (plain["1.running_var"] + 1e-5).sqrt() * plain["1.weight"] + plain["1.bias"]
        outputs = h.tanh() @ last.T + plain["3.bias"]
        return (1.5 * (outputs - y).square().sum() + 0.25 * outputs.pow(4).sum()) / 7

    weights = (plain["0.weight"], plain["3.weight"])
    assert found.loss_of().item() == pytest.approx(loss_at(*weights).item(), rel=1e-12)
    exact = torch.autograd.functional.hessian(loss_at, weights)
    traces = hessian_traces(found.loss_of, found.parameters, seed=0, draws=500, tolerance=0.0)
    for place, (name, trace) in enumerate(traces.items()):
        size = weights[place].numel()
        block = exact[place][place].reshape(size, size)
        # The variance of one draw: twice the squares beside the diagonal, and the squares against the other tensor.
        others = 2 * (block - block.diag().diag()).square().sum() + exact[place][1 - place].square().sum()
        deviation = (others / 500).sqrt().item()
        assert abs(trace - block.trace().item()) < 4 * deviation, name
        vectors = [torch.zeros_like(each) for each in weights]
        diagonal = []
        for number in range(size):
            vectors[place].view(-1)[number] = 1
            diagonal.append(
                hessian_product(found.loss_of(), [*found.parameters.values()], vectors)[place].view(-1)[number]
            )
            vectors[place].view(-1)[number] = 0
        torch.testing.assert_close(torch.stack(diagonal), block.diag(), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(each, buffers[name]) for name, each in model.named_buffers())


def test_the_error_of_a_choice_is_the_squared_distance_of_the_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    found, weight = curvature(model, step_of(Regression(), model)), model[0].weight.detach()
    largest = weight.abs().max()
    expected = (weight - torch.round(weight / (largest / 15)) * largest / 15).square().sum().item()
    assert found.error_of("0.weight", WeightFormat("linear", 5)) == pytest.approx(expected, rel=1e-9)
    assert found.error_of("0.weight", WeightFormat("fp32", 32)) == 0


class Attention(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        tokens = super().forward(input)[None, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)[0, 0]


def test_attention_has_a_second_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Attention(4, 2)).double()
    found = curvature(model, step_of(Regression(), model, sizes=(6,)))
    assert all(abs(each) > 0 for each in hessian_traces(found.loss_of, found.parameters, seed=0, draws=2).values())


def test_curvature_that_is_not_finite_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).double()
    with pytest.raises(UserError, match=r"^0.weight: the curvature of the loss is not finite"):
        curvature(model, step_of(Regression(lambda found, y, reduction: (0 * found).norm()), model))


def test_a_network_of_the_registry_has_curvature_in_its_plain_form_alone() -> None:
    found, names = {}, ()
    for fused in (True, False):
        built = small_run(
            "data.num_points=64",
            "model.num_centres=[32, 16]",
            f"model.fused={str(fused).lower()}",
            config="synthetic_shapes_pct",
        )
        job, part = built.job, built.data.selection
        model = job.model.double()
        batch = part.reader(evaluation_keys(part.indices[:4], 4, epoch=0, seed=0)[0])
        batch = {key: each.double() if each.is_floating_point() else each for key, each in batch.items()}
        names = tuple(weight.name for weight in quantisable_weights(model))
        simulated, step = PolicySimulator(model, names, {}), single_batch_step(job.task, model, batch, CPU)
        if fused:
            with pytest.raises(UserError, match=r"second gradients: \w+.* differentiated only once; .*`fused: false`"):
                build_curvature(simulated, step, job.loss_weights_at(0))
        else:
            found = build_curvature(simulated, step, job.loss_weights_at(0))
    weights = list(found.parameters.values())
    signs = [torch.randint(0, 2, each.shape).double() * 2 - 1 for each in weights]
    products = hessian_product(found.loss_of(), weights, signs)
    ends = []
    for side in (1e-9, -1e-9):
        with torch.no_grad():
            for weight, sign in zip(weights, signs, strict=True):
                weight.add_(sign, alpha=side)
        sums = step.loss_sums(model.eval())
        total = sum(job.loss_weights_at(0)[name] * each for name, each in step.loss_means(sums).items())
        ends.append(torch.autograd.grad(total, weights))
        with torch.no_grad():
            for weight, sign in zip(weights, signs, strict=True):
                weight.sub_(sign, alpha=side)
    flat = torch.cat([each.flatten() for each in products])
    differences = torch.cat([((a - b) / 2e-9).flatten() for a, b in zip(*ends, strict=True)])
    assert (flat - differences).norm() < 1e-3 * flat.norm()
    assert set(hessian_traces(found.loss_of, found.parameters, seed=0, draws=1)) == set(names)
