"""`sightline describe` and `profile`: a model's modules, shapes, cost and memory; time and memory of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.commands.look import DescribeOptions, ProfileOptions
from sightline.config import RunConfig
from sightline.contract.catalogue import load_members
from sightline.contract.errors import RunError, UserError
from sightline.engine.build import TrainingSetup, build, find_unused_format
from sightline.engine.device import set_backends
from sightline.engine.distributed import World, start_world
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.process_inputs import describe_command
from sightline.engine.run_loading import open_run
from sightline.runs.run_directory import assert_writable, write_document, write_file
from sightline.training.train_run import reread
from sightline.verbs.output import load_config, print_note, show_table
from sightline.workbench.describe.drawing import build_figure, draw, short_number, show_shape
from sightline.workbench.describe.memory import Memory, estimate_memory
from sightline.workbench.describe.profiling import (
    NUM_WARM,
    Setting,
    SettingTrial,
    mean_num_samples,
    measure_processes,
    name_setting,
    name_setting_in_errors,
    parse_settings,
    profile_document,
    profile_steps,
    run_steps,
    sum_rows,
    try_settings,
)
from sightline.workbench.describe.report import (
    description_document,
    learnt_losses,
    trace_run,
)
from sightline.workbench.describe.sources import DataDescription, build_subject
from sightline.workbench.describe.trace import Node, Trace

_NUM_BRIEF_STEPS, _NUM_BRIEF_ROUNDS = 2, 3
"""Measured steps and rounds of a setting that nobody asked for; a verdict needs three rounds."""
_COLUMNS = ("module", "class", "defined in", "inputs", "outputs", "parameters", "MAC/sample")
_DROPPABLE = ("inputs", "outputs", "class", "defined in")
_PACKAGES = (Path(torch.__file__).parents[1], Path(__file__).parents[2])
"""Package folders: files below them are shown by their relative path, files of plugins as given."""
_PARTS = {
    "parameters_bytes": "parameters",
    "buffers_bytes": "buffers",
    "optimizer_bytes": "optimiser's state",
    "average_bytes": "average of the weights",
    "teacher_bytes": "teacher",
    "batch_bytes": "batch",
    "saved_bytes": "saved for the backward pass",
    "working_bytes": "gradients and temporaries beyond",
    "peak_bytes": "peak",
}


def describe(options: DescribeOptions) -> int:
    """Trace one forward pass of a config's model, and estimate the peak memory of its training step."""
    batch_size_override = [] if options.batch_size is None else [f"train.batch_size={options.batch_size}"]
    config = load_config(options.config, [*options.overrides, *batch_size_override], options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        subject = build_subject(open_run(options.config, config=config, world=world))
        print_note(f"batch: {subject.batch}")
        traced = trace_run(subject.built)
        memory = estimate_memory(subject.built)
        makers = [] if subject.is_promised else load_members("descriptions")
        descriptions: list[DataDescription] = [made for make in makers if (made := make(subject.built)) is not None]
    document = description_document(subject, traced, memory, descriptions)
    _show_modules(traced, f"{config.model.name}: a forward pass of {traced.num_samples} samples", options.depth)
    for row in learnt_losses(subject.built):
        trainable = f", {row['trainable']:,} trainable" if row["trainable"] != row["parameters"] else ""
        location = _format_location(row["file"], row["line"])
        print_note(
            f"learns too: {row['path']}, {row['class']} ({location}), {row['parameters']:,} parameters{trainable}"
        )
    _show_memory(memory)
    for line in (line for description in descriptions for line in description.lines):
        print_note(line) if isinstance(line, str) else show_table(*line)
    if options.svg is not None:
        figure = build_figure(traced, depth=options.depth)
        cost = f"{short_number(traced.macs / traced.num_samples)} multiply-accumulates per sample"
        subtitle = f"{traced.parameters:,} parameters, {cost}"
        drawing = draw(figure, title=config.model.name, subtitle=subtitle, num_samples=traced.num_samples)
        write_file(options.svg, drawing)
        print_note(f"drawing: {options.svg}")
    write_document(options.json, document)
    return 0


def _show_modules(traced: Trace, title: str, depth: int | None) -> None:
    """Print the module calls, indented by nesting; calls deeper than `depth` are added to their parent."""
    rows: list[list[Any]] = []
    parents: list[str] = []
    sums: list[list[int]] = []
    for node in traced.calls:
        if depth is not None and node.depth > depth:
            sums[-1] = [sums[-1][0] + node.parameters, sums[-1][1] + node.macs, sums[-1][2] + node.shared]
            continue
        parents[node.depth :] = [node.path]
        name = _format_path(node, parents[-2] if len(parents) > 1 else "")
        rows.append(
            [
                name,
                node.class_name,
                _format_location(*node.defined_in),
                _format_shapes(node.inputs),
                _format_shapes(node.outputs),
            ]
        )
        sums.append([node.parameters, node.macs, node.shared])
    cells = [
        [*row, _format_count(parameters, shared), short_number(macs / traced.num_samples) if macs else ""]
        for row, (parameters, macs, shared) in zip(rows, sums, strict=True)
    ]
    trainable = "" if traced.trainable == traced.parameters else f", {traced.trainable:,} trainable"
    total = [f"{traced.parameters:,}{trainable}", short_number(traced.macs / traced.num_samples)]
    rows = [*cells, ["total", "", "", "", "", *total]]
    show_table(title, _COLUMNS, rows, unbroken="module", droppable=_DROPPABLE)


def _format_path(node: Node, parent: str) -> str:
    """Format a module's path relative to its parent call, indented by depth."""
    path = node.path.removeprefix(f"{parent}.") or "(model)"
    return "  " * node.depth + (f"{path} (call {node.call})" if node.call > 1 else path)


def _format_location(file: str, line: int) -> str:
    """Format file and line of a class so that an editor can open them; empty without a file."""
    path = Path(file)
    package = next((folder for folder in _PACKAGES if path.is_relative_to(folder)), None)
    return f"{path if package is None else path.relative_to(package)}:{line}" if file else ""


def _format_shapes(named: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(show_shape(shape, 0) for _, shape in named)


def _format_count(parameters: int, shared: int) -> str:
    marked = f"{shared:,} shared" if shared else ""
    return " + ".join(filter(None, (f"{parameters:,}" if parameters else "", marked)))


def _show_memory(memory: Memory) -> None:
    show_table(
        f"peak memory of a training step of {memory.batch_size} samples, in {memory.where}",
        ("part", "bytes"),
        [[part, _format_bytes(getattr(memory, name))] for name, part in _PARTS.items() if getattr(memory, name)],
    )


# --- profile ---------------------------------------------------------------------------------------------------------


def profile(options: ProfileOptions) -> int:
    """Run a few steps without and with the profiler, show their cost, then try the requested settings."""
    settings = parse_settings(options.tries)
    trace = None if options.out is None else options.out / "trace.json.gz"
    if trace is not None:
        assert_writable(trace, option="--out")
    config = load_config(options.config, options.overrides, options.plugins)
    configs = []
    for setting in settings:
        with name_setting_in_errors(setting):
            configs.append(reread(options.config, _combine_overrides(options.overrides, setting)))
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        return launch(options.command_line(), num_processes)
    inputs = partial(describe_command, "profile", *configs, config, steps=options.steps, rounds=options.rounds)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s, describe=inputs) as world:
        set_backends(config.train)
        built = _build(config, world, options.steps)
        trials = (
            [SettingTrial(Setting("as configured"), _build(config, world, options.steps, base=built))]
            if settings
            else []
        )
        for setting, trial_config in zip(settings, configs, strict=True):
            with name_setting_in_errors(setting):
                trials.append(SettingTrial(setting, _build(trial_config, world, options.steps, base=built)))
        plain = run_steps(built.job, world, NUM_WARM + options.steps, lambda record: None)
        built.job.step = 0
        document = {
            "config": str(options.config),
            "device": str(world.device),
            "threads": torch.get_num_threads(),
            "batch_size": config.train.batch_size,
            "num_samples": mean_num_samples(plain[NUM_WARM:]),
            "untraced_step_s": (plain[-1].wall_s - plain[NUM_WARM - 1].wall_s) / options.steps,
            **measure_processes(plain[NUM_WARM:], world),
            **profile_document(profile_steps(built.job, world, num_steps=options.steps, trace=trace)),
        }
        world.rank_zero_only(_report_profile)(document, options)  # so that it is kept if a step fails below
        if settings:
            note = world.rank_zero_only(print_note)
            tried = try_settings(trials, world, num_steps=options.steps, num_rounds=options.rounds, note=note)
            world.rank_zero_only(_report_settings)(document | {"tried": tried}, options)
        elif world.size == 1 and (unused := find_unused_format(built.config, world)) is not None:
            _try_unused(name_setting(unused.overrides), document, built, world, options)
        if trace is not None:
            world.rank_zero_only(print_note)(
                f"written: {options.out}/profile.json, and {trace.name} for https://ui.perfetto.dev or chrome://tracing"
            )
    return 0


def _report_profile(document: Mapping[str, Any], options: ProfileOptions) -> None:
    _show_profile(document, options.top)
    _write(document, options)


def _report_settings(document: Mapping[str, Any], options: ProfileOptions) -> None:
    _show_settings(document["tried"])
    _write(document, options)


def _try_unused(
    setting: Setting, document: Mapping[str, Any], built: TrainingSetup, world: World, options: ProfileOptions
) -> None:
    """Measure briefly the number format that the config leaves unused, and print what it gains."""
    num_steps = min(options.steps, _NUM_BRIEF_STEPS)
    try:
        lower = reread(options.config, _combine_overrides(options.overrides, setting))
        named = ((Setting("as configured"), built.config), (setting, lower))
        trials = [SettingTrial(each, _build(config, world, num_steps, base=built)) for each, config in named]
        tried = try_settings(trials, world, num_steps=num_steps, num_rounds=_NUM_BRIEF_ROUNDS, note=lambda text: None)
    except (UserError, RunError) as error:
        print_note(f"this machine computes in bf16, which the config leaves unused; it cannot be measured: {error}")
        return
    _report_settings({**document, "tried": tried}, options)
    row = tried[1]
    ratio = f"{row['ratio']:.2f} times as fast ({row['low']:.2f} to {row['high']:.2f})"
    words = " ".join(setting.overrides)
    gain = f"{words} is {ratio}" if row["verdict"] == "faster" else f"{words} gains nothing clear: {ratio}"
    print_note(f"this machine computes in bf16, which the config leaves unused; measured here: {gain}")


def _write(document: Mapping[str, Any], options: ProfileOptions) -> None:
    for path in (options.json, None if options.out is None else options.out / "profile.json"):
        write_document(path, document)


def _build(config: RunConfig, world: World, num_steps: int, *, base: TrainingSetup | None = None) -> TrainingSetup:
    """Build the run with new weights, sharing the data of `base` if equal. Raises UserError for too few steps."""
    data = base.data if base is not None and _data_settings(config) == _data_settings(base.config) else None
    built = build(config, world, is_resumed=True, data=data)
    needed = NUM_WARM + num_steps
    if built.job.num_steps < needed:
        epochs = -(-needed // built.job.stream.plan.steps_per_epoch)
        longer = f"train.epochs={epochs}" if config.train.steps is None else f"train.steps={needed}"
        fewer = f"name at most {built.job.num_steps - NUM_WARM}, or " if built.job.num_steps > NUM_WARM else ""
        raise UserError(
            f"--steps {num_steps}: training has {built.job.num_steps} steps, {NUM_WARM} of which warm up; "
            f"{fewer}train for longer: {longer}"
        )
    return built


def _data_settings(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that a run's data depend on."""
    return config.data, config.transforms, config.seed, config.evaluate.select, config.train.epochs


def _combine_overrides(overrides: Sequence[str], setting: Setting) -> list[str]:
    """Combine the overrides of the command line with those of a setting, which take precedence."""
    keys = {text.partition("=")[0] for text in setting.overrides}
    return [*(text for text in overrides if text.partition("=")[0].strip() not in keys), *setting.overrides]


def _show_profile(document: Mapping[str, Any], top: int) -> None:
    """Print tables by part, kind of work and module (the slowest, others in one row); each adds up to the step."""
    step, peak, resident = (
        document["step_s"],
        _format_bytes(document["peak_bytes"]),
        _format_bytes(document["resident_bytes"]),
    )
    title = (
        f"a step of {document['num_samples']:g} samples on {document['device']}, {document['threads']} thread(s): "
        f"{_format_ms(document['untraced_step_s'])} ms; "
        f"traced, as below, {_format_ms(step)} ms (mean of {document['num_steps']})"
    )
    rows = [
        [r["part"], _format_ms(r["seconds"]), _format_share(r, step), _format_ms(r["seconds_in_modules"])]
        for r in document["parts"]
    ]
    show_table(title, ("part", "ms", "share", "of it in modules"), [*rows, ["step", _format_ms(step), "100 %", ""]])
    if processes := document.get("processes"):
        rows = [
            [str(r["rank"]), _format_ms(r["step_s"]), _format_ms(r["reduce_s"]), f"{r['reduce_s'] / r['step_s']:.1%}"]
            for r in processes
        ]
        show_table("on each process, without the profiler", ("process", "ms", "waited for gradients", "share"), rows)

    def figures(row: Mapping[str, Any]) -> list[str]:
        return [
            _format_ms(row["seconds"]),
            _format_ms(row["seconds_backward"]),
            _format_share(row, step),
            _format_bytes(row["bytes_at_peak"]),
        ]

    columns = ("ms", "backward", "share", "made of peak")
    below = [["held before", "", "", "", resident], ["step", _format_ms(step), "", "100 %", peak]]
    rows = [[row["kind"], *figures(row), _format_bytes(row["peak_bytes"])] for row in _sort_slowest(document["kinds"])]
    show_table("by kind of work", ("kind", *columns, "peak"), [*rows, *([*row, ""] for row in below)])
    ranked = _sort_slowest(document["modules"])
    rows = [
        [row["path"] or "(model)", *figures(row), *inner, f"{row['calls']:g}", row["class"], row["place"]]
        for row in ranked[:top]
        for inner in [(_format_ms(row["seconds_with_inner"]), _format_bytes(row["peak_bytes"]))]
    ]
    others = [[f"{len(ranked[top:])} others", *figures(sum_rows(ranked[top:]))]] if ranked[top:] else []
    below = [*others, ["outside of modules", *figures(document["outside"])], *below]
    names = ("module", *columns, "with inner", "peak", "calls", "class", "defined at")
    rows += [[*row, "", "", "", "", ""] for row in below]
    show_table("by module itself", names, rows, unbroken="module", droppable=("defined at", "class", "calls"))


def _show_settings(tried: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            *(
                row["name"],
                _format_ms(row["step_s"]),
                f"{row['num_samples'] / row['step_s']:.1f}",
                f"{row['data_share']:.0%}",
            ),
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            *("" if row is tried[0] else row["verdict"], _format_bytes(row["peak_bytes"]), f"{row['loss']:.5g}"),
        )
        for row in tried
    ]
    columns = ("setting", "ms a step", "samples/s", "data", "times as fast", "verdict", "peak", "loss")
    show_table("the same steps under other settings, in turn", columns, rows)


def _sort_slowest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -row["seconds"])


def _format_share(row: Mapping[str, Any], step: float) -> str:
    return f"{row['seconds'] / step:.1%}"


def _format_ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _format_bytes(count: int | None) -> str:
    if count is None:
        return ""
    return ("-" if count < 0 else "") + short_number(abs(count)) + ("B" if abs(count) >= 1000 else " B")
