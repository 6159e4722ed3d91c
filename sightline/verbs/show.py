"""`sightline show` and `sightline list`: what a config resolves to, and what there is to configure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.config import render
from sightline.config.show import to_plain
from sightline.errors import UserError
from sightline.plugins import load_plugins
from sightline.registry import FACTS, REGISTRIES, Entry
from sightline.schema import describe_type, nearest
from sightline.verbs.common import config_of, write_document

__all__ = ["list_components", "show"]


def show(path: Path, overrides: Sequence[str], *, plugins: Sequence[Path], json: Path | None) -> int:
    """Print the resolved config; fed back in, it gives an equal run."""
    config, _ = config_of(path, overrides, plugins)
    sys.stdout.write(render(config, origins=True))
    origins = {place: str(where) for place, where in config.origins.items()}
    write_document(json, {"config": to_plain(config), "origins": origins})
    return 0


def list_components(kind: str | None, *, plugins: Sequence[Path], json: Path | None) -> int:
    """Print the components of one kind, or of all."""
    load_plugins(plugins)
    if kind is not None and kind not in REGISTRIES:
        raise UserError(f"list: there is no kind '{kind}'{nearest(kind, REGISTRIES)}")
    document: dict[str, Any] = {}
    for name, registry in REGISTRIES.items():
        if kind in (None, name):
            entries = [registry.entry_of(each) for each in registry.names()]
            document[name] = [_describe(entry) for entry in entries]
            sys.stdout.write(f"{name}\n" + "".join(map(_render, document[name])))
    write_document(json, document)
    return 0


def _describe(entry: Entry) -> dict[str, Any]:
    arguments = [
        {
            "name": name,
            "allowed": "from the data set" if name in FACTS else describe_type(parameter.annotation),
            **({} if parameter.is_required else {"default": to_plain(parameter.default)}),
        }
        for name, parameter in entry.parameters.items()
    ]
    return {"name": entry.name, "summary": entry.summary, "source": entry.source, "arguments": arguments}


def _render(component: dict[str, Any]) -> str:
    lines = [f"  {component['name']}: {component['summary']}"]
    if component["source"] and component["source"] != component["summary"]:
        lines.append(f"      source: {component['source']}")
    for argument in component["arguments"]:
        default = f" [{argument['default']}]" if "default" in argument else ""
        lines.append(f"      {argument['name']}: {argument['allowed']}{default}")
    return "\n".join(lines) + "\n"
