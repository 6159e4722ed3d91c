"""Records of commands: what is parsed is the record, and the command line of a record parses to the same record."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from sightline.cli import SECTIONS, app
from sightline.commands.data import RenderOptions
from sightline.commands.fields import Command
from sightline.commands.look import ProfileOptions
from sightline.commands.prove import FitOneOptions, ProbeOptions
from sightline.commands.run import CompressOptions, EvaluateOptions, TrainOptions
from tests.cases import run_each
from tests.command import built_once, run_here

COMMANDS = [record for records in SECTIONS.values() for record in records]
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
    EvaluateOptions(runs=(Path("a"), Path("b")), overrides=("evaluate.votes=2",), checkpoint="best", errors=True),
    ProbeOptions(runs=(Path("a"),), words=("C=1", "data.x=2"), method="knn", random=3, cache=Path("c")),
    FitOneOptions(config=Path("a"), vary=("a=1,2", "b=3"), steps=7, keep="dropout"),
    ProfileOptions(config=Path("a"), tries=("bf16", "threads=2"), top=3),
    RenderOptions(source="modelnet40", target=Path("t"), options=("num_points=3",), style="depth", num_jobs=2),
    CompressOptions(runs=(Path("a"),), out=Path("o"), ratio=0.5, is_distilled=False, protect=("x", "y"), epochs=0),
    CompressOptions(runs=(Path("a"),), out=Path("o"), num_bytes=9, is_distilled=True, per_channel=True),
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
    assert titles == ["Options", "Run", "Prove", "Look", "Study", "Data"]
