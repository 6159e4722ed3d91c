"""Planted faults: rows that fit their plants, plants that leave no trace, and trials of some of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest

from sightline.contract.registry import REGISTRIES
from sightline.engine.build import TrainingSetup
from tests.planted import trial as trials
from tests.planted.catalog import FAULTS, HEALTHY, FaultCase
from tests.planted.planting import BENCHES, Planter, edit, override
from tests.planted.trial import Alarm, rank_cause, run_case

BY_ID = {case.id: case for case in FAULTS}


def rank(case: FaultCase, alarms: Sequence[Alarm]) -> int | None:
    return rank_cause(alarms, (case.cause,), names=case.names)


# --- the catalogue ----------------------------------------------------------------------------------------------------


def test_ids_are_unique_and_benches_exist() -> None:
    ids = [case.id for case in (*FAULTS, *HEALTHY)]
    assert len(set(ids)) == len(ids)
    benches = {path.stem for path in BENCHES.glob("*.yaml")}
    assert {case.bench for case in (*FAULTS, *HEALTHY)} == benches | {"PLAIN", "DDP"}
    assert {case.id for case in FAULTS if case.bench in ("PLAIN", "DDP")} == {case.id for case in FAULTS if case.loop}


def test_every_fault_changes_something() -> None:
    assert [case.id for case in FAULTS if not (case.plant or case.overrides or case.loop)] == []
    assert all(re.fullmatch(r"P([1-9]|[1-8]\d|9[0-8])", pit) for case in FAULTS for pit in case.pits)


def test_the_controls_of_the_specification_are_all_there() -> None:
    assert [case.id for case in HEALTHY if case.id[0] == "H"] == [f"H{number}" for number in range(1, 17)]


# --- plants -----------------------------------------------------------------------------------------------------------


def test_plants_leave_no_trace() -> None:
    """Whatever a plant replaces is the same object again at the end, and no name stays registered."""
    names = {kind: registry.names() for kind, registry in REGISTRIES.items()}
    for case in (*FAULTS, *HEALTHY):
        with Planter() as planter:
            case.plant_into(planter)
            replaced = [(patch.target, patch.attribute, patch.temp_original) for patch in planter._patches]
        for owner, name, original in replaced:
            assert getattr(owner, name) is getattr(original, "__func__", original), (case.id, name)
    assert {kind: registry.names() for kind, registry in REGISTRIES.items()} == names


# --- trials -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [("O70", 14), ("O75", 13)])
def test_a_fault_of_a_plain_loop_is_found_at_its_step(name: str, step: int) -> None:
    found = run_case(BY_ID[name], seed=0)
    assert (found[0].moment, found[0].step, rank(BY_ID[name], found)) == ("training", step, 1)


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize(("name", "step", "code"), [("O67", 6, "file-race"), ("O69", 2, "same-samples")])
def test_a_fault_of_two_processes_is_found_at_its_step(name: str, step: int, code: str) -> None:
    """Of 96 samples in batches of 8 each process trains on 6 an epoch; then they evaluate, and save."""
    found = run_case(BY_ID[name], seed=0)
    assert (found[0].step, rank(BY_ID[name], found), found[0].code) == (step, 1, code)


@pytest.mark.long
@pytest.mark.processes
def test_two_healthy_processes_raise_no_alarm() -> None:
    assert run_case(next(case for case in HEALTHY if case.id == "DDP"), seed=0) == ()


def test_a_report_of_sizes_is_counted_again() -> None:
    found = run_case(BY_ID["O65"], seed=0)
    assert (found[0].code, rank(BY_ID["O65"], found)) == ("size-promise", 1)


def test_what_watch_finds_in_a_run_of_ours_is_seen() -> None:
    """Gradients that are never cleared from the first step on: the checks see none, `watch` does at the second step."""

    def keep(built: TrainingSetup) -> None:
        built.job.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]

    case = FaultCase(id="X", title="", bench="CLS", cause="optim.grad_accumulation", plant=edit(keep))
    found = run_case(case, seed=0)
    assert (found[0].moment, found[0].step, rank(case, found)) == ("training", 2, 1)


def test_alarms_of_the_healthy_twin_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin raises `shared` too, so that only the second moment finds the fault; the third is not run."""
    alarms = [
        ("start", [Alarm("start", "", "shared", "warning", ("model.init",))]),
        ("check", [Alarm("check", "", "own", "error", ("loss.form", "loss.sign"), step=3)] * 2),
        ("deep", [Alarm("deep", "", "later", "error")]),
    ]

    def listed(bench: str, planter: Planter, *, seed: int) -> Iterator[tuple[str, list[Alarm]]]:
        yield from alarms

    monkeypatch.setattr(trials, "list_alarms", listed)
    case = FaultCase(id="X", title="", bench="CLS", cause="loss.sign", plant=override("seed=0"))
    assert [each.code for each in run_case(case, seed=4, known={("shared", "model.init")})] == ["own"]
    assert [each.code for each in run_case(HEALTHY[0], seed=4)] == ["shared", "own", "later"]


@pytest.mark.parametrize(
    ("causes", "text", "rank"),
    [
        ([("loss.sign",)], "", 1),
        ([("loss.form", "optim.lr"), ("loss.form", "loss.sign")], "", 3),
        ([("loss.form",)], "", None),
        ([()], "weight is negative", 1),
        ([(), ("loss.sign",)], "something else", 2),
        ([("loss.collapse", "loss.sign")], "", 1),
    ],
)
def test_the_place_of_a_cause_counts_distinct_causes(
    causes: list[tuple[str, ...]], text: str, rank: int | None
) -> None:
    alarms = [Alarm("start", text, f"code-{place}", "error", each) for place, each in enumerate(causes)]
    assert rank_cause(alarms, ("loss.sign", "loss.collapse"), names="negative") == rank
