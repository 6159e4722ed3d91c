"""`sightline weights`: known weights, files that are fetched, and run directories made of published weights."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from sightline.commands.weights import WeightsConvertOptions, WeightsFetchOptions, WeightsListOptions
from sightline.contract.errors import UserError
from sightline.contract.plugins import load_plugins
from sightline.published.files import find_parts, is_darknet
from sightline.published.known_weights import fetch_weights, find_on_machine, is_remote, list_known
from sightline.runs.output_files import write_document
from sightline.store.prepared.prepared_set import compute_sha256
from sightline.verbs.output import print_note, print_tree

_ENDINGS = frozenset({".ckpt", ".pt", ".pth", ".safetensors", ".t7"})
"""Endings of files of weights."""


_KEYS = ("name", "about", "network", "megabytes", "sha256", "licence", "source", "extra")
"""What the list says of weights, besides the path of their file."""


def list_weights(options: WeightsListOptions) -> int:
    """Print the known weights, and whether their files are on this machine."""
    rows = []
    for row in list_known():
        path = find_on_machine(row.name)
        rows.append({**{key: getattr(row, key) for key in _KEYS}, "path": None if path is None else str(path)})
        sys.stdout.write(f"{row.name}\n")
        place = "not on this machine" if path is None else path
        extra = f"; needs pip install 'sightline[{row.extra}]'" if row.extra else ""
        for line in (f"{row.about}: {row.network}", f"{row.megabytes} MB from {row.source}{extra}"):
            sys.stdout.write(f"    {line}\n")
        sys.stdout.write(f"    licence: {row.licence}; {place}\n")
    print_note("in a config: init.from=NAME; beforehand, on a machine with a network: sightline weights fetch NAME")
    print_note("layouts of other files: sightline list layouts; to make a run of one: sightline weights convert FILE")
    write_document(options.json, {"weights": rows})
    return 0


def fetch(options: WeightsFetchOptions) -> int:
    """Fetch weights, and print where they lie; the line says if few digits of their SHA-256 were stated."""
    name = options.weights
    if not is_remote(name):
        raise UserError(
            f"weights fetch: {name} is no name of weights that are fetched: write one of 'sightline weights list', "
            "hf://OWNER/REPO, or https://HOST/FILE#sha256=DIGEST"
        )
    fetched = fetch_weights(name)
    document = {
        "name": fetched.name,
        "path": str(fetched.path),
        "bytes": fetched.path.stat().st_size,
        "sha256": compute_sha256(fetched.path),
    }
    print_tree(document)
    write_document(options.json, document)
    return 0


def convert(options: WeightsConvertOptions) -> int:
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
    """Raise UserError, which names `weights convert`, if a path that `command` was given holds published weights."""
    is_file = path.is_file() and (path.suffix.lower() in _ENDINGS or is_darknet(path))
    if is_file or (path.is_dir() and find_parts(path)):
        raise UserError(
            f"{command}: {path} holds weights; make a run of them: "
            f"sightline weights convert {shlex.quote(str(path))} --to DIR"
        )
