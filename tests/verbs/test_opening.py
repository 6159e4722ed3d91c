"""First words of a training: config, data and folder before torch is imported, then what is done until a step."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.cli import SECTIONS
from sightline.commands.run import TrainOptions
from sightline.doctor.evidence import Evidence
from sightline.doctor.examine import examine
from sightline.draw import progress_line
from sightline.draw.progress_line import ProgressLine
from sightline.engine.launcher import prints_first
from sightline.verbs.opening import describe_training
from sightline.verbs.train import TerminalReporter
from sightline.workbench.check.examination import RunExamination
from tests.cases import run_each
from tests.command import run_here
from tests.limits import HANG_S
from tests.runs.small import ROOT

SHAPES = "classify/synthetic_shapes_pointnet"
BEFORE_TORCH = """
import sys
from unittest import mock

def end(name, *args, **kwargs):
    raise SystemExit(any(module in sys.modules for module in ("torch", "sightline.training", "sightline.engine.build")))

sys.argv = ["sightline", "train", sys.argv[1], "train.epochs=3", "data.root=prepared", "imgsz=64", "--out", "runs/a"]
from sightline import cli
first = cli._import_verb
with mock.patch.object(cli, "_import_verb", lambda name: first(name) if name.startswith("opening.") else end(name)):
    cli.main()
"""


def test_the_first_line_comes_before_torch_is_imported() -> None:
    """In a new interpreter that ends where the verb's own module would be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_TORCH, "detect/photos_scratch"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        cwd=ROOT,
    )
    assert done.stderr == "train: config detect/photos_scratch, data coco in prepared, output runs/a\n"
    assert done.returncode == 0, "torch was imported for it"


@run_each("config", sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*/[!_]*.yaml")))
def test_the_first_line_names_what_every_shipped_config_trains(config: Path) -> None:
    told = describe_training(TrainOptions(config=ROOT / config))
    assert re.fullmatch(rf"train: config .*{config}, data \w+( in .+)?, output the next folder of runs/\w+", told)


def test_a_config_that_cannot_be_read_is_named_alone(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert describe_training(TrainOptions(config=path, out=tmp_path)) == f"train: config {path}, output {tmp_path}"
    path.write_text("data: 5\nname: [a]\n")
    assert describe_training(TrainOptions(config=path)).startswith(f"train: config {path}, output the next folder")


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "SLURM_PROCID", "SIGHTLINE_LAUNCHED"):
        monkeypatch.delenv(variable, raising=False)
    assert prints_first()
    monkeypatch.setenv("RANK", "0")
    assert prints_first()
    monkeypatch.setenv("RANK", "1")
    assert not prints_first()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("SIGHTLINE_LAUNCHED", "7")
    assert not prints_first()


class _Listener(TerminalReporter):
    """Keeps what a line of progress would say at the moment at which it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str | None] = []

    def doing(self, describe: Callable[[], str] | None) -> None:
        self.told.append(None if describe is None else describe())


def test_every_part_of_a_start_is_told_until_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In their order, and how many there are; a failed start ends what is told, too."""
    listener = _Listener()
    monkeypatch.setattr("sightline.verbs.train.TerminalReporter", lambda json: listener)
    words = ("data.train_size=16", "data.test_size=8", "data.num_points=16", "train.batch_size=8", "train.steps=2")
    done = run_here("train", SHAPES, *words, "--out", tmp_path / "a", keeps_progress=True)
    assert done.code == 0, done.err
    assert done.err.startswith(f"train: config {SHAPES}, data synthetic_shapes, output {tmp_path / 'a'}\n")
    first = listener.told.index(None)
    assert {*listener.told[first:]} == {None}
    parts = ["reads the config", "1 of 3, opens the data 'synthetic_shapes'", "1 of 3, builds the model 'pointnet'"]
    parts += ["2 of 3, check: reads the data and builds the model", "3 of 3, computes the first step"]
    assert listener.told[:first] == parts
    listener.told.clear()
    assert run_here("train", SHAPES, *words, "--out", tmp_path / "a").code == 2, "the folder is not empty"
    assert listener.told == ["reads the config", None]


def test_the_check_counts_its_rules() -> None:
    """The number under way, of how many, its code and how far its work is, anew for each subject."""
    examination = RunExamination()
    assert examination.doing == "reads the data and builds the model"
    numbers: list[tuple[int, int, str]] = []
    examined = examine(Evidence({"subject": None}, 1.0), progress=lambda *counts: numbers.append(counts))
    assert [done for done, _, _ in numbers] == [*range(len(numbers))]
    assert {total for _, total, _ in numbers} == {len(numbers)}
    assert sorted(code for _, _, code in numbers) == sorted(each.rule.code for each in examined.judgements)
    assert len(numbers) > 0
    examination.turn_to("judges")
    assert examination.doing == "judges"
    examination.note_rule(4, 9, "flat-loss")
    counts = itertools.count(2)
    examination.note_work(lambda: f"{next(counts)} losses computed")
    assert examination.doing == "judges, rule 5 of 9 (flat-loss), 2 losses computed"
    assert examination.doing == "judges, rule 5 of 9 (flat-loss), 3 losses computed"
    examination.turn_to("ends")
    assert examination.doing == "ends"


def test_no_pause_between_two_lines_is_above_ten_seconds() -> None:
    """The thread waits for `QUIET_S` before its first line, and then for a pause before each."""
    assert max(progress_line.QUIET_S, progress_line.LIVE_PAUSE_S, progress_line.PLAIN_PAUSE_S) < 10


def test_a_line_says_anew_what_is_done_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a stream: the lines of two parts, one after the other, and none once it is closed."""
    monkeypatch.setattr(progress_line, "QUIET_S", 0.01)
    monkeypatch.setattr(progress_line, "PLAIN_PAUSE_S", 0.01)
    line = ProgressLine("train")
    for part in ("1 of 2, a", "2 of 2, b"):
        asked = threading.Event()
        line.show(lambda part=part, asked=asked: asked.set() or part)
        assert asked.wait(HANG_S)
    line.close()
    line.close()
    said = capsys.readouterr().err.splitlines()
    assert [text.partition(";")[0] for text in dict.fromkeys(text.rpartition("; ")[0] for text in said)] == [
        "train: 1 of 2, a",
        "train: 2 of 2, b",
    ]


def test_a_training_alone_opens_so() -> None:
    opening = {record.name: record.opening for records in SECTIONS.values() for record in records if record.opening}
    assert opening == {"train": "opening.begin_training"}
