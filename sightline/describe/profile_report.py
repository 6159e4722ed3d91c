"""Document of a profile: tables by part of the step, kind of work and module, each summing to the step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sightline.describe.profiler_trace import Cost, Key
from sightline.describe.profiling import Profile

__all__ = ["profile_document", "sum_rows"]

Costs = list[tuple[Key, Cost]]


def profile_document(profile: Profile) -> dict[str, Any]:
    """Build the document: seconds and peak bytes; `parts`, `kinds`, and `modules` with `outside` each sum to the step.

    Rows of `modules` are the costs of the module itself; `seconds_with_inner` adds those of inner modules.
    """
    costs = profile.costs
    parts, kinds, modules = (_group_costs(costs.costs, key_index) for key_index in (0, 2, 1))
    outside = modules.pop(None, [])
    inner = {
        path: sum(cost.seconds for name, rows in modules.items() if _is_inside(name, path) for _, cost in rows)
        for path in costs.calls
    }
    return {
        "num_steps": costs.num_steps,
        "step_s": costs.step_s,
        "resident_bytes": costs.resident_bytes,
        "peak_bytes": costs.peak_bytes,
        "parts": [
            {"part": part, **_row(rows), "seconds_in_modules": sum(c.seconds for key, c in rows if key[1] is not None)}
            for part, rows in parts.items()
        ],
        "kinds": [
            {"kind": kind, **_row(rows), "peak_bytes": costs.kind_peaks.get(kind)} for kind, rows in kinds.items()
        ],
        "modules": [
            {"path": path, "class": profile.places[path][0], "place": profile.places[path][1], "calls": calls}
            | _row(modules.get(path, []))
            | {"seconds_with_inner": inner[path], "peak_bytes": costs.peaks.get(path)}
            for path, calls in costs.calls.items()
        ],
        "outside": _row(outside),
    }


def sum_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the additive columns of several rows."""
    rows = list(rows)
    return {name: sum(row[name] for row in rows) for name in ("seconds", "seconds_backward", "bytes_at_peak")}


def _group_costs(costs: Mapping[Key, Cost], key_index: int) -> dict[Any, Costs]:
    groups: dict[Any, Costs] = {}
    for key, cost in costs.items():
        groups.setdefault(key[key_index], []).append((key, cost))
    return groups


def _row(rows: Costs) -> dict[str, Any]:
    return sum_rows(
        {
            "seconds": cost.seconds,
            "seconds_backward": cost.seconds if key[0] == "backward" else 0.0,
            "bytes_at_peak": cost.bytes_at_peak,
        }
        for key, cost in rows
    )


def _is_inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")
