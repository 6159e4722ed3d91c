"""The command line: verbs, options and exit codes; each verb imports its rooms only when it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sightline.errors import UserError
from sightline.gc_pause import gc_paused
from sightline.verbs.compare_command import compare
from sightline.verbs.compress_commands import compress_app
from sightline.verbs.data_commands import data_app
from sightline.verbs.fit_one_command import fit_one
from sightline.verbs.options import (
    Checkpoint,
    Config,
    Device,
    Json,
    Overrides,
    Plugins,
    Processes,
    Traceback,
    check_writable,
    split_words,
)
from sightline.verbs.predict_command import predict
from sightline.verbs.probe_command import probe
from sightline.verbs.profile_command import profile
from sightline.verbs.streams import guard_streams, stdout_failure
from sightline.verbs.studies.label_efficiency_command import label_efficiency
from sightline.verbs.studies.study_command import study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train perception models you can trust. One YAML file describes a run; 'sightline VERB --help' lists options.",
)
app.add_typer(data_app, name="data")
app.add_typer(compress_app, name="compress")


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


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="run directory [runs/<name>/<number>]")
    ] = None,
    processes: Processes = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="auto|PATH", help="resume a run from its last checkpoint or this one"),
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="skip the checks before training (recorded)")] = False,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Train what a config describes, then evaluate it."""
    with gc_paused():
        from sightline.verbs import train as verb

    request = verb.TrainRequest(
        config, tuple(overrides or ()), out, processes, resume, tuple(plugin or ()), no_check, device, json
    )
    return verb.train(request)


@app.command()
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN... [KEY=VALUE]...",
            help="a run directory, or the runs of all folds of a data set; then overrides: evaluate.votes=10",
        ),
    ] = None,
    checkpoint: Checkpoint = "last",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="CONFIG", help="evaluate on the data of this config")
    ] = None,
    save_predictions: Annotated[
        bool, typer.Option("--save-predictions", help="save the predicted labels or boxes")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="folder for --save-predictions and --errors [RUN/predictions/<split>, RUN/errors/<split>]",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", metavar="PATH", help="score these prediction files instead of a run, on the data of --data"
        ),
    ] = None,
    errors: Annotated[
        bool,
        typer.Option("--errors", help="for boxes: kinds of errors, the AP50 that each costs, and the worst images"),
    ] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="also average the predictions of all checkpoints of the run")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="published",
            help="compare with published results on this data set, and list the differences",
        ),
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Evaluate a trained run.

    Reproduces its final metrics exactly, evaluates it on other data, or pools the runs of all folds of a data set. With
    --data CONFIG --predictions PATH and no run, scores any labels or boxes on the data and metrics of the config.
    """
    with gc_paused():
        from sightline.verbs import evaluate as verb

    runs, overrides = split_words(words or [])
    plugins = tuple(plugin or ())
    more_options = (save_predictions, out, ensemble, predictions, errors, against)
    return verb.evaluate(
        verb.EvaluateOptions(runs, overrides, checkpoint, data, processes, plugins, device, json, *more_options)
    )


app.command()(predict)
app.command()(compare)
app.command()(probe)
app.command("label-efficiency")(label_efficiency)
app.command()(study)
app.command()(profile)
app.command("fit-one")(fit_one)


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="compare every layer and loss with a reference implementation")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="treat warnings as errors")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="print notes in full as well")] = False,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Look for silent bugs in a config or run.

    Checks config, data, model and one training step before a run, and the files of a finished run.
    """
    with gc_paused():
        from sightline.verbs import check as verb

    return verb.check(
        config,
        tuple(overrides or ()),
        plugins=tuple(plugin or ()),
        strict=strict,
        deep=deep,
        device=device,
        json=json,
        verbose=verbose,
    )


@app.command()
def describe(
    config: Config,
    overrides: Overrides = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", callback=check_writable("--svg"), help="write a drawing of the model"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", min=1, help="batch size of the memory estimate [train.batch_size]"),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", metavar="N", min=1, help="levels of nested modules to show [all; in the drawing: few]"),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Show the model of a config.

    Prints modules in order of execution, shapes, parameters, cost and peak memory. One forward pass of a few samples is
    traced, and two training steps on copies are measured: nothing is trained. If the data is missing, samples are made
    up from the fields of its data set, and the first line states this.
    """
    with gc_paused():
        from sightline.verbs import describe as verb

    return verb.describe(
        config,
        tuple(overrides or ()),
        plugins=tuple(plugin or ()),
        batch_size=batch_size,
        depth=depth,
        device=device,
        svg=svg,
        json=json,
    )


@app.command()
def view(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|RUN|FILE... [KEY=VALUE]...",
            help="a config, a run, or files or folders of your own clouds",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for pictures, clouds and the page")],
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="train|validation|test", help="split to show [train; for a run: test]"),
    ] = None,
    samples: Annotated[
        str | None, typer.Option("--samples", metavar="0,5,NAME,...", help="samples to show, by number or name")
    ] = None,
    num: Annotated[
        int | None, typer.Option("--num", metavar="N", min=1, help="number of samples, evenly spaced [4]")
    ] = None,
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch",
            metavar="E",
            min=0,
            help="show training samples of this epoch, and check if raw items change up to it [0]",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="last|best|PATH", help="weights of the run to load [last]")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="x,y,z,...", help="columns of files without names, _ for none")
    ] = None,
    up: Annotated[str | None, typer.Option("--up", metavar="x|y|z", help="the axis that is up in files [z]")] = None,
    hide: Annotated[
        str | None, typer.Option("--hide", metavar="CLASS,...", help="classes to leave out of pictures: ceiling,wall")
    ] = None,
    max_points: Annotated[
        int | None,
        typer.Option("--max-points", metavar="N", min=1, help="maximum of points per cloud in the page [200000]"),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            "--score", metavar="S", min=0.0, max=1.0, help="minimum score of the detections that are drawn [0.3]"
        ),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Show samples after each transform.

    Shows raw samples, the result of each transform, and a run's predictions: clouds, depth frames with their cubes,
    voxels and heat maps, and images. Writes a PNG of each sample, coloured PLY files, VTK files of volumes, and
    view.html, a self-contained page in which clouds can be rotated.
    """
    with gc_paused():
        from sightline.verbs import view as verb

    paths, overrides = split_words(words)
    more_options = (split, samples, num, epoch, checkpoint, columns, up, hide, max_points, score)
    return verb.view(verb.ViewOptions(paths, overrides, out, *more_options, tuple(plugin or ()), device, json))


@app.command()
def bench(
    context: typer.Context,
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
            help="measure how time and memory grow, for geometry and models; python -m benchmarks alone",
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", callback=check_writable("--svg"), help="draw the measurements of --grow"),
    ] = None,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="let malloc keep freed memory, as a training run does")
    ] = False,
    lists: Annotated[bool, typer.Option("--list", help="list the cases without running them")] = False,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Time implementations against a baseline.

    Prints ratios of CPU time, and peak memory, of implementations of the same computation. Their results are compared
    first: exit code 1 if one differs from its baseline. Ratios are medians over the rounds, in which all
    implementations take turns. An interrupted run keeps its finished rows.

    The package has the cases whose baseline it can run by itself; python -m benchmarks, in a checkout, has all.
    """
    with gc_paused():
        from sightline.verbs import bench as verb

    return verb.bench(
        verb.BenchOptions(tuple(suites or ()), case, repeats, threads, quick, json, lists, grow, svg, keep_memory),
        home=context.obj or "sightline.bench",
    )


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories")],
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="output file [RUN/curves.svg]")] = None,
    traceback: Traceback = False,
) -> int:
    """Draw losses and metrics of runs as SVG.

    A loss is drawn with its chance level, if the run records it.
    """
    from sightline.verbs.output import print_note
    from sightline.view.curves import draw_runs

    print_note(f"written: {draw_runs(runs, svg=svg)}; open it in a browser")
    return 0


@app.command()
def show(
    config: Config,
    overrides: Overrides = None,
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Print the resolved config with the origin of every value."""
    with gc_paused():
        from sightline.verbs import show as verb

    return verb.show(config, tuple(overrides or ()), plugins=tuple(plugin or ()), json=json)


@app.command("list")
def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="models data losses metrics backbones necks heads … or configs"),
    ] = None,
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """List components, or the configs of the package.

    Components are listed with their arguments, defaults and sources.
    """
    with gc_paused():
        from sightline.verbs import show as verb

    return verb.list_components(kind, plugins=tuple(plugin or ()), json=json)


@app.command("copy")
def copy_config(
    name: Annotated[
        str, typer.Argument(metavar="CONFIG", help="a path that 'list configs' prints, or configs or examples")
    ],
    to: Annotated[
        Path, typer.Argument(metavar="[TO]", help="target folder, in which it gets the same path [.]")
    ] = Path(),
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Copy a config of the package.

    The configs that it extends and the plugins that it uses are copied, too.
    """
    from sightline.verbs.configs import copy

    return copy(name, to, json=json)


def main(app: typer.Typer = app, *, home: str | None = None) -> None:
    """Run a command line; errors of the user exit with one line and code 2, failed work with code 1.

    `home` has the benchmark cases, by default the package.
    """
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
    code = _run(app, home)
    if code == 0 and (reason := stdout_failure()) is not None:
        from sightline.verbs.error_messages import fail

        code = fail(f"standard output: cannot be written: {reason}; the results were not printed in full", 1, None)
    if code != 0:
        from sightline.engine.failure import exit_process
        from sightline.engine.launcher import launched_world_size

        with contextlib.suppress(UserError):  # invalid variables were reported already
            if (launched_world_size() or 1) > 1:
                exit_process(code)
    sys.exit(code)


def _run(app: typer.Typer, home: str | None) -> int:
    try:
        code = app(standalone_mode=False, obj=home)
    except (typer.Abort, KeyboardInterrupt):
        from sightline.verbs.error_messages import fail

        return fail("interrupted", 130, None)
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a message and an exit code
        from sightline.verbs.error_messages import format_error

        return format_error(error)
    return int(code or 0)
