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


class DescribeOptions(DeviceCommand, name="describe", run="describe.describe"):
    """Show the model of a config.

    Prints modules in order of execution, shapes, parameters, cost and peak memory. One forward pass of a few samples is
    traced, and two training steps on copies are measured: nothing is trained. If the data is missing, samples are made
    up from the fields of its data set, and the first line states this.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    svg: Path | None = option("--svg", "FILE", "write a drawing of the model", is_written=True)
    batch_size: int | None = option("--batch-size", "N", "batch size of the memory estimate [train.batch_size]", min=1)
    depth: int | None = option("--depth", "N", "levels of nested modules to show [all; in the drawing: few]", min=1)


class ProfileOptions(
    DeviceCommand,
    name="profile",
    run="describe.profile",
    environment={"TORCH_CPP_LOG_LEVEL": "ERROR"},  # torch warns of blocks from before the profiler started
):
    """Profile time and memory of training steps.

    Reports data loading, transfer, forward, backward and optimiser, and every module. Runs real training steps on the
    run's data, from new weights; no run directory is written or changed. With --try, the same steps are measured under
    other settings. With --processes, the tables are those of the first process, and each states how long it waited for
    the gradients of the others.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    steps: int = option("--steps", "N", "number of measured steps, after two warm-up steps", default=5, min=1)
    tries: tuple[str, ...] = option(
        "--try",
        "SETTING,...",
        "measure the same steps under: bf16 fp16 float32 channels_last compile workers=N prefetch=N threads=N"
        " micro_batches=N KEY=VALUE; several at once: bf16+threads=2; repeatable",
        default=(),
    )
    rounds: int = option("--rounds", "N", "rounds of --try; each round runs all settings in turn", default=5, min=1)
    top: int = option("--top", "N", "number of modules to print, slowest first", default=20, min=1)
    out: Path | None = option("--out", "DIR", "folder for profile.json, and trace.json.gz for a viewer")
    processes: int | None = PROCESSES


class ViewOptions(DeviceCommand, name="view", run="view.view"):
    """Show samples, predictions and curves of runs.

    Shows raw samples, the result of each transform, and a run's predictions: clouds, depth frames with their cubes,
    voxels and heat maps, and images with detections of score=0.3 or more. Writes a PNG of each sample, coloured PLY
    files, VTK files of volumes, and view.html, a self-contained page in which clouds can be rotated. Of a run,
    curves.svg draws losses and metrics over the steps, a loss with its chance level if the run records it; of several
    runs, only this is drawn, in one picture.
    """

    paths: tuple[Path, ...] = argument(
        "CONFIG|RUN...|FILE... [KEY=VALUE]...",
        "a config, a run, several runs, or files or folders of your own clouds, photos or depth images",
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    out: Path = option("--out", "DIR", "folder for pictures, clouds and the page", default=MISSING)
    split: str | None = option("--split", "train|validation|test", "split to show [train; for a run: test]")
    samples: str | None = option("--samples", "0,5,NAME,...", "samples to show, by number or name")
    num: int | None = option("--num", "N", "number of samples, evenly spaced [4]; 0: only the curves of a run", min=0)
    epoch: int | None = option(
        "--epoch", "E", "show training samples of this epoch, and check if raw items change up to it [0]", min=0
    )
    checkpoint: str | None = option("--checkpoint", "last|best|PATH", "weights of the run to load [last]")
    columns: str | None = option("--columns", "x,y,z,...", "columns of files without names, _ for none")
    up: str | None = option("--up", "x|y|z", "the axis that is up in files [z]")
    hide: str | None = option("--hide", "CLASS,...", "classes to leave out of pictures: ceiling,wall")
    score: float | None = None
    max_points: int | None = option("--max-points", "N", "maximum of points per cloud in the page [200000]", min=1)


class ReportOptions(DeviceCommand, name="report", run="report.report"):
    """Write a page about a run, or one that compares runs.

    The page is one file that needs no network: figures, curves, classes, confusions, findings of the checks, pictures,
    differences between the configs, and how to repeat each run. Only the folders of the runs are read, no data. With
    --samples, the page also turns samples of the run at every stage, with its predictions; this needs its data.
    """

    runs: tuple[Path, ...] = argument("RUN...", "run directories")
    out: Path | None = option(
        "--out", "FILE", "the page [RUN/report.html; of several runs: report.html]", is_written=True
    )
    samples: str | None = option("--samples", "hardest|0,5,NAME,...", "samples to show, by number or name")


class RunsOptions(DocumentCommand, name="runs", run="runs.runs"):
    """List runs, compare two, slim or delete them.

    Prints the runs below a folder: task, data, steps, the figure that selected the best checkpoint, start, size on the
    disk, and state. A run that is not finished shows its last evaluation. Links below the folder are not followed. RUN
    is a path, or a path below DIR.

    --diff prints the figures and the keys of the configs that differ; 'sightline report A B' is its page. --slim
    removes the optimiser's state from a run's checkpoints: it is evaluated, predicts and starts other runs as before,
    but its training cannot go on. --delete deletes run directories, and nothing that links in them lead to.
    """

    folder: Path = argument("[DIR]", "folder of the runs", default=Path("runs"))
    sort: str = option("--sort", "KEY", "name, task, data, steps, figure, when, size or state", default="when")
    filters: tuple[str, ...] = option(
        "--filter", "TEXT|KEY=VALUE", "only runs with this text in a column, or task=segment; repeatable", default=()
    )
    diff: tuple[Path, Path] | None = option("--diff", "A B", "print the differences of two runs")
    slim: tuple[Path, ...] = option("--slim", "RUN", "remove the optimiser's state of a run; repeatable", default=())
    delete: tuple[Path, ...] = option("--delete", "RUN", "delete a run; repeatable", default=())
    yes: bool = switch("--yes", "delete, or slim a run that is not finished, without a question")


class ShowOptions(PluginCommand, name="show", run="show.show"):
    """Print the resolved config, each value with its origin."""

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES


class ListOptions(PluginCommand, name="list", run="show.list_components"):
    """List components, configs, layouts of weights.

    Without a word, prints an index of the kinds. With a kind, its entries: components with arguments, defaults and
    sources, the configs of the package, or the layouts of published weights. With the name of a component, it alone.
    """

    subject: str | None = argument(
        "[KIND|NAME]", "models data losses metrics … configs layouts, or a component: dgcnn", default=None
    )


class CopyOptions(DocumentCommand, name="copy", run="show.copy_config"):
    """Copy a config of the package.

    The configs that it extends and the plugins that it uses are copied, too.
    """

    config: str = argument("CONFIG", "a path that 'list configs' prints, or configs or examples")
    to: Path = argument("[TO]", "target folder, in which it gets the same path", default=Path())


class InitOptions(DocumentCommand, name="init", run="show.init_project"):
    """Make a project with your own data set, network and loss.

    The folder NAME gets a plugin with these parts, a config that trains them, their tests, and a page of commands. All
    of it works as it is; put your parts in the place of those.
    """

    project: str = argument("NAME", "name of the folder and of its files: small letters, digits and _")
    task: str = option("--task", "TASK", "classify, segment, detect, pose, centre or contrast", default="classify")
    to: Path = option("--to", "DIR", "folder in which the project is made", default=Path())


# --- studies ---------------------------------------------------------------------------------------------------------


class StudyOptions(DeviceCommand, name="study", run="study.study", run_if={"preset": "study.run_preset"}):
    """Train and compare a grid of runs.

    Reports mean and spread over seeds, paired differences with their interval, and a plot. Runs of one seed are paired:
    they share initial weights and the order of samples, unless a varied setting changes these. The metric is that of
    the last weights on the test split. Repeat the command to resume it; finished runs are not repeated. Writes
    study.json and study.svg into --out after every run. To search many values for the best, take 'sightline sweep'.

    --preset labels compares scratch with pre-trained at label fractions. The config fine-tunes: its init defines what
    is loaded from the pre-trained run, from=RUN. A run from scratch is the same without init, frozen modules and layer
    decay. All labels of a fraction are used for training and nothing is selected: the last weights are evaluated once.
    fractions=0.01,0.05,0.1,1 are those of the labels; seeds=3 and epochs=N are one number, or one per fraction.

    --preset probes probes every RUN by an SVM and few-shot, in one table with published results: data=CONFIG is the
    data of the probes, finetune=CONFIG a part segmentation to fine-tune from each run and from scratch; also
    checkpoint=last random=1 cache=DIR, and arguments of the methods (C=0.1, folds=5).
    """

    configs: tuple[Path, ...] = argument(
        "CONFIG... [KEY=VALUE]...",
        "YAML configs or run directories, several to compare them, and overrides for all of them",
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    preset: Literal["labels", "probes"] | None = option("--preset", None, "a ready-made study, see above")
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


class SweepOptions(DeviceCommand, name="sweep", run="sweep.sweep"):
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
    sampler: Literal["tpe", "random", "grid"] = option("--sampler", None, "choice of values", default="tpe")
    trials: int | None = option("--trials", "N", "trials of all workers together [20; the whole grid]", min=1)
    storage: str | None = option("--storage", "FILE|URL", "shared journal file or database [DIR/sweep.journal]")
    seed: int = option("--seed", "N", "seed of the sampler", default=0, min=0)
    no_prune: bool = switch("--no-prune", "train every trial to its end")


LOOK_COMMANDS = (
    DescribeOptions,
    ProfileOptions,
    ViewOptions,
    ReportOptions,
    RunsOptions,
    ShowOptions,
    ListOptions,
    CopyOptions,
    InitOptions,
)
STUDY_COMMANDS = (StudyOptions, SweepOptions)
