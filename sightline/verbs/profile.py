"""`sightline profile`: where the time and the memory of a training step go, and what other settings change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.config import RunConfig
from sightline.describe.drawing import short_number
from sightline.describe.profile_report import profile_document, sum_of
from sightline.describe.profiling import NUM_WARM, profile_steps, run_steps
from sightline.describe.setting_trials import Setting, SettingTrial, errors_named, parse_settings, try_settings
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World, start_world
from sightline.engine.precision import set_backends
from sightline.errors import UserError
from sightline.verbs.common import assert_writable, load_config, reread, write_document
from sightline.verbs.output import print_note, show_table

__all__ = ["ProfileOptions", "profile"]


@dataclass(frozen=True)
class ProfileOptions:
    """What the command line asked for."""

    config: Path
    overrides: tuple[str, ...]
    steps: int = 5
    tries: tuple[str, ...] = ()
    rounds: int = 5
    top: int = 20
    out: Path | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


def profile(options: ProfileOptions) -> int:
    """Take a few steps without and with the profiler, show where they went, then try the settings asked for."""
    settings = parse_settings(options.tries)
    trace = None if options.out is None else options.out / "trace.json.gz"
    if trace is not None:
        assert_writable(trace, option="--out")
    config, _ = load_config(options.config, options.overrides, options.plugins)
    configs = []
    for setting in settings:
        with errors_named(setting):
            configs.append(reread(options.config, _laid_over(options.overrides, setting)))
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        if world.size > 1:
            raise UserError("profile: runs in one process; start it without a launcher")
        set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
        built = _built(config, world, options.steps)
        trials = (
            [SettingTrial(Setting("as configured"), _built(config, world, options.steps, base=built))]
            if settings
            else []
        )
        for setting, other in zip(settings, configs, strict=True):
            with errors_named(setting):
                trials.append(SettingTrial(setting, _built(other, world, options.steps, base=built)))
        plain = run_steps(built.job, world, NUM_WARM + options.steps, lambda record: None)
        built.job.step = 0
        document = {
            "config": str(options.config),
            "device": str(world.device),
            "threads": torch.get_num_threads(),
            "batch_size": config.train.batch_size,
            "untraced_step_s": (plain[-1].wall_s - plain[NUM_WARM - 1].wall_s) / options.steps,
            **profile_document(profile_steps(built.job, world, num_steps=options.steps, trace=trace)),
        }
        _show(document, options.top)
        _write(document, options)  # a step that fails below takes nothing of this along
        if settings:
            tried = try_settings(trials, world, num_steps=options.steps, num_rounds=options.rounds, note=print_note)
            document["tried"] = tried
            _show_tried(tried)
            _write(document, options)
    if trace is not None:
        print_note(
            f"written: {options.out}/profile.json, and {trace.name} for https://ui.perfetto.dev or chrome://tracing"
        )
    return 0


def _write(document: Mapping[str, Any], options: ProfileOptions) -> None:
    for path in (options.json, None if options.out is None else options.out / "profile.json"):
        write_document(path, document)


def _built(config: RunConfig, world: World, num_steps: int, *, base: TrainingSetup | None = None) -> TrainingSetup:
    """The run with new weights, on the data of `base` where it reads the same. Raises UserError for too few steps."""
    data = base.data if base is not None and _reads(config) == _reads(base.config) else None
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


def _reads(config: RunConfig) -> tuple[object, ...]:
    """What the data of a run depend on."""
    return config.data, config.transforms, config.seed, config.evaluate.select, config.train.epochs


def _laid_over(overrides: Sequence[str], setting: Setting) -> list[str]:
    """The overrides of the command line, but those of a key that the setting has a value for."""
    keys = {text.partition("=")[0] for text in setting.overrides}
    return [*(text for text in overrides if text.partition("=")[0].strip() not in keys), *setting.overrides]


def _show(document: Mapping[str, Any], top: int) -> None:
    """Parts, kinds of work and the slowest modules, the others as one row: every table adds up to the step."""
    step, peak, held = document["step_s"], _bytes(document["peak_bytes"]), _bytes(document["resident_bytes"])
    title = (
        f"a step of {document['batch_size']} samples on {document['device']}, {document['threads']} thread(s): "
        f"{_ms(document['untraced_step_s'])} ms; traced, as below, {_ms(step)} ms (mean of {document['num_steps']})"
    )
    rows = [[r["part"], _ms(r["seconds"]), _share(r, step), _ms(r["seconds_in_modules"])] for r in document["parts"]]
    show_table(title, ("part", "ms", "share", "of it in modules"), [*rows, ["step", _ms(step), "100 %", ""]])

    def figures(row: Mapping[str, Any]) -> list[str]:
        return [_ms(row["seconds"]), _ms(row["seconds_backward"]), _share(row, step), _bytes(row["bytes_at_peak"])]

    columns = ("ms", "backward", "share", "made of peak")
    below = [["held before", "", "", "", held], ["step", _ms(step), "", "100 %", peak]]
    rows = [[row["kind"], *figures(row), _bytes(row["peak_bytes"])] for row in _slowest(document["kinds"])]
    show_table("by kind of work", ("kind", *columns, "peak"), [*rows, *([*row, ""] for row in below)])
    ranked = _slowest(document["modules"])
    rows = [
        [row["path"] or "(model)", *figures(row), *inner, f"{row['calls']:g}", row["class"], row["place"]]
        for row in ranked[:top]
        for inner in [(_ms(row["seconds_with_inner"]), _bytes(row["peak_bytes"]))]
    ]
    others = [[f"{len(ranked[top:])} others", *figures(sum_of(ranked[top:]))]] if ranked[top:] else []
    below = [*others, ["outside of modules", *figures(document["outside"])], *below]
    names = ("module", *columns, "with inner", "peak", "calls", "class", "defined at")
    rows += [[*row, "", "", "", "", ""] for row in below]
    show_table("by module itself", names, rows, unbroken="module", droppable=("defined at", "class", "calls"))


def _show_tried(tried: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            *(row["name"], _ms(row["step_s"]), f"{row['batch_size'] / row['step_s']:.1f}", f"{row['data_share']:.0%}"),
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            *("" if row is tried[0] else row["verdict"], _bytes(row["peak_bytes"]), f"{row['loss']:.5g}"),
        )
        for row in tried
    ]
    columns = ("setting", "ms a step", "samples/s", "data", "times as fast", "verdict", "peak", "loss")
    show_table("the same steps under other settings, in turn", columns, rows)


def _slowest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -row["seconds"])


def _share(row: Mapping[str, Any], step: float) -> str:
    return f"{row['seconds'] / step:.1%}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    return ("-" if count < 0 else "") + short_number(abs(count)) + ("B" if abs(count) >= 1000 else " B")
