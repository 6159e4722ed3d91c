"""Records of the commands that show, list, draw and study; their functions are in `sightline.verbs`."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Literal

from sightline.commands.fields import (
    CONFIG,
    OVERRIDES,
    PROCESSES,
    DeviceCommand,
    DocumentCommand,
    PluginCommand,
    argument,
    option,
    switch,
)


class DescribeOptions(
    DeviceCommand,
    name="describe",
    run="describe.describe",
    examples=(
        "describe CONFIG",
        "describe CONFIG --svg model.svg",
    ),
):
    """Show the model of a config.

    Prints modules in order of execution, shapes, parameters and cost. One forward pass of a few samples is traced, and
    nothing is trained.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    svg: Path | None = option("--svg", "FILE", "write a drawing of the model", is_written=True)
    depth: int | None = option("--depth", "N", "levels of nested modules to show [all; in the drawing: few]", min=1)


class ProfileOptions(
    DeviceCommand,
    name="profile",
    run="describe.profile",
    environment={"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"},  # the profiler prints what it does
    examples=(
        "profile CONFIG train.precision=bf16 --trace trace.json.gz",
        "profile CONFIG --arm few='data.num_points=256' --arm many='data.num_points=1024'",
        "profile CONFIG --find-rate --svg rates.svg",
    ),
):
    """Profile time and memory of training steps.

    Reports data loading, transfer, forward, backward and optimiser, and the slowest modules and operators. Runs real
    training steps on the run's data, from new weights; no run directory is written or changed. With --processes, the
    tables are those of the first process, and each states how long it waited for the gradients of the others.

    --arm asks what other settings would cost, such as another canvas or number of points: is it the size, or the code?
    The steps of each arm are timed beside those of the config, part by part, in place of modules and operators.

    --find-rate finds a learning rate instead: it trains steps at rates that grow from 1e-7 to 10 until the loss
    diverges, and suggests one.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    steps: int | None = option(
        "--steps", "N", "number of measured steps, after two warm-up steps [5; with --find-rate 100]", min=1
    )
    trace: Path | None = option("--trace", "FILE", "write the trace for a viewer: trace.json.gz", is_written=True)
    arms: tuple[str, ...] = option(
        "--arm", "NAME='KEY=A KEY=B'", "time the steps with these overrides, too; repeatable", default=()
    )
    find_rate: bool = switch("--find-rate", "find a learning rate by a range test")
    svg: Path | None = option("--svg", "FILE", "with --find-rate: draw the loss by rate", is_written=True)
    processes: int | None = PROCESSES


class ViewOptions(
    DeviceCommand,
    name="view",
    run="view.view",
    examples=(
        "view CONFIG",
        "view runs/a --num 8 --out pictures",
    ),
):
    """Show samples and predictions.

    Shows raw samples, the result of each transform, and a run's predictions: clouds, depth frames with their cubes,
    voxels and heat maps, and images with detections of score=0.3 or more. Writes a PNG of each sample,
    and view.html, a self-contained page in which clouds can be rotated.
    """

    paths: tuple[Path, ...] = argument(
        "CONFIG|RUN|FILE... [KEY=VALUE]...",
        "a config, a run, or files or folders of your own clouds, photos or depth images; of a config, then overrides",
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    out: Path | None = option("--out", "DIR", "folder for pictures and the page [RUN/views; else views/<name>]")
    split: Literal["train", "validation", "test"] | None = option(
        "--split", None, "split to show [train; for a run: test]"
    )
    samples: str | None = option(
        "--samples", "0,5,NAME,...|worst", "samples by number or name, or those with the most errors of each kind"
    )
    num: int | None = option("--num", "N", "number of samples, evenly spaced [4]", min=1)
    epoch: int | None = option("--epoch", "E", "show training samples of this epoch [0]", min=0)
    checkpoint: str | None = option("--checkpoint", "last|best|PATH", "weights of the run to load [last]")
    columns: str | None = option("--columns", "x,y,z,...", "columns of files without names, _ for none")
    up: Literal["x", "y", "z"] | None = option("--up", None, "the axis that is up in files [z]")
    hide: str | None = option("--hide", "CLASS,...", "classes to leave out of pictures: ceiling,wall")
    score: float | None = None


class ReportOptions(
    DeviceCommand,
    name="report",
    run="report.report",
    examples=(
        "report runs/a",
        "report runs/a runs/b --out compared.html",
        "report runs/a --png sheet.png",
    ),
):
    """Write a page about a run, or one that compares runs.

    The page is one file that needs no network: figures, curves, classes, confusions, findings of the checks, pictures,
    differences between the configs, and how to repeat each run. Only the folders of the runs are read, no data. With
    --samples, the page also turns samples of the run at every stage, with its predictions; this needs its data.

    --png also draws the sheet of a run, for a chat or a slide: settings, curves, the main figures of all and of each
    class, and predictions of its last evaluation, or of --samples.
    """

    runs: tuple[Path, ...] = argument("RUN...", "run directories")
    out: Path | None = option(
        "--out", "FILE", "the page [RUN/report.html; of several runs: report.html]", is_written=True
    )
    samples: str | None = option(
        "--samples", "0,5,NAME,...|worst", "samples by number or name, or those with the most errors of each kind"
    )
    png: Path | None = option("--png", "FILE", "also draw the run in short, as one picture", is_written=True)


class RunsListOptions(
    DocumentCommand,
    name="runs list",
    run="runs.show_list",
    examples=("runs list --sort figure", "runs list studies --filter task=segment"),
):
    """List the runs below a folder.

    Prints task, data, steps, the figure that selected the best checkpoint, start, size on the disk, and state. A run
    that is not finished shows its last evaluation. Links below the folder are not followed. 'sightline runs' is the
    same.
    """

    folder: Path = argument("[DIR]", "folder of the runs", default=Path("runs"))
    sort: str = option("--sort", "KEY", "name, task, data, steps, figure, when, size or state", default="when")
    filters: tuple[str, ...] = option(
        "--filter", "TEXT|KEY=VALUE", "only runs with this text in a column, or task=segment; repeatable", default=()
    )


class RunsDiffOptions(
    DocumentCommand,
    name="runs diff",
    run="runs.show_difference",
    examples=("runs diff runs/a runs/b",),
):
    """Compare the figures and the configs of two runs.

    Prints the figures, and the keys of the configs that differ; 'sightline report A B' is its page. A and B are paths,
    or paths below --below.
    """

    first: Path = argument("A", "a run directory")
    second: Path = argument("B", "another one")
    folder: Path = option("--below", "DIR", "folder in which runs are looked up", default=Path("runs"))


class RunsPushOptions(PluginCommand, name="runs push", run="runs.push", examples=("runs push runs/a hf://me/my-run",)):
    """Upload a finished run to a hub.

    It is packed, and gets a card of its figures.
    """

    run_path: Path = argument("RUN", "a run directory")
    address: str = argument("hf://OWNER/REPO", "the repository; a new one is private")
    public: bool = switch("--public", "let everybody read it")


class RunsPullOptions(
    DocumentCommand, name="runs pull", run="runs.pull", examples=("runs pull hf://me/my-run --out runs/b",)
):
    """Fetch a run from a hub, as 'sightline runs push' uploaded it."""

    address: str = argument("hf://OWNER/REPO", "a run that was pushed")
    out: Path = option("--out", "DIR", "folder of the run, new or empty", default=MISSING)


RUNS_COMMANDS = (RunsListOptions, RunsDiffOptions, RunsPushOptions, RunsPullOptions)


class ShowOptions(PluginCommand, name="show", run="show.show", examples=("show CONFIG train.epochs=10",)):
    """Print the resolved config: every value, and the file and line or the option that set it."""

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES


class ListOptions(
    PluginCommand,
    name="list",
    run="show.list_components",
    examples=(
        "list models",
        "list dgcnn",
    ),
):
    """List components, configs, layouts of weights.

    Without a word, prints an index of the kinds. With a kind, its entries: components with arguments, defaults and
    sources, the configs of the package, or the layouts of published weights. With the name of a component, it alone,
    with its example.
    """

    subject: str | None = argument(
        "[KIND|NAME]", "models data losses metrics … configs layouts, or a component: dgcnn", default=None
    )


class CopyOptions(
    DocumentCommand, name="copy", run="show.copy_config", examples=("copy configs/classify/modelnet40_dgcnn.yaml mine",)
):
    """Copy a config of the package.

    The configs that it extends and the plugins that it uses are copied, too.
    """

    config: str = argument("CONFIG", "a name that 'list configs' prints, or configs or examples")
    to: Path = argument("[TO]", "target folder, in which it gets the same path", default=Path())


class InitOptions(
    DocumentCommand,
    name="init",
    run="show.init_project",
    examples=(
        "init my_project",
        "init my_project --task segment",
    ),
):
    """Make a project with your own data set, network and loss.

    The folder NAME gets a plugin with these parts, a config that trains them, their tests, and a page of commands. All
    of it works as it is; put your parts in the place of those.
    """

    project: str = argument("NAME", "name of the folder and of its files: small letters, digits and _")
    task: str = option("--task", "TASK", "classify, segment, detect, pose, centre or contrast", default="classify")
    to: Path = option("--to", "DIR", "folder in which the project is made", default=Path())


# --- studies ---------------------------------------------------------------------------------------------------------


class StudyOptions(
    DeviceCommand,
    name="study",
    run="series.study",
    examples=(
        "study CONFIG --vary optimizer.lr=0.01,0.1 --seeds 3 --out studies/rate",
        "study a.yaml b.yaml --out studies/two",
    ),
):
    """Train and compare a grid of runs.

    Reports mean and spread over seeds, paired differences with their interval, and a plot. Runs of one seed are paired:
    they share initial weights and the order of samples, unless a varied setting changes these. The metric is that of
    the last weights on the test split. Repeat the command to resume it; finished runs are not repeated. Writes
    study.json and study.svg into --out after every run. To search many values for the best, take 'sightline sweep'.
    """

    configs: tuple[Path, ...] = argument(
        "CONFIG... [KEY=VALUE]...",
        "YAML configs or run directories, several to compare them, and overrides for all of them",
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    out: Path = option("--out", "DIR", "folder for runs, table and plot", default=MISSING)
    vary: tuple[str, ...] = option(
        "--vary", "KEY=A,B", "run with each of these values; repeatable, all combinations", default=()
    )
    arms: tuple[str, ...] = option(
        "--arm", "NAME='KEY=A KEY=B'", "run as NAME with all these overrides; repeatable, NAME= with none", default=()
    )
    seeds: int = option("--seeds", "N", "runs per setting, with seeds 0 to N - 1", default=3, min=1)
    metric: str | None = option("--metric", "NAME", "metric to compare [evaluate.metric]")
    processes: int | None = PROCESSES


class SweepOptions(
    DeviceCommand,
    name="sweep",
    run="series.sweep",
    examples=("sweep CONFIG --space optimizer.lr=0.001,0.01,0.1 --out sweeps/rate",),
):
    """Search the best values of config keys.

    Trains trials until their number is reached, each in --out/trials, and chooses by the best validation figure
    (evaluate.metric); trials whose validation falls behind are pruned. The space is a YAML file, a line for each key:
    'optimizer.lr: {low: 1e-4, high: 1e-1, log: true}' or 'train.batch_size: [8, 16, 32]'. Every key is tried on the
    config first. Repeat the command to resume it; start it several times, on any machines that share the storage, for
    more workers: trials of workers that ended are taken up again. Writes sweep.json into --out.

    A sweep searches many values once each, and its best figure is optimistic. To learn if one setting is better than
    another, train both with paired seeds: 'sightline study'.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    space: tuple[str, ...] = option(
        "--space", "FILE|KEY=A,B", "YAML file of the search space, or a key and its values; repeatable", default=MISSING
    )
    out: Path = option("--out", "DIR", "folder for trials, table and storage", default=MISSING)
    sampler: Literal["tpe", "random"] = option("--sampler", None, "choice of values", default="tpe")
    trials: int = option("--trials", "N", "trials of all workers together", default=20, min=1)
    storage: str | None = option("--storage", "FILE|URL", "shared journal file or database [DIR/sweep.journal]")
    seed: int = option("--seed", "N", "seed of the sampler", default=0, min=0)
    no_prune: bool = switch("--no-prune", "train every trial to its end")
