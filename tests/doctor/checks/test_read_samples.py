"""Which samples a check of a plain program reads: of all classes, whatever the order of the set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sightline


def check_classes(num_samples: int, num_classes: int, *, missing: tuple[int, ...] = ()) -> list[str]:
    """Check a sound program on classes in turn, as generated and merged sets have them; some may never be trained."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, 8, generator=generator)

    def make(label: Tensor, size: int) -> DataLoader[Any]:
        noise = torch.randn(len(label), 8, generator=generator)
        return DataLoader(TensorDataset(centres[label] + noise, label), batch_size=size, shuffle=True)

    label = torch.arange(num_samples) % num_classes
    is_trained = ~torch.isin(label, torch.tensor(missing, dtype=torch.int64))
    torch.manual_seed(0)
    report = sightline.check(
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, num_classes)),
        nn.CrossEntropyLoss(),
        make(label[is_trained], 32),
        evaluation=make(torch.arange(200) % num_classes, 32),
    )
    return [finding.code for finding in report.findings]


@pytest.mark.parametrize(("num_samples", "num_classes"), [(1000, 5), (1000, 20), (1000, 25), (1500, 15), (997, 10)])
def test_classes_in_turn_are_all_seen(num_samples: int, num_classes: int) -> None:
    """Samples at equal distances all had some of the classes: 400 of 1,000 are two or three apart."""
    assert check_classes(num_samples, num_classes) == []


def test_a_class_that_never_comes_is_missed() -> None:
    assert check_classes(1000, 5, missing=(3,)) == ["missing-classes"]
