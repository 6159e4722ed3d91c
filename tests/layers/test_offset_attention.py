"""Attention among points against a hand-worked case, the authors' code, and what it claims of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.layers.transformer import OffsetAttention, SelfAttention
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
)

KINDS = pytest.mark.parametrize("kind", [SelfAttention, OffsetAttention])
THEIRS, OURS, LAYOUT = "pt_last.sa1.", "attend.layers.0.", "strawberry_pct_cls"


def test_size_is_the_published_one() -> None:
    assert sum(parameter.numel() for parameter in OffsetAttention(channels=256).parameters()) == 148_480


def our_name(theirs: str) -> str:
    """The name of one layer by itself, by the layout of the network that it is published in."""
    found = translate_key(THEIRS + theirs, LAYOUT)
    assert found is not None
    return found.removeprefix(OURS)


@pytest.mark.shared
def test_agrees_with_the_reference(shared: Path) -> None:
    golden = load_golden(shared, "pct_offset_attention")
    layer = OffsetAttention(channels=64).double()
    state = convert_state_dict({THEIRS + key: value for key, value in golden.state().items()}, LAYOUT)
    layer.load_state_dict({key.removeprefix(OURS): value for key, value in state.items()})
    assert sum(parameter.numel() for parameter in layer.parameters()) == golden.info["param_count"]
    values, weight = golden.tensor("in.x").mT, golden.tensor("in.w").mT
    taps: dict[str, list[Tensor]] = {"eval.mid.q (B,16,N)": [], "eval.mid.v": []}
    for part, seen in zip((layer.query, layer.value), taps.values(), strict=True):
        part.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out.mT))
    for mode in each_mode(layer):
        output = layer(values)
        loss = (output * weight).sum()
        assert_outputs(golden, mode, {"out": output.mT}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, layer, our_name)
    for mid, found in taps.items():
        assert_near_largest(found[0], golden.tensor(mid), 1e-10, mid)


@KINDS
def test_what_a_point_receives_is_an_average(kind: type[SelfAttention]) -> None:
    """A column of the paper's matrix, a row of ours, adds up to 1: to 1e-9 over a sum, and 50 roundings of 6e-8."""
    attention = kind(channels=64).attention(torch.randn(3, 50, 64))
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(3, 50), rtol=0, atol=1e-5)


def test_two_points_by_hand() -> None:
    """Queries 1 and 2 give the likeness ((1, 2), (2, 4)): softmax over the last, s(1) and s(2), s(x) = 1/(1 + e^-x).

    Offset: columns (1 - s(1), 1 - s(2)) and (s(1), s(2)), each divided by its sum. Naive: rows, with sqrt(4 / 4) = 1.
    """
    values = torch.zeros(1, 2, 4, dtype=torch.float64)
    values[0, :, 0] = torch.tensor([1.0, 2.0])
    first, second = torch.sigmoid(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist()
    rows = torch.tensor([[1 - first, first], [1 - second, second]], dtype=torch.float64)
    for kind, expected in ((SelfAttention, rows), (OffsetAttention, (rows / rows.sum(dim=0)).T)):
        layer = kind(channels=4).double()
        with torch.no_grad():
            layer.query.weight.zero_()[0, 0] = 1
        # The 1e-9 that keeps a sum from being zero shifts a quotient by as much.
        torch.testing.assert_close(layer.attention(values)[0], expected, rtol=0, atol=2e-9)


@KINDS
def test_queries_and_keys_are_one_map_after_a_step_too(kind: type[SelfAttention]) -> None:
    """One map, asked once per pass, before and after a step of training: there are no keys that could drift away."""
    layer, values = kind(channels=16).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.query.weight.detach().clone()
    for _ in range(2):
        queries: list[Tensor] = []
        handle = layer.query.register_forward_hook(lambda module, given, out, seen=queries: seen.append(out))
        layer(values).square().sum().backward()
        handle.remove()
        assert len(queries) == 1
        optimizer.step()
    assert not torch.equal(layer.query.weight, before)
    assert not [name for name, _ in layer.named_parameters() if "key" in name]


@KINDS
def test_order_of_points_does_not_matter(kind: type[SelfAttention]) -> None:
    layer, values, order = kind(channels=8).double().eval(), torch.randn(2, 7, 8).double(), torch.randperm(7)
    # Sums of seven terms in another order: a few roundings of 2e-16.
    torch.testing.assert_close(layer(values[:, order]), layer(values)[:, order], rtol=0, atol=1e-14)


@KINDS
def test_gradients_agree_with_finite_differences(kind: type[SelfAttention]) -> None:
    layer = kind(channels=4).double()
    assert torch.autograd.gradcheck(layer, (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True),))


def test_a_point_that_nobody_looks_at_gives_numbers_in_float16() -> None:
    """One point draws all others: what they give the rest is below float16's 6e-8, and so is the 1e-9 of the guard."""
    layer, values = OffsetAttention(channels=8).eval(), torch.rand(1, 20, 8)
    values[0, 0] = 40
    with torch.no_grad():
        layer.query.weight.fill_(0.5)
        with torch.autocast("cpu", torch.float16):
            attention = layer.attention(values)
    # Every column of the paper's matrix is divided by its sum, which float32 can hold.
    assert attention.isfinite().all()
