"""The same training steps under other settings of run and machine, in turn, so that a slow minute slows all of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sightline.config import RunConfig
from sightline.config.overrides import split_values
from sightline.describe.profiling import profile_steps, run_steps
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.precision import seed_everything, set_backends
from sightline.errors import RunError, UserError
from sightline.schema import suggest

__all__ = ["Setting", "SettingTrial", "errors_named", "parse_settings", "try_settings"]

_WORDS = {
    **{name: f"train.precision={name}" for name in ("bf16", "fp16", "float32", "float64")},
    "channels_last": "model.channels_last=true",
    "compile": "train.compile=true",
}
_KEYS = frozenset(field.name for field in dataclasses.fields(RunConfig))
_MOST_THREADS = 1024
_COUNTS = {"workers": "loader.workers", "prefetch": "loader.prefetch", "micro_batches": "train.micro_batches"}


@dataclass(frozen=True)
class Setting:
    """Overrides of the config, and the threads of torch and of our kernels where other than the process's."""

    name: str
    overrides: tuple[str, ...] = ()
    threads: int | None = None


class SettingTrial(NamedTuple):
    """A setting and the run under it."""

    setting: Setting
    built: TrainingSetup


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """The settings of `--try bf16,workers=0+threads=2`: commas between settings, plus signs within one.

    Raises UserError for a word that is not a setting.
    """
    names = [name for text in texts for name in split_values(text)]
    settings = [_setting(name) for name in names]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"--try: a setting is given twice: {', '.join(twice)}")
    return settings


def try_settings(
    trials: Sequence[SettingTrial], world: World, *, num_steps: int, num_rounds: int, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Take the same steps under every setting, in rounds A B C, C B A; a row for each, compared with the first.

    `seconds` of a row are the medians of its rounds, `step_s` their median, `ratio` how many times faster than the
    first setting beside it in the same round (`low` to `high`), `data_share` the share of waiting for data, `loss` that
    of the last step. A round's first step, in which workers start, does not count. `peak_bytes` is of a traced step.
    Raises RunError where a step fails, naming the setting.
    """
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        with _applied(trial):
            peak = profile_steps(trial.built.job, world, num_steps=1).costs.peak_bytes
        known = {"name": trial.setting.name, "batch_size": trial.built.config.train.batch_size, "peak_bytes": peak}
        rows[trial.setting.name] = {**known, "seconds": [], "shares": []}
    for number in range(num_rounds):
        note(f"round {number + 1} of {num_rounds}")
        for trial in trials if number % 2 == 0 else reversed(trials):
            with _applied(trial):
                records = run_steps(trial.built.job, world, 1 + num_steps, lambda record: None)
            times = [after.wall_s - before.wall_s for before, after in itertools.pairwise(records)]
            row = rows[trial.setting.name]
            row["seconds"].append(statistics.median(times))
            row["shares"].append(sum(record.seconds["data"] for record in records[1:]) / sum(times))
            row["loss"] = records[-1].losses["total"]
    first = rows[trials[0].setting.name]
    return [row | _compared(first, row, row.pop("shares")) for row in rows.values()]


def _compared(first: Mapping[str, Any], row: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Any]:
    """The rounds of a setting compared with those of the first: a direction only where at least three all agree on it.

    Of another number of samples a step the time of a sample is compared.
    """
    seconds, samples = row["seconds"], row["batch_size"] / first["batch_size"]
    ratios = sorted(samples * before / after for before, after in zip(first["seconds"], seconds, strict=True))
    verdict = "faster" if ratios[0] > 1.0 else "slower" if ratios[-1] < 1.0 else ""
    return {
        "step_s": statistics.median(seconds),
        "data_share": statistics.median(shares),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "verdict": verdict if verdict and len(ratios) >= 3 else "no clear difference",
    }


@contextmanager
def _applied(trial: SettingTrial) -> Iterator[None]:
    """The trial's job is at its first step, and the process set as it asks; afterwards threads are what they were."""
    threads, config = torch.get_num_threads(), trial.built.config
    set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
    seed_everything(config.seed, 1)  # all settings draw the same numbers
    trial.built.job.step = 0
    try:
        torch.set_num_threads(trial.setting.threads or threads)
        with errors_named(trial.setting):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def errors_named(setting: Setting) -> Iterator[None]:
    """Errors inside name the setting."""
    try:
        yield
    except (UserError, RunError) as error:
        error.args = (f"--try {setting.name}: {error}",)
        raise


def _setting(name: str) -> Setting:
    overrides: list[str] = []
    threads = None
    for part in re.split(r"\+(?=[A-Za-z])", name):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key == "threads" and equals:
            if not (value.isascii() and value.isdecimal() and len(value) <= 4 and 1 <= int(value) <= _MOST_THREADS):
                raise UserError(f"--try {name}: found {part!r}, allowed is threads=N, N from 1 to {_MOST_THREADS}")
            threads = int(value)
        elif (key in _COUNTS or "." in key or key in _KEYS) and equals:
            overrides.append(f"{_COUNTS.get(key, key)}={value}")
        elif part.strip() in _WORDS:
            overrides.append(_WORDS[key])
        else:
            known = [*_WORDS, *_COUNTS, "threads"]
            allowed = ", ".join(word if word in _WORDS else f"{word}=N" for word in known)
            hint = suggest(key, known, otherwise="")
            raise UserError(f"--try {name}: found {part!r}, allowed are {allowed} and KEY=VALUE of the config{hint}")
    keys = [override.partition("=")[0] for override in overrides]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"--try {name}: {twice} is given twice; put a comma between two settings")
    return Setting(name, tuple(overrides), threads)
