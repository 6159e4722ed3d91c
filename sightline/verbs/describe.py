"""`sightline describe` and `profile`: a model's modules, shapes and cost; time and memory of its training steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sightline.commands.look import DescribeOptions, ProfileOptions
from sightline.config import RunConfig
from sightline.contract.catalogue import load_members
from sightline.contract.errors import UserError
from sightline.engine.build import build
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import World, start_world
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.process_inputs import describe_command
from sightline.engine.train import TrainState
from sightline.runs.output_files import write_document, write_file
from sightline.verbs.output import load_config, print_note, show_table
from sightline.workbench.describe.drawing import build_figure, draw, short_number, show_shape
from sightline.workbench.describe.profiling import (
    NUM_WARM,
    mean_num_samples,
    measure_parts,
    measure_processes,
    profile_steps,
    run_steps,
    time_steps,
)
from sightline.workbench.describe.rate_test import NUM_STEPS, RULE, RateTest, make_rates, run_rate_test
from sightline.workbench.describe.report import DataDescription, description_document, trace_run
from sightline.workbench.describe.trace import Node, Trace
from sightline.workbench.series.study import parse_arm

_COLUMNS = ("module", "class", "inputs", "outputs", "parameters", "MAC/sample")
_NUM_PROFILED = 5
_LEAST_SHARE = 0.02
"""Share of a step from which a part of it has a column."""
_NUM_MODULES, _NUM_OPERATORS = 20, 10
"""Numbers of modules and of operators that `profile` prints, the slowest first."""


def describe(options: DescribeOptions) -> int:
    """Trace one forward pass of a config's model."""
    config = load_config(options.config, options.overrides, options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        built = build(config, world, is_resumed=True)  # initial weights are not needed
        traced = trace_run(built)
        makers = load_members("descriptions")
        descriptions: list[DataDescription] = [made for make in makers if (made := make(built)) is not None]
    _show_modules(traced, f"{config.model.name}: a forward pass of {traced.num_samples} samples", options.depth)
    for line in (line for description in descriptions for line in description.lines):
        print_note(line) if isinstance(line, str) else show_table(*line)
    if options.svg is not None:
        cost = f"{short_number(traced.macs / traced.num_samples)} multiply-accumulates per sample"
        subtitle = f"{traced.parameters:,} parameters, {cost}"
        figure = build_figure(traced, depth=options.depth)
        write_file(
            options.svg, draw(figure, title=config.model.name, subtitle=subtitle, num_samples=traced.num_samples)
        )
        print_note(f"drawing: {options.svg}")
    write_document(options.json, description_document(built, traced, descriptions))
    return 0


def _show_modules(traced: Trace, title: str, depth: int | None) -> None:
    """Print the module calls, indented by nesting; calls deeper than `depth` are added to the shown one before."""
    shown: list[Node] = []
    for call in traced.calls:
        if depth is None or call.depth <= depth:
            shown.append(call)
        else:
            sums = {name: getattr(shown[-1], name) + getattr(call, name) for name in ("parameters", "shared", "macs")}
            shown[-1] = replace(shown[-1], **sums)
    rows = [
        [
            *(_format_path(call, traced), call.class_name),
            *(", ".join(show_shape(shape, 0) for _, shape in named) for named in (call.inputs, call.outputs)),
            _format_count(call.parameters, call.shared),
            short_number(call.macs / traced.num_samples) if call.macs else "",
        ]
        for call in shown
    ]
    trainable = "" if traced.trainable == traced.parameters else f", {traced.trainable:,} trainable"
    total = [f"{traced.parameters:,}{trainable}", short_number(traced.macs / traced.num_samples)]
    rows.append(["total", "", "", "", *total])
    show_table(title, _COLUMNS, rows, unbroken="module", droppable=("inputs", "outputs", "class"))


def _format_path(call: Node, traced: Trace) -> str:
    """Format a module's path relative to the call around it, indented by depth."""
    parent = "" if call.parent is None else traced.calls[call.parent].path
    path = call.path.removeprefix(f"{parent}.") or "(model)"
    return "  " * call.depth + (f"{path} (call {call.call})" if call.call > 1 else path)


def _format_count(parameters: int, shared: int) -> str:
    marked = f"{shared:,} shared" if shared else ""
    return " + ".join(filter(None, (f"{parameters:,}" if parameters else "", marked)))


# --- profile ---------------------------------------------------------------------------------------------------------


def profile(options: ProfileOptions) -> int:
    """Run a few steps without and with the profiler, and show their cost."""
    config = load_config(options.config, options.overrides, options.plugins)
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        return launch(options.command_line(), num_processes)
    if options.find_rate and options.trace is not None:
        raise UserError("--trace: there is no trace with --find-rate; leave one of the two out")
    if options.arms and (options.find_rate or options.trace is not None):
        raise UserError("--arm: steps are timed without a trace and at one rate; leave --trace and --find-rate out")
    if options.svg is not None and not options.find_rate:
        raise UserError("--svg: draws the curve of --find-rate; give both")
    steps = options.steps or _NUM_PROFILED
    inputs = partial(describe_command, "profile", config, steps=options.steps, **{"find-rate": options.find_rate})
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s, describe=inputs) as world:
        set_backends(config.train)
        if options.find_rate:
            return _find_rate(options, config, world)
        if options.arms:
            return _compare_arms(options, config, world, steps)
        job = _build(config, world, steps)
        plain = run_steps(job, world, NUM_WARM + steps, lambda record: None)
        job.step = 0
        document = {
            "config": str(options.config),
            "device": str(world.device),
            "threads": torch.get_num_threads(),
            "batch_size": job.stream.plan.batch_size,
            "num_samples": mean_num_samples(plain[NUM_WARM:]),
            "untraced_step_s": (plain[-1].wall_s - plain[NUM_WARM - 1].wall_s) / steps,
            "parts": measure_parts(plain[NUM_WARM:]),
            **measure_processes(plain[NUM_WARM:], world),
            **profile_steps(job, world, num_steps=steps, trace=options.trace),
        }
        world.rank_zero_only(_show_profile)(document)
        world.rank_zero_only(write_document)(options.json, document)
        if options.trace is not None:
            world.rank_zero_only(print_note)(f"trace: {options.trace}, for https://ui.perfetto.dev or chrome://tracing")
    return 0


def _compare_arms(options: ProfileOptions, config: RunConfig, world: World, steps: int) -> int:
    """Time the steps of a config and of its arms, and show their parts beside each other."""
    arms = {"config": config}
    for name, level in map(parse_arm, options.arms):
        if name in arms:
            raise UserError(f"--arm {name}=...: is the name of another one; give each arm its own")
        replaced = {word.partition("=")[0].strip() for word in level.overrides}
        kept = [word for word in options.overrides if word.partition("=")[0].strip() not in replaced]
        arms[name] = load_config(options.config, (*kept, *level.overrides), options.plugins)
    timed = {name: time_steps(_build(each, world, steps), world, steps) for name, each in arms.items()}
    world.rank_zero_only(_show_arms)(timed, world.device)
    about = {"config": str(options.config), "device": str(world.device), "threads": torch.get_num_threads()}
    world.rank_zero_only(write_document)(options.json, {**about, "arms": timed})
    return 0


def _show_arms(timed: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """Print the time of a step and of its parts for each arm, and how they grow from the config to the slowest."""
    first, slowest = timed["config"], max(timed.values(), key=lambda each: float(each["step_s"]))
    parts = [name for name, seconds in slowest["parts"].items() if seconds > _LEAST_SHARE * slowest["step_s"]]
    rows = [
        [
            *(name, f"{each['num_samples']:g}", _format_ms(each["step_s"]), f"{each['step_s'] / first['step_s']:.2f}"),
            *(_format_ms(each["parts"].get(part, 0.0)) for part in parts),
        ]
        for name, each in timed.items()
    ]
    show_table(f"a step on {device}, ms", ("arm", "samples", "step", "times", *parts), rows, unbroken="arm")
    name = next(name for name, each in timed.items() if each is slowest)
    if slowest is not first:
        grown = [
            f"{part} {slowest['parts'][part] / first['parts'][part]:.1f}" for part in parts if first["parts"].get(part)
        ]
        print_note(f"from config to {name}, times: {', '.join(grown)}; what does not grow is not the size's")


def _find_rate(options: ProfileOptions, config: RunConfig, world: World) -> int:
    """Run a learning rate range test on a run that is built like one that starts, and show what it suggests."""
    rates = make_rates(options.steps or NUM_STEPS)
    built = build(config, world)
    test = run_rate_test(built.job, world, rates, configured=built.config.optimizer.arguments["lr"])
    about = {"config": str(options.config), "device": str(world.device), "batch_size": built.config.train.batch_size}
    world.rank_zero_only(_show_rates)(test, world.device)
    world.rank_zero_only(write_document)(options.json, {**about, "num_steps": len(rates), **test.to_dict()})
    if options.svg is not None:
        world.rank_zero_only(write_file)(options.svg, test.draw())
        world.rank_zero_only(print_note)(f"drawing: {options.svg}")
    return 0


def _show_rates(test: RateTest, device: torch.device) -> None:
    """Print what a range test found, and the line that sets the suggested rate."""
    diverged = "not reached" if test.diverged_at is None else f"{test.diverged_at:.2g}"
    rows = [
        ("at the start", "", f"{test.start:.4g}, {test.spread:.2g} between batches"),
        ("smoothed loss lowest", f"{test.rates[test.best]:.2g}", f"{test.smoothed[test.best]:.4g}"),
        ("diverged", diverged, test.reason),
        ("suggested", "none" if test.suggestion is None else f"{test.suggestion:g}", ""),
    ]
    title = f"learning rate range test, {len(test.losses)} of {len(test.rates)} steps on {device}"
    show_table(title, ("", "learning rate", "loss"), rows)
    if test.suggestion is None:
        print_note(
            "no rate is suggested: the smoothed loss never fell by more than twice the spread between batches; "
            "take more --steps or a larger batch, and see `sightline fit` whether the network can learn"
        )
    else:
        print_note(f"the suggestion is {RULE}")
        sys.stdout.write(f"optimizer.lr={test.suggestion:g}\n")


def _build(config: RunConfig, world: World, num_steps: int) -> TrainState:
    """Build the run with new weights. Raises UserError for too few steps."""
    job = build(config, world, is_resumed=True).job
    needed = NUM_WARM + num_steps
    if job.num_steps < needed:
        epochs = -(-needed // job.stream.plan.steps_per_epoch)
        longer = f"train.epochs={epochs}" if config.train.steps is None else f"train.steps={needed}"
        raise UserError(
            f"--steps {num_steps}: training has {job.num_steps} steps, {NUM_WARM} of which warm up; give {longer}"
        )
    return job


def _show_profile(document: Mapping[str, Any]) -> None:
    """Print tables by part, by module (the slowest), and by torch's operators (the slowest)."""
    step, traced = document["untraced_step_s"], document["step_s"]
    title = (
        f"a step of {document['num_samples']:g} samples on {document['device']}, {document['threads']} thread(s): "
        f"{_format_ms(step)} ms, peak of tensors {_format_bytes(document['peak_bytes'])}"
    )
    rows = [[row["part"], *_format_time(row["seconds"], step)] for row in document["parts"]]
    show_table(title, ("part", "ms", "share"), [*rows, ["step", *_format_time(step, step)]])
    if processes := document.get("processes"):
        rows = [
            [str(r["rank"]), _format_ms(r["step_s"]), _format_ms(r["reduce_s"]), f"{r['reduce_s'] / r['step_s']:.1%}"]
            for r in processes
        ]
        show_table("on each process", ("process", "ms", "waited for gradients", "share"), rows)
    rows = [
        [
            *(row["path"] or "(model)", *_format_time(row["seconds"], traced), _format_ms(row["seconds_backward"])),
            *(_format_ms(row["seconds_with_inner"]), f"{row['calls']:g}", row["class"]),
        ]
        for row in sorted(document["modules"], key=lambda row: -row["seconds"])[:_NUM_MODULES]
    ]
    title = f"by module itself, under torch's profiler: a step takes {_format_ms(traced)} ms"
    columns = ("module", "ms", "share", "backward", "with inner", "calls", "class")
    show_table(title, columns, rows, unbroken="module", droppable=("class", "calls"))
    rows = [[row["operator"], *_format_time(row["seconds"], traced)] for row in document["operators"][:_NUM_OPERATORS]]
    show_table("by operator of torch", ("operator", "ms", "share"), rows, unbroken="operator")


def _format_time(seconds: float, step: float) -> tuple[str, str]:
    return _format_ms(seconds), f"{seconds / step:.1%}"


def _format_ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _format_bytes(count: int) -> str:
    return short_number(count) + ("B" if count >= 1000 else " B")
