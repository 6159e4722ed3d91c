"""Products with the Hessian and traces by random signs: against PyHessian's numbers and exact traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.compress.run_problem import hessian_product, hessian_traces
from tests.golden_parity import Golden, load_golden, rule_made_state

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
    assert hessian_traces(loss_of, {"w": weight}, seed=1, draws=9) == hessian_traces(
        loss_of, {"w": weight}, seed=1, draws=9
    )


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
