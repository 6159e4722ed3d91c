"""Launch of a training run from the options of `sightline train`: in this process, or in several."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightline.commands.run import TrainOptions
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.records import Observer
from sightline.runs.run_files import is_run
from sightline.training.config_source import ConfigWithPlugins, read_with_plugins
from sightline.training.resume import assert_empty
from sightline.training.stop_request import StopRequest, restore_signal_handlers
from sightline.training.train_result import Reporter
from sightline.training.train_run import train_run

if TYPE_CHECKING:
    from sightline.doctor.finding import Finding


def launch_training(
    options: TrainOptions,
    reporter: Reporter,
    *,
    read: ConfigWithPlugins | None = None,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
) -> tuple[int, tuple[Finding, ...]]:
    """Train in the given number of processes; return the exit code of `sightline train`, and what the checks found.

    Several processes are commands of their own, which print; `reporter` and `observers` receive the lines and records
    of a run in this process. It trains what was `read` of the options, by default now. If the config is a run
    directory, `resume="auto"` resumes that run. Signals and `stop` are handled as in `train_run`.
    """
    if read is None:
        reporter.doing(lambda: "reads the config")
        read = read_with_plugins(options.config, options.overrides, options.plugins)
        for line in read.notes:
            reporter.note(f"warning: {line}")
    if options.resume == "auto" and options.out is None and is_run(options.config):
        options = dataclasses.replace(options, out=options.config)
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        reporter.doing(None)
        if options.out is not None and options.resume is None:
            assert_empty(options.out)
        with restore_signal_handlers() if stop is None else contextlib.nullcontext():
            return launch(options.command_line(), num_processes), ()
    result = train_run(
        read.config,
        plugins=read.plugins,
        out=options.out,
        resume=options.resume,
        checks=not options.no_check,
        device=options.device,
        reporter=reporter,
        stop=stop,
        observers=observers,
        shows_progress=True,
    )
    return result.exit_code, result.findings
