"""`sightline profile` from the command line: tables, files, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases import run_each
from tests.command import run_here, succeed
from tests.runs.broken_off import run_forked

CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "synthetic_shapes_dgcnn.yaml"
TINY = (
    *("data.train_size=48", "data.test_size=24", "data.num_points=32", "train.batch_size=8"),
    "model={num_neighbours: 4, embedding: 16}",
)


def test_tables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    trace, kept = tmp_path / "trace.json.gz", tmp_path / "kept.json"
    words = ["loader.workers=0", "--steps", "2"]
    printed = succeed("profile", CONFIG, *TINY, *words, "--trace", trace, "--json", kept).out
    assert trace.stat().st_size > 0
    document = json.loads(kept.read_text())
    assert sum(row["seconds"] for row in document["parts"]) == pytest.approx(document["untraced_step_s"], rel=0.1)
    assert "aten::mm" in {row["operator"] for row in document["operators"]}  # its place is a matter of the machine
    for text in ("optimise", max(document["operators"], key=lambda row: row["seconds"])["operator"]):
        assert text in printed
    slowest = max(document["modules"], key=lambda row: row["seconds"])
    assert slowest["path"] or "(model)" in printed


def test_a_learning_rate_is_found_and_nothing_else_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--find-rate", "--json", "found.json", "--svg", "found.svg"]
    done = succeed("profile", CONFIG, *TINY[:-1], "loader.workers=0", *words)  # a thin network hardly learns
    document = json.loads(Path("found.json").read_text())
    assert done.out.splitlines()[-1] == f"optimizer.lr={document['suggestion']:g}"
    assert document["suggestion"] == pytest.approx(document["best_rate"] / 10, rel=0.05)
    assert len(document["losses"]) == len(document["rates"]) <= document["num_steps"] == 100
    assert Path("found.svg").read_text().count("<polyline") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "found.svg"]


@pytest.mark.processes
def test_of_two_processes_each_states_how_long_it_waited_for_gradients(tmp_path: Path) -> None:
    """The first one prints and writes alone; the part of the step is in its table."""
    words = ["profile", str(CONFIG), *TINY, "loader.workers=0", "--steps", "2", "--json", str(tmp_path / "p.json")]
    code, text = run_forked([*words, "--device", "cpu"], tmp_path / "log", num_processes=2)
    assert code == 0, text
    document = json.loads((tmp_path / "p.json").read_text())
    assert [row["rank"] for row in document["processes"]] == [0, 1]
    for row in document["processes"]:
        assert 0 < row["reduce_s"] < row["step_s"]
    parts = {row["part"]: row["seconds"] for row in document["parts"]}
    assert 0 < parts["reduce"] < document["untraced_step_s"]
    assert text.count("waited for gradients") == 1


@run_each(
    "words, expected",
    [
        (["--steps", "5"], "--steps 5: training has 6 steps, 2 of which warm up; give train.steps=7"),
        (["--steps", "0"], "--steps"),
        (["--trace", CONFIG.parent], "is a folder"),
        (["--find-rate", "--steps", "5"], "give at least 20 steps"),
        (["--find-rate", "--trace", "trace.json.gz"], "leave one of the two out"),
        (["--svg", "rates.svg"], "draws the curve of --find-rate; give both"),
        (["train.epochss=1"], "did you mean 'epochs'?"),
        (["--epochs", "1"], "write train.epochs=1"),
    ],
)
def test_a_mistake_gets_one_line(words: list[object], expected: str) -> None:
    code, _, err = run_here("profile", CONFIG, *TINY, "train.steps=6", *words)
    assert code == 2
    assert err.count("\n") == 1, err
    assert expected in err
