"""Comparison of training steps under several settings, interleaved so that slow minutes affect all of them."""

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

__all__ = ["Setting", "SettingTrial", "name_setting_in_errors", "parse_settings", "try_settings"]

_NAMED_SETTINGS = {
    **{name: f"train.precision={name}" for name in ("bf16", "fp16", "float32", "float64")},
    "channels_last": "model.channels_last=true",
    "compile": "train.compile=true",
}
_KEYS = frozenset(field.name for field in dataclasses.fields(RunConfig))
_MAX_THREADS = 1024
_COUNT_SETTINGS = {"workers": "loader.workers", "prefetch": "loader.prefetch", "micro_batches": "train.micro_batches"}


@dataclass(frozen=True)
class Setting:
    """Setting to try: overrides of the config, and the number of threads if it differs from the process's."""

    name: str
    overrides: tuple[str, ...] = ()
    threads: int | None = None


class SettingTrial(NamedTuple):
    """Setting with the run built under it."""

    setting: Setting
    built: TrainingSetup


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """Parse the settings of `--try bf16,workers=0+threads=2`: commas between settings, plus signs within one.

    Raises UserError for unknown settings.
    """
    names = [name for text in texts for name in split_values(text)]
    settings = [_parse_setting(name) for name in names]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"--try: a setting is given twice: {', '.join(twice)}")
    return settings


def try_settings(
    trials: Sequence[SettingTrial], world: World, *, num_steps: int, num_rounds: int, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run the same steps under every setting, in rounds A B C, C B A; return a row each, compared with the first.

    `seconds` of a row are the medians of its rounds, `step_s` their median, `ratio` the speed-up over the first setting
    in the same round (`low` to `high`), `data_share` the share of time waiting for data, `loss` that of the last step.
    The first step of a round, in which workers start, is not counted. `peak_bytes` is that of a traced step. Raises
    RunError naming the setting if a step fails.
    """
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        with _apply_setting(trial):
            peak = profile_steps(trial.built.job, world, num_steps=1).costs.peak_bytes
        constant_entries = {
            "name": trial.setting.name,
            "batch_size": trial.built.config.train.batch_size,
            "peak_bytes": peak,
        }
        rows[trial.setting.name] = {**constant_entries, "seconds": [], "shares": []}
    for number in range(num_rounds):
        note(f"round {number + 1} of {num_rounds}")
        for trial in trials if number % 2 == 0 else reversed(trials):
            with _apply_setting(trial):
                records = run_steps(trial.built.job, world, 1 + num_steps, lambda record: None)
            times = [later.wall_s - earlier.wall_s for earlier, later in itertools.pairwise(records)]
            row = rows[trial.setting.name]
            row["seconds"].append(statistics.median(times))
            row["shares"].append(sum(record.seconds["data"] for record in records[1:]) / sum(times))
            row["loss"] = records[-1].losses["total"]
    first = rows[trials[0].setting.name]
    return [row | _compare_rounds(first, row, row.pop("shares")) for row in rows.values()]


def _compare_rounds(first: Mapping[str, Any], row: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Any]:
    """Compare the rounds of a setting with those of the first; a verdict needs at least three rounds that all agree.

    If the batch size differs, the time per sample is compared.
    """
    seconds, samples = row["seconds"], row["batch_size"] / first["batch_size"]
    ratios = sorted(
        samples * baseline_s / setting_s for baseline_s, setting_s in zip(first["seconds"], seconds, strict=True)
    )
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
def _apply_setting(trial: SettingTrial) -> Iterator[None]:
    """Context in which a trial's settings are applied and its job is at step 0; restores the number of threads."""
    threads, config = torch.get_num_threads(), trial.built.config
    set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
    seed_everything(config.seed, 1)  # all settings draw the same numbers
    trial.built.job.step = 0
    try:
        torch.set_num_threads(trial.setting.threads or threads)
        with name_setting_in_errors(trial.setting):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def name_setting_in_errors(setting: Setting) -> Iterator[None]:
    """Context that adds the setting's name to errors."""
    try:
        yield
    except (UserError, RunError) as error:
        error.args = (f"--try {setting.name}: {error}",)
        raise


def _parse_setting(name: str) -> Setting:
    overrides: list[str] = []
    threads = None
    for part in re.split(r"\+(?=[A-Za-z])", name):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key == "threads" and equals:
            if not (value.isascii() and value.isdecimal() and len(value) <= 4 and 1 <= int(value) <= _MAX_THREADS):
                raise UserError(f"--try {name}: found {part!r}, allowed is threads=N, N from 1 to {_MAX_THREADS}")
            threads = int(value)
        elif (key in _COUNT_SETTINGS or "." in key or key in _KEYS) and equals:
            overrides.append(f"{_COUNT_SETTINGS.get(key, key)}={value}")
        elif part.strip() in _NAMED_SETTINGS:
            overrides.append(_NAMED_SETTINGS[key])
        else:
            valid_names = [*_NAMED_SETTINGS, *_COUNT_SETTINGS, "threads"]
            allowed = ", ".join(word if word in _NAMED_SETTINGS else f"{word}=N" for word in valid_names)
            hint = suggest(key, valid_names, otherwise="")
            raise UserError(f"--try {name}: found {part!r}, allowed are {allowed} and KEY=VALUE of the config{hint}")
    keys = [override.partition("=")[0] for override in overrides]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"--try {name}: {twice} is given twice; put a comma between two settings")
    return Setting(name, tuple(overrides), threads)
