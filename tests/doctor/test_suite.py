"""The suite as a whole: no trace left, causes before symptoms, the same list on every process."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.contract.errors import ConfigError
from sightline.doctor import causes
from sightline.doctor.finding import Finding, FindingLocation
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.verbs.output import show_findings
from sightline.workbench.check.suite import all_rules, gather_findings, join_parts, run_all, run_quick
from tests.conftest import ROOT
from tests.doctor.detecting import make_crowds
from tests.doctor.pairing import STRONG, make_pairs
from tests.doctor.planting import CONFIG, make
from tests.doctor.segmenting import make_parts, make_rooms
from tests.processes import run_ranks


def told(code: str, severity: str = "error", **evidence: object) -> Finding:
    return Finding(
        code=code,
        severity=severity,  # type: ignore[arg-type]
        summary=f"about {code}",
        cause="cfg.contract",
        where=FindingLocation(config_path="data"),
        measured=f"{code} of 1",
        expected="2",
        action="do",
        evidence=evidence,
    )


# --- no trace ---------------------------------------------------------------------------------------------------------


def trained(built: TrainingSetup) -> dict[str, Tensor]:
    built.job.num_steps = 3
    train(built.job, World(), lambda record, stop_requested: False)
    return {**built.job.model.state_dict(), "random": torch.get_rng_state()}


def test_a_checked_run_is_the_unchecked_one_bit_for_bit(tmp_path: Path) -> None:
    """Dropout, batch norm, momentum, random transforms and an average of weights: all of it would show a trace."""
    overrides = (
        "model={name: dgcnn, num_neighbours: 8, embedding: 64}",
        "transforms.train=[{name: rotate}, {name: jitter}]",
        "optimizer={name: adamw, lr: 1e-2}",
        "train.ema_decay=0.9",
        "train.micro_batches=2",
    )
    plain, checked = make(tmp_path, *overrides), make(tmp_path, *overrides)
    torch.manual_seed(5)
    expected = trained(plain)
    torch.manual_seed(5)
    before = [hook for module in checked.job.model.modules() for hook in module._forward_hooks]
    checked.job.model.eval()
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    run_all(checked, World())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # type: ignore[index, union-attr]
    assert not any(module.training for module in checked.job.model.modules())
    assert [hook for module in checked.job.model.modules() for hook in module._forward_hooks] == before
    assert all(parameter.grad is None for parameter in checked.job.model.parameters())
    found = trained(checked)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ema, expected_ema = checked.job.ema, plain.job.ema
    assert ema is not None
    assert expected_ema is not None
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), expected_ema.parameters(), strict=True))


@pytest.mark.parametrize(
    "make_one",
    [
        pytest.param(make_parts, id="other labels and categories, other predictions for the metrics"),
        pytest.param(make_rooms, id="labels that are ignored"),
        pytest.param(lambda folder: make_pairs(folder, STRONG), id="rows of the checks' own, samples read apart"),
        pytest.param(lambda folder: make_crowds("train.batch_size=4"), id="other boxes, priors and maps"),
    ],
)
def test_what_the_checks_of_a_task_put_into_it_leaves_no_trace(
    tmp_path: Path, make_one: Callable[[Path], TrainingSetup]
) -> None:
    plain, checked = make_one(tmp_path), make_one(tmp_path)
    torch.manual_seed(5)
    expected = trained(plain)
    torch.manual_seed(5)
    run_all(checked, World())
    found = trained(checked)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- which checks run -------------------------------------------------------------------------------------------------


def test_the_page_of_checks_names_every_code() -> None:
    """Scripts and configs name these; a code that goes, or changes, breaks them."""
    page = (ROOT / "docs/reference/checks.md").read_text()
    page = re.sub(r"(?s)## In a loop.*?(?=## )", "", page)
    codes = {each.code for each in all_rules()}
    assert {*re.findall(r"(?m)^\| `([a-z-]+)` \|", page)} == codes


def test_notes_take_one_line_unless_asked_for_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    note, warning = told("data-mutation", "note"), told("label-range", "warning")
    show_findings([warning, note])
    *full, line = capsys.readouterr().err.splitlines()
    assert full == str(warning).splitlines()
    assert line == "[data-mutation note cfg.contract] about data-mutation (config path data)"
    show_findings([note], is_verbose=True)
    assert capsys.readouterr().err == f"{note}\n"


def test_unknown_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no check 'missing-batch-key'; did you mean 'missing-batch-keys'"):
        run_quick(make(tmp_path, "checks.skip=[missing-batch-key]"), World())
    with pytest.raises(ConfigError, match="there is no check 'nonsense'; allowed: ") as caught:
        run_quick(make(tmp_path, "checks.skip=[nonsense]"), World())
    listed = str(caught.value).partition("allowed: ")[2].split(", ")
    assert listed == sorted({*listed}), "each code once"
    assert not [code for code in listed if " " in code]


# --- causes before symptoms -------------------------------------------------------------------------------------------


def of(code: str) -> str:
    return f"{code} cfg.contract"


SYMPTOMS = {"range": ["step", "channels", "rate"], "rate": ["step"], "channels": ["labels"]}
TABLE = {of(code): [*map(of, codes)] for code, codes in SYMPTOMS.items()}


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ([told("step"), told("rate", "warning"), told("range", field="label")], ["range"]),
        (
            [told("channels", field="points"), told("channels", field="label"), told("range", field="label")],
            ["channels", "range"],
        ),
        ([told("step"), told("range", "warning", field="label")], ["step", "range"]),
        ([told("rate", "note"), told("other", "warning"), told("labels")], ["labels", "other", "rate"]),
        ([told("labels"), told("other"), told("channels")], ["other", "channels"]),
    ],
)
def test_causes_compete(found: list[Finding], left: list[str], monkeypatch: Any) -> None:
    """A symptom is told under its cause, of the same field alone, and never under a warning if it is an error."""
    monkeypatch.setattr(causes, "read_symptoms", lambda: TABLE)
    merged = causes.merge_findings(found)
    assert [finding.code for finding in merged] == left
    told_of = [text for finding in merged for text in finding.evidence.get("explains", ())]
    assert len(merged) + len(told_of) == len(found)
    assert set(told_of) <= {f"[{finding.code}] about {finding.code}" for finding in found}


def test_one_fault_in_two_parts_is_told_once() -> None:
    findings = join_parts([told("label-range", field="label"), told("label-range", field="label")])
    assert len(findings) == 1
    assert len(findings[0].evidence["also"]) == 1


# --- several processes ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TwoProcesses(World):
    """Answers a collective as if another process had found something of its own."""

    size: int = 2
    theirs: tuple[Finding, ...] = ()

    def gather_text(self, text: str, *, operation: str = "text") -> list[str]:
        return [text, json.dumps([finding.to_dict() for finding in self.theirs])]


def test_what_one_process_found_all_are_told() -> None:
    mine, theirs = told("no-gradient", field="x"), told("non-finite")
    findings = gather_findings([mine], TwoProcesses(theirs=(mine, theirs)))
    assert [finding.code for finding in findings] == ["no-gradient", "non-finite"]
    assert findings[0] == mine
    assert findings[1].where.rank == 1


@pytest.mark.processes
def test_two_processes_tell_the_same(tmp_path: Path) -> None:
    """Only the second one has the fault, before training and at step 2; batch norms over processes do not hang."""
    (tmp_path / "small.yaml").write_text(CONFIG + "distributed: {sync_batch_norm: true}\n")
    run_ranks(["-m", "tests.doctor.run_checked", str(tmp_path)], 2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["findings"] == second["findings"]
    warning = first["findings"][0]
    assert (warning["code"], warning["cause"]) == ("no-gradient", "model.frozen_unintended")
    assert (warning["where"]["rank"], warning["where"]["param"]) == (1, "head.2.bias")
    assert first["explained"] == second["explained"]
    assert first["explained"]["cause"] == "data.corrupt_sample"
    assert first["explained"]["where"]["sample"] == first["target"]
    assert first["explained"]["where"]["step"] == 2
