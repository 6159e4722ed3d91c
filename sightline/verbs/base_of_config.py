"""Words on the base of a config that is written for a user's own data: why it, its weights, its time, the ways out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.config.reader import read_config
from sightline.contract.errors import UserError
from sightline.published.known_weights import find_known, find_on_machine, is_remote
from sightline.store.boxes.photo_bases import BASES, MEASURED_ON, OF_RANDOM_WEIGHTS, SECONDS, WITHOUT_WEIGHTS
from sightline.store.prepared.config_bases import ConfigBase


def describe_base(
    base: ConfigBase, overrides: Sequence[str], *, bases: Sequence[ConfigBase], num_samples: int | None, is_named: bool
) -> Iterator[str]:
    """Yield lines on the base of a config, and what a user can do without it; the network is not asked.

    Nothing is said of a set with a single base. `overrides` are those of the written config, `bases` those of the set,
    `num_samples` to train on, where the base is chosen by it; `is_named` by the user.
    """
    if len(bases) < 2:
        return
    try:
        config = read_config(Path(base.name), [*overrides])
    except UserError:
        return  # what is wrong is said where the config is read or trained
    yield f"builds on {base.name}" + ("" if is_named else f": {_describe_choice(base, num_samples)}")
    if num_samples is None:
        yield from (
            f"another base: --base {Path(row.name).name}: {row.reason}" for row in bases if row.name != base.name
        )
        return
    if BASES[0].num_samples is not None and num_samples < BASES[0].num_samples:
        yield OF_RANDOM_WEIGHTS
    if config.init is not None:
        yield describe_weights(config.init.source)
    fit = next((block.arguments for block in config.transforms.evaluate if block.name == "fit_image"), None)
    if fit is not None and config.train.epochs:
        size = f"{fit['width']}x{fit['height']}"
        yield _describe_time(base.name, num_samples, config.train.epochs, fit["height"] * fit["width"], size)
    if config.init is not None:
        yield (
            f"without these weights: --base {Path(WITHOUT_WEIGHTS).name}, from random ones, or init.from=FILE, a run "
            "or file of your own, of this same network: for one of another, name the base of that network, too"
        )


def describe_weights(name: str) -> str:
    """Describe initial weights by what is known without a network: bytes, licence, extra, and where their file lies."""
    row = find_known(name) if is_remote(name) else None
    if row is None:
        place = "is fetched" if is_remote(name) else ("is there" if Path(name).exists() else "is not there")
        return f"its weights: {name}, which {place}"
    path = find_on_machine(name)
    fetch = f"not on this machine: fetched by the training, or beforehand: sightline weights fetch {shlex.quote(name)}"
    extra = f"needs pip install 'sightline[{row.extra}]'" if row.extra else "needs no extra"
    return (
        f"its weights: {name}, {row.megabytes:g} MB, licence: {row.licence}; {extra}; "
        f"{fetch if path is None else f'on this machine: {path}'}"
    )


def _describe_choice(row: ConfigBase, num_photos: int | None) -> str:
    if num_photos is None:
        return row.reason
    than = "" if row.num_samples is None else f", fewer than {row.num_samples:,}"
    return f"{num_photos:,} photos to train on{than}; {row.reason}"


def _describe_time(base: str, num_photos: int, epochs: int, num_pixels: int, size: str) -> str:
    """Describe the time of a training by the measured time of a photo, which grows with its pixels."""
    if base not in SECONDS:
        return f"its time: {epochs} epochs at {size}; not measured"
    minutes = SECONDS[base] * num_photos * epochs * num_pixels / 320**2 / 60
    return (
        f"its time: {epochs} epochs of {num_photos:,} photos at {size} are some {minutes:,.0f} minutes of one core "
        f"({MEASURED_ON}: {SECONDS[base]:g} s a photo of 320x320), evaluations not counted"
    )
