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
        str | None, typer.Option("--resume", metavar="auto|PATH", help="go on where a run stopped")
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
            help="a run directory, or the runs of all folds of a set; then how to evaluate: evaluate.votes=10",
        ),
    ] = None,
    checkpoint: Checkpoint = "last",
    data: Annotated[Path | None, typer.Option("--data", metavar="CONFIG", help="another config's data")] = None,
    save_predictions: Annotated[
        bool, typer.Option("--save-predictions", help="keep the labels or boxes that were scored")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="where --save-predictions and --errors write [RUN/predictions/<split>, RUN/errors/<split>]",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="PATH", help="score these files instead of a run, on the data of --data"),
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="of boxes: the kinds of errors, what each costs, and the worst images")
    ] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="also average the predictions of all checkpoints that the run keeps")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="published", help="papers' figures on this data set, and what differs"),
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Repeat the final metrics of a run exactly, evaluate it on other data, or pool the runs of all folds of a set.

    With --data CONFIG --predictions PATH and no run, score anyone's labels or boxes by the config's data and metrics.
    """
    with gc_paused():
        from sightline.verbs import evaluate as verb

    runs, overrides = split_words(words or [])
    plugins = tuple(plugin or ())
    kept = (save_predictions, out, ensemble, predictions, errors, against)
    return verb.evaluate(
        verb.EvaluateOptions(runs, overrides, checkpoint, data, processes, plugins, device, json, *kept)
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
    deep: Annotated[bool, typer.Option("--deep", help="hold every layer and loss against an oracle")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="warnings count as errors")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show notes in full as well")] = False,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Look for silent bugs before a run: in config, data, model and one step of training; of a run, in what it left."""
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
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="estimate the memory for [train.batch_size]")
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", metavar="N", min=1, help="calls inside calls, down to this many [all; drawing: few]"),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Show the model of a config: modules in the order in which they run, shapes, parameters, cost and peak memory.

    One forward pass of a few samples is traced, and two training steps on copies are measured: nothing is trained.
    Where the data is not there, samples are made up by the fields of its data set, and the first line states it.
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
            help="a config, a run, or clouds of your own in files or folders",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where pictures, clouds and the page go")],
    split: Annotated[
        str | None, typer.Option("--split", metavar="train|validation|test", help="which part [train; of a run: test]")
    ] = None,
    samples: Annotated[
        str | None, typer.Option("--samples", metavar="0,5,NAME,...", help="which samples, by number or name")
    ] = None,
    num: Annotated[int | None, typer.Option("--num", metavar="N", min=1, help="how many, spread evenly [4]")] = None,
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch",
            metavar="E",
            min=0,
            help="training samples of this epoch, and whether raw items change until then [0]",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="last|best|PATH", help="which weights of a run [last]")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="x,y,z,...", help="columns of files without names, _ for none")
    ] = None,
    up: Annotated[str | None, typer.Option("--up", metavar="x|y|z", help="the axis that is up in files [z]")] = None,
    hide: Annotated[
        str | None, typer.Option("--hide", metavar="CLASS,...", help="leave these out of pictures: ceiling,wall")
    ] = None,
    max_points: Annotated[
        int | None, typer.Option("--max-points", metavar="N", min=1, help="of a cloud in the page [200000]")
    ] = None,
    score: Annotated[
        float | None,
        typer.Option("--score", metavar="S", min=0.0, max=1.0, help="of detections that are drawn, the least [0.3]"),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Look at samples: as the data set gives them, after each transform, and with a run's predictions.

    Clouds, depth frames with their cubes, voxels and heat maps, and images. Writes a PNG of each sample, coloured PLY
    files, VTK files of volumes, and view.html, a page that turns the clouds and needs nothing else.
    """
    with gc_paused():
        from sightline.verbs import view as verb

    paths, overrides = split_words(words)
    asked = (split, samples, num, epoch, checkpoint, columns, up, hide, max_points, score)
    return verb.view(verb.ViewOptions(paths, overrides, out, *asked, tuple(plugin or ()), device, json))


@app.command()
def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]...", help="geometry, models, data, metrics, train, compress or all [all]"),
    ] = None,
    case: Annotated[
        str | None, typer.Option("--case", metavar="PATTERN", help="only cases of this name: knn_*, models/*step*")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="rounds, all forms in each")] = 5,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="threads of every form")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes: that it runs, not how fast")] = False,
    grow: Annotated[
        str | None,
        typer.Option("--grow", metavar="points|neighbours|batch|all", help="how time and memory grow, geometry models"),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", callback=check_writable("--svg"), help="draw what --grow measures"),
    ] = None,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="let malloc keep freed memory, as a training run does")
    ] = False,
    lists: Annotated[bool, typer.Option("--list", help="list the cases, and run none")] = False,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Time forms of one computation in turn, after seeing that they give the same numbers; ratios and peak memory.

    Ratios are of CPU time, medians of the rounds. Exit code 1 where a form gave other numbers than its baseline. An
    interrupted run keeps the rows that it has.
    """
    with gc_paused():
        from sightline.verbs import bench as verb

    return verb.bench(
        verb.BenchOptions(tuple(suites or ()), case, repeats, threads, quick, json, lists, grow, svg, keep_memory),
    )


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories")],
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="where to draw [RUN/curves.svg]")] = None,
    traceback: Traceback = False,
) -> int:
    """Draw the losses, with the level of chance where a run records it, and the metrics of runs over their steps."""
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
    """Print the resolved config, with where every value came from."""
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
    """List components with their arguments, defaults and sources, or the configs that come with the package."""
    with gc_paused():
        from sightline.verbs import show as verb

    return verb.list_components(kind, plugins=tuple(plugin or ()), json=json)


@app.command("copy")
def copy_config(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="as 'list configs' prints it, or configs or examples")],
    to: Annotated[Path, typer.Argument(metavar="[TO]", help="a folder, in which it has the same path [.]")] = Path(),
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Copy a config that comes with the package, with the configs that it builds on and the plugins that it names."""
    from sightline.verbs.configs import copy

    return copy(name, to, json=json)


def main() -> None:
    """Run the command line; users' mistakes end in one line and exit code 2, failed work in 1."""
    guard_streams()
    # Read when torch is first imported: threads that wait sleep instead of spinning, which on a busy machine is a
    # matter of a factor of two to four and on a quiet one of nothing (docs/decisions.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:  # torch reads the level when it is imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # we report a process that ends, in one line
    launcher = os.environ.get("SIGHTLINE_LAUNCHED")
    if launcher and "RANK" in os.environ:
        from sightline.engine.launcher import exit_with_parent

        exit_with_parent(int(launcher), folder=os.environ.get("SIGHTLINE_LAUNCH_FOLDER"))
    code = _run()
    if code == 0 and (reason := stdout_failure()) is not None:
        from sightline.verbs.error_messages import fail

        code = fail(f"standard output: cannot be written: {reason}; the results were not printed in full", 1, None)
    if code != 0:
        from sightline.engine.failure import exit_process
        from sightline.engine.launcher import launched_world_size

        with contextlib.suppress(UserError):  # variables that mean nothing were reported
            if (launched_world_size() or 1) > 1:
                exit_process(code)
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        from sightline.verbs.error_messages import fail

        return fail("interrupted", 130, None)
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a message and an exit code
        from sightline.verbs.error_messages import format_error

        return format_error(error)
    return int(code or 0)
