"""Config over a preset, written for data of the user's own: only what differs from the preset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.config.faults import ConfigFaults
from sightline.config.overrides import apply_overrides
from sightline.config.reader import read_with_bases
from sightline.config.shipped import config_name, shipped_configs
from sightline.config.yaml_writer import render_plain
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest


def list_presets(set_name: str) -> list[str]:
    """List the shipped configs of a data set, those for a CPU first."""
    return sorted(configs_by_set().get(set_name, []), key=lambda name: (not name.endswith("_cpu"), name))


def find_preset(name: str) -> str:
    """Return the whole name of the shipped config that `name` means, with its folder or without.

    Raises UserError for a name of none, and of several.
    """
    names = [config_name(config.path) for config in shipped_configs()]
    meant = [known for known in names if name.removesuffix(".yaml") in (known, Path(known).name)]
    if len(meant) == 1:
        return meant[0]
    hint = (
        f"; there are {', '.join(meant)}"
        if meant
        else suggest(name, [*names, *(Path(n).name for n in names)], otherwise="")
    )
    raise UserError(f"--base {name}: is no shipped config{hint} ('sightline list configs' prints all)")


def configs_by_set() -> dict[str, list[str]]:
    """Return the names of the shipped configs of `configs/` by the data set that they name."""
    configs: defaultdict[str, list[str]] = defaultdict(list)
    for name in (config_name(config.path) for config in shipped_configs() if config.path.startswith("configs/")):
        configs[read_shipped(name)["data"]["name"]].append(name)
    return dict(configs)


def read_shipped(name: str) -> dict[str, Any]:
    """Read the tree of a shipped config, with its bases merged."""
    faults = ConfigFaults()
    tree: Any = read_with_bases(Path(name), faults).plain()
    faults.raise_any()
    return dict(tree)


def render_over(preset: str, overrides: Sequence[str], *, heading: Sequence[str] = ()) -> str:
    """Render a config, as YAML, that is based on a preset and says what `key=value` overrides change in it.

    Lists are written whole. `heading` are lines of its first comment. Raises ConfigError for overrides that are none.
    """
    faults = ConfigFaults()
    tree = read_with_bases(Path(preset), faults)
    before: Any = tree.plain()
    after: Any = apply_overrides(tree, overrides, faults).plain()
    faults.raise_any()
    changed = _list_changes(before, after)
    data = {"name": after["data"]["name"], **changed.pop("data", {})}  # said, although the preset may say it too
    comment = "".join(f"# {line}\n" for line in heading)
    return f"{comment}base: {preset}\n{render_plain({'data': data, **changed})}"


def _list_changes(before: Any, after: Any) -> Any:
    """Return the part of a mapping that differs from another; of blocks with another name, the whole block."""
    if before.get("name") != after.get("name"):
        return after
    changes = {}
    for key, value in after.items():
        old = before.get(key)
        if value != old:
            changes[key] = _list_changes(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return changes
