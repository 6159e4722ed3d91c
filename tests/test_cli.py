"""The command line: quick help, one line for a slip, exit code 2; a record's command line parses to the same record."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import typer

from sightline.cli import SECTIONS, app
from sightline.commands.compress import CompressRunOptions, CompressSearchOptions
from sightline.commands.data import RenderOptions
from sightline.commands.fields import Command
from sightline.commands.look import ProfileOptions
from sightline.commands.prove import CheckOptions, FitOptions
from sightline.commands.run import EvaluateOptions, TrainOptions
from tests.cases import run_each
from tests.command import built_once, run_here
from tests.limits import HANG_S
from tests.published_layouts import MODELS
from tests.runs.small import TINY

COMMANDS = [record for records in SECTIONS.values() for record in records]
VERBS = ["", *(record.name for record in COMMANDS)]
HEAVY = ("torch", "numpy", "yaml", "scipy", "h5py", "PIL", "tensorboard", "wandb", "mlflow")
SHIPPED = Path(__file__).parents[1] / "configs" / "classify"


HELP = f"""
import os, sys
from sightline import cli
for verb in {VERBS!r}:
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    code, sys.argv = None, ["sightline", *verb.split(), "--help"]
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    print("heavy:", code, *[name for name in {HEAVY!r} if name in sys.modules])
    sys.stdout.flush()
    os._exit(0)
"""
"""The help of each verb, in a process of its own forked from one that has imported the command line alone."""


@pytest.mark.processes
def test_help_imports_nothing_heavy() -> None:
    """So it takes well under a second wherever Python starts; what is imported is checked, not the clock."""
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, env=environment, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    *told, rest = re.split("^heavy: (.*)\n", done.stdout, flags=re.MULTILINE)
    assert rest == ""
    helps, endings = told[::2], told[1::2]
    assert dict(zip(VERBS, endings, strict=True)) == dict.fromkeys(VERBS, "0"), "imported for --help, after its code"
    assert [verb for verb, text in zip(VERBS, helps, strict=True) if "Usage: " not in text] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "CONFIG"),
        (["train", TINY, "--proceses", "2"], "--proceses"),
        (["train", TINY, "--processes", "0"], "--processes"),
        (["train", SHIPPED / "pointnet.yaml"], "no such file; did you mean 'modelnet10_pointnet.yaml'?"),
        (
            ["train", TINY, "--lr=1"],
            "--lr: is not an option; to set a value of the config, write optimizer.lr=1",
        ),
        (["check", TINY, "--batch-size", "2"], "write train.batch_size=2 or evaluate.batch_size=2"),
        (["check", TINY, "--seed", "2"], "--seed: is not an option; to set a value of the config, write seed=2"),
        (["check", "epochs=3"], "epochs=3: no such file; the config comes first, key=value after it"),
        (["show", TINY.with_name("tinny.yaml")], "no such file; did you mean 'tiny.yaml'?"),
        (["list", "modells"], "list: there is no kind or component 'modells'; did you mean 'models'?"),
        (["list", "dgcn"], "list: there is no kind or component 'dgcn'; did you mean 'dgcnn'?"),
        (["copy", "modelnet40_dgcn"], "did you mean 'modelnet40_dgcnn'?"),
        (["copy", "configs/clasify"], "did you mean 'configs/classify'?"),
        (["data", "info", "modelnet4"], "did you mean 'modelnet40'?"),
        (["data", "prepare", "modelnet40"], "--from"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(Path(word).name for word in value),
)
def test_a_slip_gets_one_line(words: list[object], expected: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        code, out, err = run_here(*words)
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_every_layout_is_listed_and_the_list_named_where_one_is_given() -> None:
    assert "'sightline list layouts'" in " ".join(run_here("weights", "convert", "--help").out.split())
    assert [line.split()[0] for line in run_here("list", "layouts").out.splitlines()] == sorted(MODELS)


@pytest.mark.parametrize("words", [[], ["data"]])
def test_nothing_asked_is_answered_with_help(words: list[str]) -> None:
    code, out, err = run_here(*words)
    assert code == 2
    assert (out + err).startswith("Usage: ")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "none.yaml"],
        ["evaluate", "none"],
        ["check", "none.yaml"],
        ["show", "none.yaml"],
        ["list"],
        ["data", "prepare", "modelnet40", "--from", "none", "--to", "made"],
        ["data", "info", "modelnet40"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_document_that_cannot_be_written_is_refused_before_any_work(words: list[str], tmp_path: Path) -> None:
    """The other words are wrong too, or would print: the line about --json comes before either."""
    (tmp_path / "file").write_text("kept")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        for target, expected in ((tmp_path, "is a folder"), (Path("file/a.json"), "is not a folder")):
            code, out, err = run_here(*words, "--json", target)
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert err.startswith(f"error: --json {target}: ")
            assert expected in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_devices_and_places_that_refuse_files_are_no_documents() -> None:
    """A device would be replaced by a file. In /proc not even root makes one."""
    for target, expected in (("/dev/null", "is not a regular file"), ("/proc/a/b.json", "cannot be written: ")):
        code, out, err = run_here("list", "--json", target)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert expected in err


def test_a_document_may_have_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "list.json"
    assert run_here("list", "schedules", "--json", target).code == 0
    assert [path.name for path in target.parent.iterdir()] == ["list.json"]


def test_traceback_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    code, _, err = run_here("show", tmp_path / "none.yaml", "--traceback")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert "none.yaml: no such file; give a YAML file" in err.rstrip().splitlines()[-1]


def test_the_version_is_that_of_the_installed_package() -> None:
    done = run_here("--version")
    assert done.out == f"sightline {version('sightline')}, torch {torch.__version__}\n"


def test_a_value_longer_than_a_file_name_is_a_value() -> None:
    """A list of transforms is easily longer than the 255 bytes that file systems take."""
    long = "transforms.train=[" + "{name: flip_image}, " * 40 + "]"
    done = run_here("view", TINY, long, "--out", "never")
    assert done.code == 2
    assert "File name too long" not in done.err


# --- what is parsed is the record of a command, and its command line parses to it again -------------------------------


@pytest.mark.parametrize("record", COMMANDS, ids=lambda record: record.name)
def test_examples_of_a_help_are_command_lines(record: type[Command]) -> None:
    assert 1 <= len(record.examples) <= 3
    for example in record.examples:
        words = shlex.split(example)
        command = next(other for other in COMMANDS if words[: len(other.name.split())] == other.name.split())
        known = {flag for _, parameter in command.parameters() for flag in parameter.flag.split("/")}
        assert {word for word in words if word.startswith("--")} <= known, example
        with typer.main.get_command(app).make_context("sightline", words, resilient_parsing=True):
            pass
    groups = Counter(record.name.split()[0] for record in COMMANDS)
    assert len(groups) <= 23
    assert max(groups.values()) <= 5


OPTIONS: tuple[Command, ...] = (
    TrainOptions(config=Path("a.yaml")),
    TrainOptions(
        config=Path("a b.yaml"),
        overrides=("train.epochs=3", "seed=1"),
        out=Path("out"),
        resume="auto",
        no_check=True,
        plugins=(Path("p.py"), Path("q.py")),
        device="cpu",
        json=Path("f.json"),
    ),
    EvaluateOptions(runs=(Path("a"), Path("b")), overrides=("evaluate.votes=2",), checkpoint="best"),
    EvaluateOptions(runs=(Path("a"),), overrides=("C=1", "data.x=2"), probe="few-shot,svm", data=Path("c")),
    CheckOptions(config=Path("a"), overrides=("a=1",), deep=True, budget=0.5),
    FitOptions(config=Path("a"), overrides=("a=1",), grid=True, steps=7, seconds=0.5),
    ProfileOptions(config=Path("a"), steps=3),
    RenderOptions(source="modelnet40", target=Path("t"), options=("num_points=3",), style="depth"),
    CompressRunOptions(runs=(Path("a"),), out=Path("o"), ratio=0.5, is_distilled=False, protect=("x", "y"), epochs=0),
    CompressRunOptions(runs=(Path("a"),), out=Path("o"), num_bytes=9, is_distilled=True, per_channel=True),
    CompressSearchOptions(runs=(Path("a"),), out=Path("o"), ratio=0.5, method="ddpg,hybrid", words=("episodes=9",)),
)


def parsed(options: Command) -> Command:
    """The record that the command line of a record gives."""
    command: Any = built_once(app)
    words = options.command_line()
    for name in options.name.split():
        command = command.commands[name]
        assert words.pop(0) == name
    return type(options).from_words(command.make_context("sightline", words).params)


@run_each("options", OPTIONS)
def test_a_command_line_gives_the_same_options(options: Command) -> None:
    assert parsed(options) == options


def test_launched_processes_get_no_options_of_the_launch() -> None:
    options = TrainOptions(config=Path("a"), processes=2, traceback=True, device="cpu")
    assert options.command_line() == ["train", "a", "--device", "cpu"]


@run_each("record", COMMANDS)
def test_every_record_has_its_function(record: type[Command]) -> None:
    """It is named as text, since its module may not be imported for `--help`."""
    for path in (record.run, *record.run_if.values()):
        module, name = path.split(".")
        function: Callable[..., int] = getattr(importlib.import_module(f"sightline.verbs.{module}"), name)
        first, *others = inspect.signature(function).parameters.values()
        hints = get_type_hints(function)
        assert (first.name, hints["options"], hints["return"]) == ("options", record, int)
        assert all(parameter.default is not parameter.empty for parameter in others)


@run_each("record", COMMANDS)
def test_every_parameter_is_declared_once(record: type[Command]) -> None:
    parameters = dict(record.parameters())
    flags = [parameter.flag for parameter in parameters.values() if parameter.flag]
    assert len(set(flags)) == len(flags)
    fields = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    assert fields >= parameters.keys() | {p.key_values for p in parameters.values() if p.key_values}


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("data",), ("compress",)], ids=" ".join)
def test_no_summary_is_cut_at_80_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run_here(*words, "--help")
    assert max(map(len, done.out.splitlines())) <= 80
    records = [record for record in COMMANDS if not words or record.name.startswith(words[0])]
    lines = " ".join(done.out.split())
    assert [record.summary() for record in records if record.summary() not in lines] == []


def test_the_help_groups_the_commands() -> None:
    titles = re.findall(r"^(\w+):$", run_here("--help").out, flags=re.MULTILINE)
    assert titles == ["Options", "Begin", "Data", "Train", "Prove", "Look", "Use", "Search"]


def test_the_help_of_predict_is_by_kind_of_data_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had 22 lines on six tasks before the first option."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_here("predict", "--help").out.splitlines()
    assert lines.index("Options:") < 25
    kinds = lines[lines.index("What is predicted, by the data of the run:") + 1 : lines.index("Examples:")]
    found = [line[2:23].strip() for line in kinds if re.match(r"  \S", line)]
    assert found == ["clouds", "parts, rooms, scans", "images", "depth images", "--data CONFIG"]
