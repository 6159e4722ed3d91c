"""The command line: commands from their records, exit codes; a command's rooms are imported only when it runs."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from sightline.commands.compress import COMPRESS_COMMANDS
from sightline.commands.data import DATA_COMMANDS
from sightline.commands.fields import Command, CommandParameter, MoreHelp
from sightline.commands.look import (
    RUNS_COMMANDS,
    CopyOptions,
    DescribeOptions,
    InitOptions,
    ListOptions,
    ProfileOptions,
    ReportOptions,
    ShowOptions,
    StudyOptions,
    SweepOptions,
    ViewOptions,
)
from sightline.commands.prove import CheckOptions, CompareOptions, FitOptions
from sightline.commands.run import (
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ScoreOptions,
    ServeOptions,
    TrainOptions,
)
from sightline.commands.weights import WEIGHTS_COMMANDS
from sightline.contract.catalogue import gc_paused
from sightline.contract.errors import UserError
from sightline.verbs.terminal import guard_streams, stdout_failure

SECTIONS: dict[str, tuple[type[Command], ...]] = {
    "Begin": (InitOptions, CopyOptions, ShowOptions, ListOptions),
    "Data": DATA_COMMANDS,
    "Train": (TrainOptions, EvaluateOptions, PredictOptions, ScoreOptions),
    "Prove": (CheckOptions, FitOptions, CompareOptions),
    "Look": (ViewOptions, ReportOptions, *RUNS_COMMANDS, DescribeOptions, ProfileOptions),
    "Use": (*WEIGHTS_COMMANDS, *COMPRESS_COMMANDS, ExportOptions, ServeOptions),
    "Search": (StudyOptions, SweepOptions),
}
"""Commands by the sections of `sightline --help`, in the order of a day's work."""


class _Group(TyperGroup):
    """Group whose help lists commands by section, with whole summaries."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command of a group before words that name none of its commands."""
        default = _DEFAULTS.get(self.name or "")
        if default and not (args and self._is_about_commands(ctx, args[0])):
            args = [default, *args]
        return super().parse_args(ctx, args)

    def _is_about_commands(self, ctx: Any, word: str) -> bool:
        """Return True for a command, a misspelt or another tool's one that is no path, and for a question for help."""
        if word in ctx.help_option_names or word in self.commands:
            return True
        if "/" in word or os.path.exists(word):
            return False
        return bool(get_close_matches(word, self.commands)) or self._find_instead(ctx, word) is not None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command. Raises UserError for one of another tool, and for a path, with what to write."""
        word = args[0]
        if word not in self.commands and (instead := self._find_instead(ctx, word)):
            raise UserError(f"{word}: is no command; write: sightline {instead}")
        return super().resolve_command(ctx, args)

    def _find_instead(self, ctx: Any, word: str) -> str | None:
        """Return the command line that is meant by a word which is no command of the group."""
        group = (ctx.parent and self.name) or ""
        is_path = "/" in word or Path(word).suffix in (".yaml", ".yml") or os.path.exists(word)
        if is_path:
            return f"{_MEANT_BY_PATH[group]} {shlex.quote(word)}"
        if word.lower() in self.commands:
            return f"{group} {word.lower()}".strip()
        from sightline.config.other_tools import find_command  # slow, as its room is

        return find_command(word, group=group)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by section; those of a group as one table."""
        if ctx.parent is not None:
            prefix = f"{self.name} "
            records = [r for section in SECTIONS.values() for r in section if r.name.startswith(prefix)]
            with formatter.section("Commands"):
                formatter.write_dl([(r.name.removeprefix(prefix), r.summary()) for r in records])
            return
        width = max(len(record.name) for section in SECTIONS.values() for record in section)
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{record.name:<{width}}", record.summary()) for record in section])


_DEFAULTS = {"runs": "list"}
"""Commands of groups that are meant where none is named."""
_MEANT_BY_PATH = {
    "": "train",
    "data": "data info",
    "weights": "weights convert",
    "compress": "compress run",
    "runs": "runs list",
}
"""What is written before a path that stands in the place of a command, by group."""

app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train perception models you can trust. One YAML file describes a run; 'sightline VERB --help' lists options.",
)
_GROUPS = {
    "data": typer.Typer(cls=_Group, no_args_is_help=True, help="Prepare data sets and describe their contents."),
    "weights": typer.Typer(cls=_Group, no_args_is_help=True, help="Fetch published weights, and convert them to runs."),
    "compress": typer.Typer(cls=_Group, no_args_is_help=True, help="Store the weights of a trained run in few bits."),
    "runs": typer.Typer(cls=_Group, help="List runs, compare two, or exchange one with a hub."),
}


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        sys.stdout.write(f"sightline {version('sightline')}, torch {version('torch')}\n")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version, and exit")
    ] = False,
) -> None:
    """Take the options of the command itself."""


# --- commands from their records -------------------------------------------------------------------------------------


def _make_command(record: type[Command]) -> Callable[..., int]:
    """Make the function of a command that Typer reads."""

    def call(**values: Any) -> int:
        options = record.from_words(values)
        _assert_written_alone(options)
        for variable, value in record.environment.items():
            os.environ.setdefault(variable, value)
        if record.opening:
            _import_verb(record.opening)(options)
        code: int = _import_verb(options.function())(options)
        return code

    hints = get_type_hints(record)
    call.__doc__ = record.__doc__
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_make_parameter(name, hints[name], parameter) for name, parameter in record.parameters()]
    )
    return call


class _RecordCommand(TyperCommand):
    """Command whose help ends with examples, and before them with rows that depend on the words before `--help`."""

    record: ClassVar[type[Command]]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = tuple(word for word in args if not word.startswith("-"))
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:  # of an option without its value; its message names the command's
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write rows and examples; without a word nothing is imported."""
        more = MoreHelp()
        if self.record.help_rows and (words := ctx.meta["words"]):
            more = _import_verb(self.record.help_rows)(words)
        for title, rows in {**self.record.sections, more.title: more.rows}.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if examples := more.examples or self.record.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  sightline {line}\n" for line in examples))


def _add_command(record: type[Command]) -> None:
    """Add a command to its group, with the options and arguments of its record."""
    group, _, name = record.name.rpartition(" ")
    cls = type("Help", (_RecordCommand,), {"record": record})
    (_GROUPS[group] if group else app).command(name, cls=cls)(_make_command(record))


def _import_verb(name: str) -> Callable[..., Any]:
    """Import a function of `sightline.verbs` by its module and name."""
    module, function = name.split(".")
    with gc_paused():
        verb = importlib.import_module(f"sightline.verbs.{module}")
    imported: Callable[..., Any] = getattr(verb, function)
    return imported


def _make_parameter(name: str, hint: Any, parameter: CommandParameter) -> inspect.Parameter:
    """Make the parameter that Typer reads; a tuple becomes a list, of text if it may hold KEY=VALUE words."""
    default = inspect.Parameter.empty if parameter.default is MISSING else parameter.default
    if getattr(hint, "__origin__", None) is tuple:  # of any length; one of two words is left as it is
        hint = list[str] if parameter.key_values else list[hint.__args__[0]]
        if default == ():
            hint, default = hint | None, None
    texts: dict[str, Any] = {"metavar": parameter.metavar, "help": parameter.help}
    if parameter.flag:
        callback = _check_writable(parameter.flag) if parameter.is_written else None
        info: Any = typer.Option(parameter.flag, callback=callback, min=parameter.min, max=parameter.max, **texts)
    else:
        info = typer.Argument(**texts)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info])


def _check_writable(flag: str) -> Callable[[Path | None], Path | None]:
    """Make an option's callback that refuses a file that cannot or must not be written, before any work is done."""

    def check(path: Path | None) -> Path | None:
        if path is not None:
            from sightline.runs.output_files import assert_writable
            from sightline.runs.run_folders import assert_replaceable

            assert_writable(path, option=flag)
            assert_replaceable(path, option=flag)
        return path

    return check


def _assert_written_alone(options: Command) -> None:
    """Raise UserError for a file to write that is also another file or folder of the command."""
    arguments = [(parameter, getattr(options, name)) for name, parameter in options.parameters()]
    for written, path in arguments:
        if not written.is_written or path is None:
            continue
        for other, value in arguments:
            paths = [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Path)]
            if other is not written and os.path.realpath(path) in map(os.path.realpath, paths):
                what = f"the file of {other.flag}" if other.flag else "what the command reads"
                raise UserError(f"{written.flag} {path}: is also {what}; give another")


for _record in (record for records in SECTIONS.values() for record in records):
    _add_command(_record)
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)


def main() -> None:
    """Run a command line; errors of the user exit with one line and code 2, failed work with code 1."""
    guard_streams()
    # Read when torch is first imported: waiting threads sleep instead of spinning, which is 2 to 4 times faster on a
    # busy machine and makes no difference on an idle one (docs/inside/decisions/runs.md#threads-that-wait-sleep).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:  # torch reads the level when it is imported
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # the package itself reports, in one line, a process that ends
    launcher = os.environ.get("SIGHTLINE_LAUNCHED")
    if launcher and "RANK" in os.environ:
        from sightline.engine.launcher import exit_with_parent

        exit_with_parent(int(launcher), folder=os.environ.get("SIGHTLINE_LAUNCH_FOLDER"))
    code = _run()
    if code == 0 and (reason := stdout_failure()) is not None:
        from sightline.verbs.terminal import fail

        code = fail(f"standard output: cannot be written: {reason}; the results were not printed in full", 1, None)
    if code != 0:
        from sightline.engine.failures import exit_process
        from sightline.engine.launcher import launched_world_size

        with contextlib.suppress(UserError):  # invalid variables were reported already
            if (launched_world_size() or 1) > 1:
                from sightline.engine.distributed import tell_end

                tell_end()
                exit_process(code)
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        from sightline.verbs.terminal import fail

        return fail("interrupted", 130, None)
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a message and an exit code
        from sightline.verbs.terminal import format_error

        return format_error(error)
    return int(code or 0)
