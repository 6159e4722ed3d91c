"""`sightline weights`: a run directory made of published weights, and the command line that other verbs name for it."""

from __future__ import annotations

import shlex
from pathlib import Path

from sightline.commands.run import WeightsOptions
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.published.files import find_parts, is_darknet
from sightline.runs.output_files import write_document
from sightline.verbs.output import print_note, print_tree

_ENDINGS = frozenset({".ckpt", ".pt", ".pth", ".safetensors", ".t7"})
"""Endings of files of weights."""


def weights(options: WeightsOptions) -> int:
    """Convert published weights to a run directory; print what was read and what was assumed."""
    from sightline.workbench.weights.conversion import convert_published_weights

    converted = convert_published_weights(
        options.file,
        layout=options.layout,
        target=options.target,
        config_path=options.config,
        data_name=options.data,
        overrides=options.words,
        plugins=load_plugins(options.plugins),
    )
    for line in converted.notes:
        print_note(line)
    print_tree({**converted.lineage, "run": str(converted.path)})
    if converted.lineage["assumed"]:
        assumed = ", ".join(f"model.{name}" for name in converted.lineage["assumed"])
        print_note(
            f"no tensor shows {assumed}: the published values are used; if the file differs, set them by key=value"
        )
    write_document(options.json, {**converted.lineage, "run": str(converted.path), "notes": list(converted.notes)})
    return 0


def refuse_weights(path: Path, *, command: str) -> None:
    """Raise UserError, which names `sightline weights`, if a path that `command` was given holds published weights."""
    is_file = path.is_file() and (path.suffix.lower() in _ENDINGS or is_darknet(path))
    if is_file or (path.is_dir() and find_parts(path)):
        raise UserError(
            f"{command}: {path} holds weights; make a run of them: sightline weights {shlex.quote(str(path))} --to DIR"
        )
