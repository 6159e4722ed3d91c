"""A state that cannot add up exactly is refused before anything is built on it; the package's are sound."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.metric import (
    MeanMetric,
    Meter,
    Metric,
    SampleSums,
    append_rows,
    find_state_fault,
    pool_states,
    sorted_rows,
)
from sightline.contract.registry import RegistryEntry
from sightline.contract.schema import signature_parameters
from sightline.parts.metrics import Accuracy
from tests.cases import run_each
from tests.doctor.planting import make

State = dict[str, Tensor]


class OfState(Metric):
    """A metric with a given state, and figures that need none of it."""

    def __init__(self, slots: Any = frozenset(), rows: Any = (), **state: Any) -> None:
        self.slots, self.rows, self.state = slots, rows, state

    def new_state(self, num_samples: int = 0) -> State:
        return {name: value(num_samples) if callable(value) else value for name, value in self.state.items()}

    def update(self, state: State, *, label: Tensor) -> None: ...

    def compute(self, state: State) -> dict[str, float]:
        return {"x": 0.0}


def rows(dtype: torch.dtype, *shape: int) -> Any:
    return lambda num_samples: torch.zeros(num_samples, *shape, dtype=dtype)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (OfState(sum=torch.zeros(())), r"state 'sum' is float32 \(\), a running sum .*keep int64 counts, or a row per"),
        (OfState(sum=torch.zeros(3, dtype=torch.float64)), r"state 'sum' is float64 \(3,\), a running sum"),
        (OfState({"a"}, a=rows(torch.float64), sum=torch.zeros(2)), r"state 'sum' is float32 \(2,\)"),
        (OfState(seen=torch.zeros((), dtype=torch.bool)), "state 'seen' is bool"),
        (OfState({"a"}, a=torch.zeros(1)), r"state 'a' is float32 \(1,\) for 3 samples; slots have num_samples rows"),
        (OfState({"a"}, a=torch.zeros(())), r"state 'a' is float32 \(\) for 3 samples"),
        (OfState({"b"}, a=torch.tensor(0)), r"slots names 'b', which new_state does not return \(a\)"),
        (OfState(a=torch.tensor(1)), "state 'a' does not begin at zero"),
        (OfState(a=0), "state 'a' is a int; make it an int64 tensor"),
        (
            OfState(rows=("a",), a=torch.zeros(0, 3)),
            r"state 'a' is float32 \(0, 3\); rows begin as float64 \(0, 1 \+ K\)",
        ),
        (OfState(rows=("a",), a=torch.zeros(2, 3).double()), r"state 'a' is float64 \(2, 3\); rows begin as"),
        (OfState(rows=("a",), a=torch.zeros(0, 1).double()), r"state 'a' is float64 \(0, 1\); rows begin as"),
        (OfState(rows=("b",), a=torch.tensor(0)), r"rows names 'b', which new_state does not return \(a\)"),
        (OfState(a=lambda num_samples: 1 // 0), "an empty state cannot be made or computed .*ZeroDivisionError"),
    ],
)
def test_a_state_that_does_not_add_up_is_refused(metric: Any, told: str) -> None:
    fault = find_state_fault(metric)
    assert fault is not None
    assert re.match(told, fault), fault


def test_a_state_that_was_read_stays_as_it_was() -> None:
    meter = Meter(Accuracy(num_classes=2))
    batch = {"probabilities": torch.eye(2), "label": torch.tensor([0, 1])}
    meter.update(**batch)
    early = meter.state
    meter.update(**batch)
    assert (int(early["confusion"].sum()), int(meter.state["confusion"].sum())) == (2, 4)


def test_rows_of_several_evaluations_are_numbered_on() -> None:
    """Each evaluation numbers its samples from 0; pooled, no two samples share a number."""
    metric = OfState(rows=("found",), found=torch.zeros(0, 2, dtype=torch.float64), seen=torch.tensor(0))
    states = [metric.new_state() for _ in range(3)]
    append_rows(states[0], "found", torch.tensor([0, 2, 2]), torch.tensor([[0.5], [0.25], [0.75]]))
    append_rows(states[2], "found", torch.tensor([1, 0]), torch.tensor([[1.0], [2.0]]))
    pooled = pool_states(metric, states)["found"]
    assert pooled.tolist() == [[0, 0.5], [2, 0.25], [2, 0.75], [4, 1.0], [3, 2.0]]
    assert sorted_rows(pooled)[:, 1].tolist() == [0.5, 0.25, 0.75, 2.0, 1.0]


class RunningMean(Metric):
    """A float sum of the losses of batches; it states no slots."""

    higher_is_better = False

    def new_state(self) -> State:
        return {"total": torch.zeros((), dtype=torch.float64), "seen": torch.tensor(0)}

    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        state["total"] += -probabilities.gather(1, label[:, None]).log().sum()
        state["seen"] += label.numel()

    def compute(self, state: State) -> dict[str, float]:
        return {"mean_surprise": float(state["total"] / state["seen"])}


def test_the_build_names_metric_state_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.metrics.names()
    entry = RegistryEntry("surprise", RunningMean, signature_parameters(RunningMean))
    monkeypatch.setitem(registry.metrics._entries, "surprise", entry)
    given = ("metrics=[{name: surprise}]", "evaluate.metric=mean_surprise")
    with pytest.raises(ConfigError, match=r"command line: metrics.0: metric 'surprise': state 'total' is float64 \(\)"):
        make(tmp_path, *given)


# --- means ------------------------------------------------------------------------------------------------------------


class Given(MeanMetric):
    """What is given, of two samples whose indices are 4 and 7."""

    figures = ("off",)

    def values(self, *, given: Any) -> Any:
        return given


def measured(given: Any) -> dict[str, float]:
    meter = Meter(Given())
    meter.update(given=given, sample_index=torch.tensor([4, 7]))
    return meter.compute()


@run_each(
    "given, told",
    [
        (torch.ones(3), r"figure 'off': its values have the shape \(3,\) for 2 samples; return a number per"),
        (torch.tensor(1.0), r"its values have the shape \(\) for 2 samples"),
        (0.5, r"figure 'off': its values are a float; return a tensor \(2,\)"),
        ((torch.ones(2, 3), torch.ones(2)), r"its weights have the shape \(2,\) for 2 samples"),
        (torch.tensor([1.0, math.nan]), r"figure 'off': 1 of 2 values are not finite, first in sample 7"),
        ((torch.ones(2), torch.tensor([-1.0, 0.0])), r"1 of 2 weights are below 0 or not finite, first in sample 4"),
        (torch.ones(2, device="meta"), "figure 'off': its values are on meta, the batch is on cpu"),
        ({"on": torch.ones(2)}, "values returned on; figures names off"),
    ],
)
def test_what_is_no_number_per_sample_is_refused_in_one_line(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        measured(given)
    assert "\n" not in str(error.value)


@run_each(
    "given, mean",
    [
        (torch.tensor([True, False]), 0.5),
        (torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), 4.0),
        ((torch.tensor([1.0, math.nan]), torch.tensor([3, 0])), 1.0),
        ((torch.tensor([2.0, 8.0]), torch.tensor([2.0, 1.0])), 4.0),
        (torch.tensor([[1e300, 1.0, -1e300], [0, 0, 5]], dtype=torch.float64), 1.0),  # nothing is lost to the large
        ((torch.ones(2), torch.zeros(2)), math.nan),
    ],
)
def test_a_mean_is_of_all_that_counts(given: Any, mean: float) -> None:
    assert measured(given) == pytest.approx({"off": mean}, rel=0, nan_ok=True)


@run_each("members", [{"figures": ("off",)}, {"values": Given.values}, {"values": Given.values, "figures": "off"}])
def test_a_mean_without_its_parts_is_refused(members: dict[str, Any]) -> None:
    fault = find_state_fault(type("Mine", (MeanMetric,), members)())
    assert "a MeanMetric has a method `values`, and a tuple of names `figures`" in (fault or "")


# --- intervals --------------------------------------------------------------------------------------------------------


@run_each("num_right, count", [(300, 320), (5, 24), (1800, 2468)])
def test_the_interval_of_an_accuracy_is_that_of_the_binomial(num_right: int, count: int) -> None:
    """A resampled accuracy is binomial; 1,000 draws leave its quantiles uncertain by a tenth of the spread or so."""
    confusion = torch.tensor([[num_right, 0], [count - num_right, 0]])
    interval = Accuracy(num_classes=2).sums({"confusion": confusion})["overall_accuracy"].interval()
    assert interval is not None
    assert interval["num_samples"] == count
    spread = math.sqrt(num_right * (count - num_right) / count) / count
    expected = [quantile / count for quantile in binom.ppf([0.025, 0.975], count, num_right / count)]
    assert [interval["low"], interval["high"]] == pytest.approx(expected, abs=0.2 * spread + 1 / count)


def test_the_interval_of_ratios_is_that_of_evaluations_of_the_drawn_samples() -> None:
    """Two ratios over six samples, of which the last counts nowhere, by the definition: draw, sum, divide, average."""
    random = np.random.default_rng(1)
    denominators = random.integers((0, 1), 4, (6, 2))
    denominators[-1] = 0
    numerators = random.integers(0, 9, (6, 2)) * denominators / 9
    drawn = np.random.Generator(np.random.PCG64(0))
    figures = []
    for _ in range(1000):
        chosen = drawn.integers(5, size=5)
        pairs = [(numerators[chosen, k].sum(), denominators[chosen, k].sum()) for k in range(2)]
        figures.append(np.mean([n / d for n, d in pairs if d]))
    interval = SampleSums(torch.from_numpy(numerators), torch.from_numpy(denominators)).interval()
    assert interval is not None
    assert [interval["low"], interval["high"]] == pytest.approx(np.percentile(figures, [2.5, 97.5]).tolist(), rel=1e-12)
    assert interval["num_samples"] == 5
    assert SampleSums(torch.ones(1, 1), torch.ones(1, 1)).interval() is None
