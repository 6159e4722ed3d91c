"""Which samples a check of a plain program reads: of all classes, whatever the order of the set."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sightline
from sightline.doctor.evidence.data.source import Reading, open_source
from sightline.doctor.forms.tried_forms import find_form


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


class Waiting(Dataset[Any]):
    """Set whose samples take a time by a clock of their own, as those on a slow disk do."""

    now_s = 0.0

    def __init__(self, data: Dataset[Any], wait_s: float) -> None:
        self.data, self.wait_s = data, wait_s

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        Waiting.now_s += self.wait_s
        return self.data[index]


def check_waiting(monkeypatch: pytest.MonkeyPatch, wait_s: float, *, columns: int = 8, missing: int = -1) -> Any:
    clock = SimpleNamespace(perf_counter=lambda: Waiting.now_s, thread_time=lambda: 0.0)
    monkeypatch.setattr("sightline.doctor.evidence.data.source.time", clock)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, columns, generator=generator)

    def make(label: Tensor) -> DataLoader[Any]:
        rows = centres[label] + torch.randn(len(label), columns, generator=generator)
        return DataLoader(Waiting(TensorDataset(rows, label), wait_s), 16, shuffle=True)

    label = torch.arange(600) % 12
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, 24), nn.ReLU(), nn.Linear(24, 12))
    loaders = make(label[label != missing]), make(torch.arange(240) % 12)
    return sightline.check(model, nn.CrossEntropyLoss(), loaders[0], evaluation=loaders[1])


@pytest.mark.parametrize("missing", [-1, 3])
def test_a_slow_set_has_the_same_findings_or_says_what_was_left_out(
    missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, slow, endless = (check_waiting(monkeypatch, wait_s, missing=missing) for wait_s in (0.0, 0.01, 0.3))
    assert [finding.code for finding in quick.findings] == ["missing-classes"] * (missing >= 0)
    assert quick.examined == slow.examined
    assert [finding.code for finding in slow.findings] == [finding.code for finding in quick.findings]
    assert "slow to" not in quick.verdict[1] + slow.verdict[1]
    left = {name.partition(":")[0] for name in {*quick.examined.judged} - {*endless.examined.judged}}
    assert re.search(r" of \d+ samples, .*, slow to read", endless.verdict[1])
    assert left <= {"missing-classes", "label-permutation", "input-statistics"}, left


@pytest.mark.parametrize(("columns", "most"), [(8, 1000), (1 << 12, 400), (1 << 18, 64), (1 << 21, 16), (1 << 23, 4)])
def test_large_samples_are_read_in_smaller_numbers_on_every_machine(columns: int, most: int) -> None:
    """What is stored is one number: the bytes of a sample as it is read decide, and no clock."""
    data = TensorDataset(torch.zeros(5000, 1).expand(-1, columns), torch.zeros(5000, dtype=torch.int64))
    batch = torch.zeros(2, columns), torch.zeros(2, dtype=torch.int64)
    form = find_form(nn.Linear(columns, 2), nn.CrossEntropyLoss(), batch)
    source = open_source(DataLoader(Waiting(data, 1e3)), form, Reading(math.inf), lacks="loader")
    assert len(source.spread(3000)) == most
