"""Several processes through the command: the numbers of one, one voice, and an end for all when one of them fails.

Each `--processes 2` imports the package anew, twice: more such commands are in tests/long/test_launched_processes.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command import without_progress
from tests.limits import HANG_S
from tests.processes import ROOT, forked, print_to
from tests.runs.broken_off import assert_all_end, metrics, run_forked, with_variable

pytestmark = pytest.mark.processes

# 59 of the 71 samples train: an epoch is 16 + 16 + 16 + 11, and the 11 are dealt 6 + 5. Twenty steps are five epochs.
# In two micro-batches it is 32 + 27, ten epochs, since batch norm of a handful of samples blows rounding up.
SIZES = {1: ("train.batch_size=16", "train.epochs=5"), 2: ("train.batch_size=32", "train.epochs=10")}
WORDS = (
    "data.train_size=71",
    "data.test_size=43",
    "data.num_points=32",
    "model.dropout=0",
    "train.precision=float64",
    "evaluate.every=5",
    "evaluate.batch_size=10",
    "checkpoint.every=5",
    "log.every=1",
    "log.tensorboard=false",
    "distributed.sync_batch_norm=true",
    "--no-check",
    "--device=cpu",
)
MODELS = {"pointnet": (), "dgcnn": ("model.num_neighbours=6", "model.embedding=64")}
NUM_STEPS = 20
# The bound. Through batch norms of few samples and Adam, rounding of 1e-16 grows by orders of magnitude in
# twenty steps.
BOUND = 1e-9

TINY = """\
name: tiny
data: {name: synthetic_shapes, train_size: 48, test_size: 24, num_points: 32}
model: {name: pointnet_plain}
losses: [{name: cross_entropy}]
metrics: [{name: accuracy}]
transforms: {train: [{name: fault}]}
optimizer: {name: adam, lr: 1e-3}
train: {epochs: 2, batch_size: 8}
evaluate: {metric: overall_accuracy, batch_size: 16}
log: {every: 3, tensorboard: false}
"""
OWN_LINES = re.compile(
    r"(checks skipped|task: |run directory: |a page with |samples: |epoch \d|validation at step |hardest )"
    r"|overall_accuracy \S+ \(95 % interval "
)


class Done(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def command(*words: str, folder: Path, environment: Mapping[str, str] | None = None) -> Done:
    """Run `sightline <words>` to its end; fails if any process that it started does not end with it.

    The command itself is forked from a process that has imported the package; those that it starts are new ones.
    """
    mark = f"SIGHTLINE_TEST={folder}/{time.monotonic_ns()}"
    name, _, value = mark.partition("=")
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), name: value} | dict(environment or {})
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place) / each for each in ("out", "err"))
        process = forked(_command, words, str(folder), variables, str(out), str(err))
        process.join(HANG_S)
        is_late = process.exitcode is None
        process.kill()
        assert_all_end(with_variable(mark))
        texts = (out.read_text(), err.read_text())
    assert not is_late, texts
    assert process.exitcode is not None
    return Done(process.exitcode, *texts)


def _command(words: tuple[str, ...], folder: str, variables: Mapping[str, str], out: str, err: str) -> None:
    from sightline.cli import main

    print_to(out, 1)
    print_to(err, 2)
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv = ["sightline", *words]
    main()


def words_of(model: str, out: Path, *more: str, micro_batches: int = 1) -> list[str]:
    config = ROOT / "configs" / "classify" / f"synthetic_shapes_{model}.yaml"
    sizes = (*SIZES[micro_batches], f"train.micro_batches={micro_batches}")
    return ["train", str(config), *WORDS, *sizes, *MODELS[model], "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


Trained = Callable[..., tuple[Path, Done]]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return trainer(folder)


def trainer(folder: Path) -> Trained:
    """The run of a model on so many processes, and what the command printed; made once, one by `--processes`."""
    made: dict[Path, Done] = {}

    def train(model: str, num_processes: int, micro_batches: int = 1) -> tuple[Path, Done]:
        out = folder / f"{model}_{num_processes}_{micro_batches}"
        words = words_of(model, out, micro_batches=micro_batches)
        is_launched = (model, num_processes, micro_batches) == ("pointnet", 2, 1)
        if out not in made and is_launched:
            made[out] = command(*words, "--processes", "2", folder=folder)
        elif out not in made:
            code, text = run_forked(words, out.with_suffix(".log"), num_processes=num_processes)
            made[out] = Done(code, text, text)
        assert made[out].code == 0, made[out].err
        return out, made[out]

    return train


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, pytest.param(2, marks=pytest.mark.long)])
def test_two_processes_have_the_loss_trace_of_one(trained: Trained, micro_batches: int) -> None:
    assert_same_trace(trained, "pointnet", micro_batches)


def assert_same_trace(trained: Trained, model: str, micro_batches: int = 1) -> None:
    """Synchronised batch norm, no dropout, float64, the same global batch; every loss, gradient norm and metric."""
    (one, _), (two, _) = (trained(model, number, micro_batches) for number in (1, 2))
    ours, theirs = metrics(two), metrics(one)
    assert [line["step"] for line in theirs if line["split"] == "train"] == list(range(1, NUM_STEPS + 1))
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        numbers = [name for name in its if name.startswith(("loss", "grad_norm", "lr"))]
        assert [mine[name] for name in numbers] == pytest.approx([its[name] for name in numbers], rel=BOUND, abs=0)


def test_evaluation_has_the_same_bits_on_any_number_of_processes(trained: Trained, folder: Path) -> None:
    """Trained on two. 43 samples in batches of ten, dealt 2 + 2 + 1 on three: uneven data, no sample twice."""
    run, _ = trained("pointnet", 2)
    texts = []
    for number in (1, 3):
        document = folder / f"evaluated_{number}.json"
        words = ["evaluate", str(run), "--json", str(document), "--device", "cpu"]
        code, text = run_forked(words, document.with_suffix(".log"), num_processes=number)
        assert code == 0, text
        texts.append(document.read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["data"]["num_samples"] == 43
    final = json.loads((run / "final.json").read_text())
    assert {name: json.loads(texts[0])[name] for name in final} == final


# --- one voice --------------------------------------------------------------------------------------------------------


def test_only_the_first_process_speaks_and_writes(trained: Trained) -> None:
    """Nothing of torch's launcher, of warnings, or of the second process; one set of files, as of one process."""
    (run, done), (alone, _) = trained("pointnet", 2), trained("pointnet", 1)
    assert done.err.count("train: config ") == 1
    lines = without_progress(done.err).splitlines()
    assert [line for line in lines if not OWN_LINES.match(line)] == []
    assert len(lines) == len(set(lines)) + 1  # "run directory" stands at both ends
    assert done.out.count("overall_accuracy") == 1
    files = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) for folder in (run, alone)]
    assert files[0] == files[1]
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 2
    assert (run / "train.log").read_text().count("step 20") == 2  # the evaluation and the epoch, each once


# --- one process fails ------------------------------------------------------------------------------------------------


def failed(folder: Path, kind: str, *more: str) -> tuple[Done, Path]:
    """A run in which the second process does this in its third batch."""
    (folder / "tiny.yaml").write_text(TINY)
    out = folder / f"failed {kind}"
    words = ["train", "tiny.yaml", "--plugin", str(ROOT / "tests/runs/faults.py"), "--processes", "2", *more]
    done = command(*words, "--no-check", "--out", str(out), folder=folder, environment={"FAULT": kind})
    return done, out


def error_of(done: Done) -> str:
    """All that was printed but for our own lines of progress."""
    lines = without_progress(done.err).splitlines(keepends=True)
    return "".join(line for line in lines if not OWN_LINES.match(line)).removesuffix("\n")


def test_a_process_that_hangs_ends_the_run_and_is_named(folder: Path) -> None:
    assert_hanging_is_named(folder, "sleep")


def assert_hanging_is_named(folder: Path, kind: str) -> None:
    """After three seconds of patience, which the plugin sets; the line of the plugin, or that it does not answer."""
    done, _ = failed(folder, kind)
    assert done.code == 1
    error = error_of(done)
    assert error.startswith("error: the processes no longer wait for the same thing (distributed.timeout_s = 3): ")
    where = r"all_reduce of loss counts \(cross_entropy\) at \S+/supervised\.py:\d+ in prepare; "
    assert re.search(rf": rank 0 has waited \d+ s in {where}", error), error
    lines = (ROOT / "tests/runs/faults.py").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "time.sleep" in text)
    elsewhere = {
        "sleep": f"; rank 1 is at {ROOT}/tests/runs/faults.py:{line} in strike",
        "SIGSTOP": "; rank 1 does not respond (stopped, swapped out or dead)",
    }
    assert error.endswith(elsewhere[kind])
    assert "\n" not in error


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_run(folder: Path) -> None:
    done, out = failed(folder, "SIGKILL")
    assert done.code == 1
    assert error_of(done) == "error: process 1 was ended by SIGKILL (out of memory?); the others were stopped"
    assert not (out / ".lock").exists()  # the first process left in good order


def test_bad_data_on_one_process_is_one_line_and_leaves_no_folder(folder: Path) -> None:
    done, out = failed(folder, "bad data")
    assert done.code == 2
    assert re.fullmatch(r"error: \S+ \S+ scans/7\.npz: is cut after 12 bytes; fetch it again", error_of(done))
    assert done.out == ""
    assert not out.exists()
