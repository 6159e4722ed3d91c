"""The command line: commands from their records, exit codes; a command's rooms are imported only when it runs."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from sightline.commands.data import DATA_COMMANDS
from sightline.commands.fields import Command, CommandParameter
from sightline.commands.look import LIST_COMMANDS, LOOK_COMMANDS
from sightline.commands.prove import PROVE_COMMANDS
from sightline.commands.run import COMPRESS_COMMANDS, RUN_COMMANDS
from sightline.errors import UserError
from sightline.gc_pause import gc_paused
from sightline.verbs.terminal import guard_streams, stdout_failure


class _RunByDefault(TyperGroup):
    """Command group in which `compress RUN` means `compress run RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_named = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if is_named else ["run", *args])


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train perception models you can trust. One YAML file describes a run; 'sightline VERB --help' lists options.",
)
_GROUPS = {
    "data": typer.Typer(no_args_is_help=True, help="Prepare data sets and describe their contents."),
    "compress": typer.Typer(
        cls=_RunByDefault,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Make a trained run small: 'sightline compress RUN --ratio 0.1 --out DIR' searches the bits of each "
        "layer, fine-tunes, and packs. The other commands are its steps.",
    ),
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
    pass


# --- commands from their records -------------------------------------------------------------------------------------


def _add_command(record: type[Command]) -> None:
    """Add a command to its group, with the options and arguments of its record."""
    group, _, name = record.name.rpartition(" ")
    module, function = record.run.split(".")

    def call(**values: Any) -> int:
        for variable, value in record.environment.items():
            os.environ.setdefault(variable, value)
        with gc_paused():
            verb = importlib.import_module(f"sightline.verbs.{module}")
        code: int = getattr(verb, function)(record.from_words(values))
        return code

    hints = get_type_hints(record)
    call.__doc__ = record.__doc__
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_make_parameter(name, hints[name], parameter) for name, parameter in record.parameters()]
    )
    (_GROUPS[group] if group else app).command(name)(call)


def _make_parameter(name: str, hint: Any, parameter: CommandParameter) -> inspect.Parameter:
    """Make the parameter that Typer reads; a tuple becomes a list, of text if it may hold KEY=VALUE words."""
    default = inspect.Parameter.empty if parameter.default is MISSING else parameter.default
    if getattr(hint, "__origin__", None) is tuple:
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
    """Make an option's callback that refuses a file that cannot be written, before any work is done."""

    def check(path: Path | None) -> Path | None:
        if path is not None:
            from sightline.runs.output_files import assert_writable

            assert_writable(path, option=flag)
        return path

    return check


for _record in (*RUN_COMMANDS, *PROVE_COMMANDS, *LOOK_COMMANDS, *LIST_COMMANDS, *DATA_COMMANDS, *COMPRESS_COMMANDS):
    _add_command(_record)
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)


@app.command()
def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]...", help="geometry, models, data, metrics, train, compress or all [all]"),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option("--case", metavar="PATTERN", help="run only cases whose name matches: knn_*, models/*step*"),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="rounds; each round times all implementations")
    ] = 5,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="threads of every implementation")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="use tiny sizes, to test that the cases run")] = False,
    grow: Annotated[
        str | None,
        typer.Option(
            "--grow",
            metavar="points|neighbours|batch|all",
            help="measure how time and memory grow, for geometry and models",
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", metavar="FILE", callback=_check_writable("--svg"), help="draw the measurements of --grow"
        ),
    ] = None,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="let malloc keep freed memory, as a training run does")
    ] = False,
    lists: Annotated[bool, typer.Option("--list", help="list the cases without running them")] = False,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", callback=_check_writable("--json"), help="write the result as JSON"),
    ] = None,
    traceback: Annotated[bool, typer.Option("--traceback", help="print the traceback of an error")] = False,
) -> int:
    """Time implementations against a baseline.

    Prints ratios of CPU time, and peak memory, of implementations of the same computation. Their results are compared
    first: exit code 1 if one differs from its baseline. Ratios are medians over the rounds, in which all
    implementations take turns. An interrupted run keeps its finished rows.
    """
    with gc_paused():
        from sightline.verbs import bench as verb

    return verb.bench(
        verb.BenchOptions(tuple(suites or ()), case, repeats, threads, quick, json, lists, grow, svg, keep_memory),
    )


def main() -> None:
    """Run the command line; errors of the user exit with one line and code 2, failed work with code 1."""
    guard_streams()
    # Read when torch is first imported: waiting threads sleep instead of spinning, which is 2 to 4 times faster on a
    # busy machine and makes no difference on an idle one (docs/decisions.md).
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
        from sightline.engine.failure import exit_process
        from sightline.engine.launcher import launched_world_size

        with contextlib.suppress(UserError):  # invalid variables were reported already
            if (launched_world_size() or 1) > 1:
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
