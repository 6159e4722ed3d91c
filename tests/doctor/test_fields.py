"""Correct programs of ten fields, by somebody who does not know the rules: no alarm, and nothing of them changes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sightline
from tests.marks import long_but

FILES = {path.stem: path for path in sorted((Path(__file__).parent / "fields").glob("*.py"))}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    spec = importlib.util.spec_from_file_location(f"field_{name}", FILES[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", long_but(["05_dqn_docking"], FILES))
def test_a_correct_program_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)  # as its author ran it
    program = load(name, monkeypatch)
    given = {"step": program.step, "loader": program.loader, "evaluation": program.evaluation}
    checked = sightline.check(program.model, **given, optimizer=program.optimizer, score=program.score)
    printed, weights = [], []
    for is_watched in (False, True):
        program, text = load(name, monkeypatch), io.StringIO()
        given = {"step": program.step, "loader": program.loader, "evaluation": program.evaluation}
        watching = sightline.watch(program.model, **given) if is_watched else contextlib.nullcontext()
        with contextlib.redirect_stdout(text), watching as watched:
            program.main(1)
        printed.append(text.getvalue())
        weights.append([parameter.detach().clone() for parameter in program.model.parameters()])
    assert printed[0] == printed[1]
    assert all(map(torch.equal, *weights))
    for report in (checked, watched.report):
        assert [finding for finding in report.findings if finding.severity != "note"] == []
        assert not [reason for reason in report.examined.not_judged.values() if "Error" in reason]
    names = [{*report.examined.judged} for report in (checked, watched.report)]
    of_scores = {name for name in names[0] if any(word in name for word in ("score", "figure", "evaluation"))}
    assert len(names[1]) >= len(names[0] - of_scores)
