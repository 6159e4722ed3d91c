"""Layouts against tensors whose axes are known, and keys against names that are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.workbench.compare.external_model import layouts_between, load_matched_weights, match_keys, nearest_layout
from tests.cases import run_each

POINTS = torch.randn(2, 5, 3)


@run_each(
    "ours, theirs",
    [
        (POINTS, POINTS),
        (POINTS, POINTS.transpose(1, 2)),
        (POINTS.reshape(10, 3), POINTS.transpose(1, 2)),
        (POINTS.transpose(1, 2), POINTS.reshape(10, 3)),
        (POINTS, POINTS.transpose(1, 2)[..., None]),
        (torch.arange(12.0).reshape(1, 12), torch.arange(12.0)),
    ],
)
def test_a_layout_brings_one_into_the_other(ours: Tensor, theirs: Tensor) -> None:
    layout = nearest_layout(ours, theirs.contiguous())
    assert layout is not None
    torch.testing.assert_close(layout(ours), theirs)


def test_equal_axes_are_told_apart_by_what_they_hold() -> None:
    square = torch.randn(2, 4, 4)
    layout = nearest_layout(square, square.transpose(1, 2).contiguous() + 1e-6)
    assert layout is not None
    assert not layout.is_plain
    torch.testing.assert_close(layout(square), square.transpose(1, 2))


def test_other_sizes_have_no_layout() -> None:
    assert layouts_between((2, 3), (7,)) == []
    assert nearest_layout(torch.zeros(2, 3), torch.zeros(2, 4)) is None


def two(width: int = 4) -> dict[str, Tensor]:
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, width)).state_dict()


def test_shapes_and_order_are_guessed_and_told() -> None:
    theirs = {name.replace("0.", "a.").replace("1.", "b.").replace("2.", "c."): t for name, t in two().items()}
    keys = match_keys(two(), theirs, None)
    assert keys.pairs["1.weight"] == "b.weight"
    assert any(guess.startswith("1 = b, number 1 of 2 with") for guess in keys.guesses)
    assert any(guess.startswith("0 = a, the only one with") for guess in keys.guesses)


def test_a_map_names_modules_and_tensors() -> None:
    theirs = {name.replace("0.", "x.a.").replace("1.", "x.c.").replace("2.", "x.b."): t for name, t in two().items()}
    keys = match_keys(two(), theirs, {"0": "x.a", "1": "x.c", "2.weight": "x.b.weight", "2.bias": "x.b.bias"})
    assert keys.guesses == ()
    assert keys.pairs["2.bias"] == "x.b.bias"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "no name or shape determines which tensors correspond: 1.weight (4, 4)"),
        ({"0": "a"}, "the map does not determine"),
        ({"nothing": "a"}, "the model has no tensor or module 'nothing'"),
        ({"0": "q"}, "'0.weight' is to be 'q.weight', which the reference lacks"),
        ({"0": "b"}, "'0.weight' and 'b.weight' have the shapes (4, 3) and (4, 4), which differ"),
    ],
)
def test_what_a_map_cannot_mean_is_refused(given: dict[str, str | None] | None, told: str) -> None:
    theirs = {"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(4), "b.weight": torch.zeros(4, 4)}
    with pytest.raises(UserError) as caught:
        match_keys(two(), theirs, given)
    assert told in str(caught.value)


def test_weights_go_over_into_other_shapes() -> None:
    ours, theirs = nn.Linear(3, 4), nn.Conv1d(3, 4, 1)
    load_matched_weights(theirs, ours.state_dict(), match_keys(ours.state_dict(), theirs.state_dict(), None).pairs)
    torch.testing.assert_close(theirs.weight[..., 0], ours.weight)
