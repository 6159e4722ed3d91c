"""Launch of a training run from the options of `sightline train`: in this process, or in several."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.resume import assert_empty
from sightline.engine.run_loading import is_run
from sightline.engine.session import StopRequest
from sightline.training.run_configs import read_with_plugins
from sightline.training.train_run import Reporter, restore_signal_handlers, train_run

__all__ = ["TrainRequest", "launch_training"]


@dataclass(frozen=True)
class TrainRequest:
    """Options of `sightline train`."""

    config: Path
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    processes: int | None = None
    resume: str | None = None
    plugins: tuple[Path, ...] = ()
    no_check: bool = False
    device: str = "auto"
    json: Path | None = None

    def arguments(self) -> list[str]:
        """Build the command line of each launched process."""
        command_line = ["train", str(self.config), *self.overrides, "--device", self.device]
        for name, value in (("--out", self.out), ("--resume", self.resume), ("--json", self.json)):
            command_line += [name, str(value)] if value is not None else []
        for plugin in self.plugins:
            command_line += ["--plugin", str(plugin)]
        return [*command_line, "--no-check"] if self.no_check else command_line


def launch_training(request: TrainRequest, reporter: Reporter, *, stop: StopRequest | None = None) -> int:
    """Train in the requested number of processes; return the exit code of `sightline train`.

    Several processes are commands of their own, which print; `reporter` receives the lines of a run in this process.
    If the config is a run directory, `resume="auto"` resumes that run. Signals and `stop` are handled as in
    `train_run`.
    """
    read = read_with_plugins(request.config, request.overrides, request.plugins)
    for line in read.notes:
        reporter.note(f"warning: {line}")
    if request.resume == "auto" and request.out is None and is_run(request.config):
        request = dataclasses.replace(request, out=request.config)
    num_processes = resolve_num_processes(request.processes)
    if num_processes > 1:
        if request.out is not None and request.resume is None:
            assert_empty(request.out)
        with restore_signal_handlers() if stop is None else contextlib.nullcontext():
            return launch(request.arguments(), num_processes)
    return train_run(
        read.config,
        plugins=read.plugins,
        out=request.out,
        resume=request.resume,
        checks=not request.no_check,
        device=request.device,
        reporter=reporter,
        stop=stop,
        shows_progress=True,
    ).exit_code
