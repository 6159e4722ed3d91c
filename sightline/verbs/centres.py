"""`sightline data centres`: a file of reference points, predicted by a trained refiner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sightline.engine.distributed import start_world
from sightline.engine.precision import set_backends
from sightline.engine.run_loading import open_trained
from sightline.errors import escape_to_one_line
from sightline.predict.centre_files import centre_lines, find_centres
from sightline.verbs.common import load_config, write_document, write_file
from sightline.verbs.output import print_note, show_table

__all__ = ["CentresOptions", "centres"]


@dataclass(frozen=True)
class CentresOptions:
    """Options of `sightline data centres`."""

    run: Path
    data: Path
    overrides: tuple[str, ...]
    split: Literal["train", "test"]
    target: Path
    which: str = "last"
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


def centres(options: CentresOptions) -> int:
    """Write one line per frame of a split of a config's data set; the file is complete or not written."""
    refiner = open_trained(options.run, checkpoint=options.which, plugins=options.plugins)
    config, _ = load_config(options.data, options.overrides, options.plugins)
    set_backends(determinism=refiner.config.train.determinism, cudnn=refiner.config.train.cudnn)
    with start_world(device=options.device) as world:
        predicted = find_centres(refiner, config, split=options.split, world=world)
    write_file(options.target, centre_lines(predicted))
    _print_warnings(predicted.notes)
    rows: list[tuple[str, int | float]] = [
        ("frames", len(predicted.points_mm)),
        ("points", int(predicted.is_known.sum())),
    ]
    rows += [("centre_error_mm", predicted.error_mm), ("reference_error_mm", predicted.reference_error_mm)]
    show_table(f"{options.target}: {config.data.name}, {options.split}", ("what", "value"), rows)
    source = {"file": str(options.target), "run": str(options.run), "data": config.data.name, "split": options.split}
    write_document(options.json, {**source, **dict(rows), "notes": list(predicted.notes)})
    return 0


def _print_warnings(lines: Sequence[str]) -> None:
    for line in lines:
        print_note(escape_to_one_line(f"look at this: {line}"))
