"""A run's folder: verified once a command, and no file of it read twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.runs import run_documents, run_files
from tests.cases import run_each
from tests.command import succeed
from tests.trained import copy_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("plain", tmp_path_factory.mktemp("run"))


@run_each("verb, words", [("evaluate", ()), ("predict", ("cloud.xyz",)), ("check", ())])
def test_a_command_verifies_a_run_once(
    verb: str, words: tuple[str, ...], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savetxt(tmp_path / "cloud.xyz", np.random.default_rng(0).normal(size=(64, 3)))
    monkeypatch.chdir(tmp_path)
    seen: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counting(path: Path) -> Any:
            seen[f"{name} {path}"] += 1
            return function(path)

        monkeypatch.setattr(module, name, counting)

    count(run_files, "assert_own_files")
    count(run_documents, "read_regular_file")
    succeed(verb, run, *words, "--device", "cpu")
    seen = Counter({key: times for key, times in seen.items() if str(run) in key and not key.endswith(".jsonl")})
    assert seen[f"assert_own_files {run}"] == 1
    assert not {key: times for key, times in seen.items() if times > 1}
