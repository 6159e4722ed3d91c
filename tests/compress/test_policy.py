"""Policies: bits of actions and lowering to a budget against the authors' code, protected layers, documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sightline.compression.policy import (
    FP16,
    FP32,
    Activation,
    WeightFormat,
    activation_policy,
    policy_from_dict,
    policy_to_dict,
    read_policy,
)
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.problem import actions_to_levels, lower_to_budget
from sightline.workbench.compress.target import CompressionTarget
from tests.golden_parity import load_golden

NAMES = ("stem.conv.weight", "body.0.weight", "body.1.weight", "head.weight")


def test_bits_of_actions_by_hand() -> None:
    """round(8 a + 0.5) for 1 to 8 bits and round(7 a + 1.5) for 2 to 8, half to even: 0.5 is 0, clipped to 1."""
    found = actions_to_levels(np.asarray([0, 0.05, 0.125, 0.25, 0.3, 0.375, 0.9, 1]), range(1, 9)) + 1
    assert found.tolist() == [1, 1, 2, 2, 3, 4, 8, 8]
    found = actions_to_levels(np.asarray([0, 0.1, 0.2, 0.5, 0.9, 1]), range(2, 9)) + 2
    assert found.tolist() == [2, 2, 3, 5, 8, 8]
    assert actions_to_levels(np.asarray([0, 0.5, 1]), (4,)).tolist() == [0, 0, 0]


def test_lowering_by_hand() -> None:
    """10, 20 and 30 weights of 4, 3 and 5 bits, 250 in all: from the last to the first, then anew, to the floors."""

    def holds_in(limit: int) -> Callable[[tuple[int, ...]], bool]:
        return lambda bits: 10 * bits[0] + 20 * bits[1] + 30 * bits[2] <= limit

    expected = {250: (4, 3, 5), 249: (4, 3, 4), 219: (4, 2, 4), 199: (3, 2, 4), 189: (3, 2, 3), 159: (2, 2, 3)}
    for limit, bits in expected.items():
        assert lower_to_budget((4, 3, 5), holds_in(limit), floors=(2, 2, 2)) == bits
    for limit in (120, 119):  # the last of the floors, which are returned where nothing holds
        assert lower_to_budget((4, 3, 5), holds_in(limit), floors=(2, 2, 2)) == (2, 2, 2)
    assert lower_to_budget((3, 3, 3), lambda bits: sum(bits) <= 6, floors=(3, 1, 2)) == (3, 1, 2)
    assert lower_to_budget((1, 2, 0), lambda bits: sum(bits) <= 1) == (0, 1, 0)


def test_bits_of_actions_are_the_authors_clipped(shared: Path) -> None:
    arrays = load_golden(shared, "policy", area="compress").arrays
    spans = [key.removeprefix("action/bits_clipped_") for key in arrays if key.startswith("action/bits_clipped_")]
    assert spans
    for span in spans:
        first, last = map(int, span.split("_"))
        bits = range(first, last + 1)
        found = np.asarray(bits)[actions_to_levels(arrays["action/value"], bits)]
        assert np.array_equal(found, arrays[f"action/bits_clipped_{span}"])
        unclipped = arrays[f"action/bits_{span}"]
        assert np.array_equal(found, np.clip(unclipped, first, last))


def test_bits_with_gaps_have_equal_intervals() -> None:
    found = actions_to_levels(np.asarray([0, 0.49, 0.5, 1]), (2, 4))
    assert found.tolist() == [0, 0, 1, 1]
    found = actions_to_levels(np.asarray([0, 0.24, 0.26, 0.5, 0.76, 1]), (1, 2, 4, 8))
    assert found.tolist() == [0, 0, 1, 2, 3, 3]


def test_lowering_to_a_budget_is_the_authors(shared: Path) -> None:
    golden = load_golden(shared, "policy", area="compress")
    arrays = golden.arrays
    for case in golden.info["budget_cases"]:
        prefix, least = f"budget{case['case']:02d}", int(case["min_bit"])
        weights, before = arrays[f"{prefix}/weights"], arrays[f"{prefix}/bits_before"]
        assert arrays[f"{prefix}/float_size_bits"] == 32 * weights.sum()
        assert arrays[f"{prefix}/size_before_bits"] == (before * weights).sum()
        # HAQ's action to bits, without the clip of ours
        raw = np.round((8 - least + 1) * arrays[f"{prefix}/raw_actions"] + least - 0.5)
        assert np.array_equal(raw, before)
        target = case["ratio"] * 32 * weights.sum()
        after = lower_to_budget(
            before, lambda bits, w=weights, t=target: (bits * w).sum() <= t, floors=[least] * len(weights)
        )
        assert after == tuple(arrays[f"{prefix}/bits_after"])
        assert arrays[f"{prefix}/size_after_bits"] == (after * weights).sum()


def test_lowering_pairs_of_weight_and_activation_bits_is_the_authors(shared: Path) -> None:
    """Their table has no entry for `off`, -1, and reads that of 7 bits; the first and last layers are fixed."""
    golden = load_golden(shared, "policy", area="compress")
    for case in golden.info["linear_budget_cases"]:
        arrays = {
            key.partition("/")[2]: value
            for key, value in golden.arrays.items()
            if key.startswith(f"linear_budget{case['case']:02d}/")
        }
        table, before = arrays["table"], arrays["strategy_before"]
        rows = np.arange(len(before))

        def cost(bits: np.ndarray, table: np.ndarray = table, rows: np.ndarray = rows) -> float:
            return sum(table[rows, bits[:, 0] - 1, bits[:, 1] - 1].tolist())

        most = np.full_like(before, 8)
        assert cost(most) == pytest.approx(arrays["org_cost"], rel=1e-12)
        target = case["ratio"] * float(arrays["org_cost"])
        after = before
        if cost(before) > target:
            fixed = before.copy()
            fixed[0], fixed[-1] = (8, -1), (8, 8)
            floors = np.full_like(fixed, 2)
            floors[[0, -1]] = fixed[[0, -1]]
            holds = lambda bits, t=target, c=cost: c(np.reshape(bits, (-1, 2))) <= t  # noqa: E731
            after = np.reshape(lower_to_budget(fixed.ravel(), holds, floors=floors.ravel()), (-1, 2))
        assert np.array_equal(after, arrays["strategy_after"]), case
        assert cost(after) == pytest.approx(arrays["cost_after"], rel=1e-12)


def test_protected_layers() -> None:
    first = CompressionTarget(protect_ends=1).protected_choices(NAMES)
    assert first == {NAMES[0]: WeightFormat("codebook", 8), NAMES[3]: WeightFormat("codebook", 8)}
    assert CompressionTarget(protect=("body.*",), protect_bits=32).protected_choices(NAMES) == {
        NAMES[1]: FP32,
        NAMES[2]: FP32,
    }
    assert CompressionTarget().protected_choices(NAMES) == {}
    with pytest.raises(ConfigError, match=r"no layer is called 'haed.weight'; did you mean 'head\.weight'"):
        CompressionTarget(protect=("haed.weight",)).protected_choices(NAMES)


def test_a_document_comes_back_in_the_models_order(tmp_path: Path) -> None:
    policy = dict(
        zip(
            NAMES,
            (FP32, WeightFormat("codebook", 3), WeightFormat("linear", 4, True), WeightFormat("fp16", 16)),
            strict=True,
        )
    )
    policy[NAMES[0]] = FP32._replace(activation=Activation(8, 0.1 + 0.2, False))
    policy[NAMES[2]] = policy[NAMES[2]]._replace(activation=Activation(4, 3.5, True))
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(dict(reversed(policy_to_dict(policy).items())), indent=1))
    found = read_policy(path, NAMES)
    assert found == policy
    assert list(found) == list(NAMES)
    assert policy_from_dict(policy_to_dict(policy), NAMES, origin="x") == policy
    assert str(policy[NAMES[2]]) == "4 bits, linear per channel, inputs of 4 bits"
    inputs = policy_to_dict(activation_policy(policy))
    assert inputs == {
        NAMES[0]: {"kind": "fp32", "activation": {"bits": 8, "range": 0.1 + 0.2, "signed": False}},
        NAMES[2]: {"kind": "fp32", "activation": {"bits": 4, "range": 3.5, "signed": True}},
    }


def test_every_fault_of_a_document_is_reported_by_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "stem.conv.weight: {kind: codebook, bits: 9}\n"
        "body.0.wieght: {kind: fp32}\n"
        "body.1.weight: {kind: codebok, bits: 2}\n"
        "head.weight:\n  kind: fp16\n  bits: 4\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_policy(path, NAMES)
    text = str(caught.value)
    for expected in (
        f"{path}:1: stem.conv.weight.bits: found 9, allowed is a whole number from 1 to 8",
        f"{path}:2: body.0.wieght: no parameter is called so; did you mean 'body.0.weight'?",
        f"{path}:3: body.1.weight.kind: found the text 'codebok'",
        f"{path}:6: head.weight.bits: is not for floating point",
    ):
        assert expected in text
    assert len(caught.value.faults) == 4
    with pytest.raises(ConfigError, match=r"^x: body\.0\.weight: is missing; give its kind"):
        policy_from_dict({name: {"kind": "fp16"} for name in NAMES if name != NAMES[1]}, NAMES, origin="x")
    path.write_text("head.weight: {kind: fp16}")
    assert read_policy(path, NAMES) == {"head.weight": FP16}
    path.write_text("head.weight: {kind: codebook}")
    with pytest.raises(ConfigError, match=r"head\.weight\.bits: is required and missing; give 1 to 8"):
        read_policy(path, ("head.weight",))
    path.write_text("head.weight: {kind: linear, bits: 1}")
    with pytest.raises(ConfigError, match=r"head\.weight\.bits: found 1, too few for a linear grid; give 2 to 8"):
        read_policy(path, ("head.weight",))
