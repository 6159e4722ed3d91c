"""Samples to batches: every way to combine, and the errors that name the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.data.loading.batch_reader import batch_keys, collate
from sightline.errors import DataError
from sightline.types import Field, SampleKey

KEYS = [SampleKey(index, 0, 0) for index in (4, 9, 2)]


def fields(**how: str) -> dict[str, Field]:
    return {name: Field("any", "any", collate=word) for name, word in how.items()}  # type: ignore[arg-type]


def ragged(*lengths: int) -> list[dict]:
    return [{"points": torch.full((n, 2), float(n)), "label": torch.arange(n)} for n in lengths]


def test_equal_shapes_stack_and_indices_are_kept() -> None:
    samples = [{"x": torch.tensor([i, i + 1]), "y": i, "z": np.float32(i), "name": str(i)} for i in range(3)]
    batch = collate(samples, KEYS, {})
    assert batch["x"].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert batch["y"].tolist() == [0, 1, 2]
    assert batch["name"] == ["0", "1", "2"]
    assert batch["sample_index"].tolist() == [4, 9, 2]


def test_nested_samples_stack_inside() -> None:
    samples = [{"views": {"a": torch.tensor(i), "b": [torch.tensor([i]), torch.tensor([2 * i])]}} for i in range(3)]
    batch = collate(samples, KEYS, {})
    assert batch["views"]["a"].tolist() == [0, 1, 2]
    assert batch["views"]["b"][1].tolist() == [[0], [2], [4]]


def test_ragged_fields_concatenate_with_offsets() -> None:
    batch = collate(ragged(2, 0, 3), KEYS, fields(points="concatenate", label="concatenate"))
    assert batch["points"][:, 0].tolist() == [2, 2, 3, 3, 3]
    assert batch["label"].tolist() == [0, 1, 0, 1, 2]
    assert batch["offsets"].tolist() == [0, 2, 2, 5]


def test_ragged_fields_pad_with_a_mask() -> None:
    batch = collate(ragged(2, 1, 3), KEYS, fields(points="pad", label="list"))
    assert batch["points"].shape == (3, 3, 2)
    assert batch["points_mask"].sum(1).tolist() == [2, 1, 3]
    assert (batch["points"][~batch["points_mask"]] == 0).all()
    assert [len(each) for each in batch["label"]] == [2, 1, 3]


def test_declared_keys_are_those_of_the_batch() -> None:
    how = fields(points="pad", label="concatenate")
    assert batch_keys(how) == set(collate(ragged(2, 1, 3), KEYS, how))


@pytest.mark.parametrize(
    ("samples", "how", "message"),
    [
        (ragged(2, 2, 3), {}, r"sample 2: 'points' has shape \(3, 2\), sample 4 has \(2, 2\)"),
        ([*ragged(2, 2), {"points": torch.zeros(2, 2)}], {}, "sample 2: has no 'label'"),
        (
            [{"points": torch.zeros(2, 2), "label": torch.zeros(3)}] * 3,
            fields(points="concatenate", label="concatenate"),
            "sample 4: 'label' has 3 rows, other concatenated fields have 2",
        ),
    ],
)
def test_samples_that_do_not_fit_are_named(samples: list, how: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate(samples, KEYS, how)
