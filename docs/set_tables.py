"""Tables of the data sets, as docs/tables.py writes them: what each reads, its arguments, its configs."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sightline.areas.pose.sets.depth_sets import DepthSpec
from sightline.config.argument_texts import explain_arguments
from sightline.config.own_config import configs_by_set
from sightline.contract.catalogue import find_modules
from sightline.contract.registry import data
from sightline.contract.schema import Parameter, describe_type, signature_parameters

FAMILIES = {
    "data_clouds": ("clouds", "contrast"),
    "data_scenes": ("scenes",),
    "data_lidar": ("scans",),
    "data_boxes3d": ("boxes3d",),
    "data_boxes": ("detect", "loading"),
    "data_depth": ("pose",),
}
"""Pages of data sets, and the rooms whose sets they list."""


def set_table(page: str) -> str:
    """The data sets of a page: what each is, the files that it reads, where these come from, and its configs."""
    lines = ["| set | what it is | files | from | configs |", "|---|---|---|---|---|"]
    first: dict[str, str] = {}
    for name in sets_of(page):
        card = _card(name)
        summary = " ".join(data.get_entry(name).summary.split()).removesuffix(".").partition(", prepared by ")[0]
        files = "; ".join(_describe_layouts(card.get("layouts", {}))) or ("none" if card else "-")
        files = files if first.setdefault(files, name) in (name, first.get("none")) else f"as `{first[files]}`"
        home, terms = card.get("home", ""), card.get("terms", "").removesuffix("; nothing is downloaded for you")
        source = "-" if "layout" in card else "your files"
        source = f"{home if ' ' in home else f'<{home}>'}; terms: {terms}" if home else source
        lines.append(f"| `{name}` | {_escape(summary)} | {files} | {source} | {_list_configs(name) or '-'} |")
    return "\n".join(lines)


def set_key_table(page: str) -> str:
    """Arguments of the data sets of a page, and options of preparing them: sets, allowed, default, meaning."""
    names = sets_of(page)
    lines = ["| argument | of | allowed | default | meaning |", "|---|---|---|---|---|"]
    for kind in ("data", "prepare"):
        rows: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        with_any = set()
        for name in names:
            for key, parameter in list_parameters(name, kind).items():
                rows[key, *_describe_parameter(parameter), _meaning(name, kind, key)].append(name)
                with_any.add(name)
        title = "in `data` of a config" if kind == "data" else "options of `data prepare`"
        lines.append(f"| **{title}** | | | | |")
        for (key, allowed, default, meaning), sets in sorted(rows.items()):
            lines.append(f"| `{key}` | {_name_sets(sets, with_any)} | {allowed} | {default} | {meaning} |")
    return "\n".join(lines)


def format_table() -> str:
    """Formats of labelled boxes: what each states beside class and box, and whether it can be written."""
    words = {
        "visible": "visible box", "head": "head", "is_ignored": "ignored boxes", "is_head_ignored": "ignored heads",
        "is_crowd": "crowds", "visible_share": "visible share", "area": "area", "undivided": "images of no split",
    }  # fmt: skip
    lines = ["| format | written | states, beside class and box |", "|---|---|---|"]
    for name in sets_of("data_boxes"):
        if (row := getattr(data.get_class(name), "label_format", None)) is not None and row.write is not None:
            held = ", ".join(word for key, word in words.items() if key in row.holds) or "nothing"
            lines.append(f"| `{name}` | {row.rounds or 'boxes as they are'} | {held} |")
    return "\n".join(lines)


def camera_table() -> str:
    """Published sets of depth images: frames, camera, cube and joints."""
    lines = [
        "| set | frames | image | fx, fy, u0, v0 | Y points | cube | joints | middle joint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in sets_of("data_depth"):
        if isinstance(spec := getattr(data.get_class(name), "spec", None), DepthSpec):
            camera, skeleton = spec.camera, spec.skeleton
            numbers = ", ".join(f"{number:g}" for number in (camera.fx, camera.fy, camera.u0, camera.v0))
            counts = spec.published
            frames = ", ".join(f"{part.replace('_', ' ')} {number:,}" for part, number in counts.items())
            frames = frames if len(counts) < 5 else f"{sum(counts.values()):,} in {len(counts)} parts"
            image, y_axis = f"{camera.width_px} x {camera.height_px}", "up" if camera.fy < 0 else "down"
            middle = skeleton.joint_names[skeleton.centre]
            cells = (f"`{name}`", frames, image, numbers, y_axis, f"{skeleton.cube_mm:g} mm", len(skeleton), middle)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def sets_of(page: str) -> list[str]:
    """The data sets of a page: computed ones, then published ones, then those of the reader's own files."""
    modules = find_modules("data")
    names = [name for name, module in modules.items() if not {*FAMILIES[page]}.isdisjoint(module.split("."))]

    def rank(name: str) -> tuple[int, str]:
        card = _card(name)
        return (0 if "layout" in card else 1 if "home" in card else 2), name

    return sorted(names, key=rank)


def _card(name: str) -> dict[str, Any]:
    card = data.get_class(name).card
    return {} if card is None else card()


def _describe_layouts(layouts: Any) -> Iterator[str]:
    for layout in layouts.values():
        if isinstance(layout, str):
            yield _escape(layout)
            continue
        facts = {key: layout[key] for key in ("points", "normals", "up_axis") if key in layout}
        texts = [f"{value:,}" if isinstance(value, int) else str(value) for value in facts.values()]
        shown = ", ".join(f"{key.replace('_', ' ')}: {text}" for key, text in zip(facts, texts, strict=True))
        yield _escape(f"{layout['title']}: {layout['looks_like']}" + (f" ({shown})" if shown else ""))


@functools.cache
def _list_configs(name: str) -> str:
    """The shipped configs of a set; where a folder has more than three, their common beginning and number."""
    bases = getattr(data.get_class(name), "config_bases", ())
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for config in configs_by_set().get(name) or [base.name for base in bases]:
        folders[config.partition("/")[0]].append(config)
    shown = (_name_configs(configs) for _, configs in sorted(folders.items()))
    return ", ".join(itertools.chain.from_iterable(shown))


def _name_configs(configs: list[str]) -> list[str]:
    """Configs of a folder, by name, or by their common beginning if there are more than three."""
    letters = itertools.takewhile(lambda column: len({*column}) == 1, zip(*configs, strict=False))
    start = "".join(column[0] for column in letters)
    is_short = len(configs) > 3 and not start.endswith("/")
    return [f"`{start}*` ({len(configs)})"] if is_short else [f"`{config}`" for config in configs]


def list_parameters(name: str, kind: str) -> dict[str, Parameter]:
    builder = data.get_class(name)
    function = builder if kind == "data" else builder.prepare
    fixed = ("split",) if kind == "data" else ("source", "target", "name", "progress")
    found = {} if function is None else signature_parameters(function)
    return {key: parameter for key, parameter in found.items() if key not in fixed}


def _describe_parameter(parameter: Parameter) -> tuple[str, str]:
    default = "required" if parameter.is_required else f"`{json.dumps(parameter.default, default=str)}`"
    return describe_type(parameter.annotation).replace("|", "\\|"), default


def _meaning(name: str, kind: str, key: str) -> str:
    return explain_arguments(kind, name, data.get_class(name), [key])[key]


def _name_sets(sets: list[str], among: set[str]) -> str:
    """The sets of a row: all, all but some, or these."""
    others = sorted(among - {*sets})
    if not others:
        return "all"
    if len(others) < len(sets):
        return f"all but {', '.join(f'`{name}`' for name in others)}"
    return ", ".join(f"`{name}`" for name in sets)


def _escape(text: str) -> str:
    """Text as Markdown shows it in a cell of a table."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_|\[\]])", r"\\\1", part) for part in parts[::2]]  # not what is code
    return "`".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "formats": format_table,
    "cameras": camera_table,
    **{f"{page}_sets": partial(set_table, page) for page in FAMILIES},
    **{f"{page}_keys": partial(set_key_table, page) for page in FAMILIES},
}
PAGES = {
    "formats": "data_boxes.md",
    "cameras": "data_depth.md",
    **{f"{page}_{table}": f"{page}.md" for page in FAMILIES for table in ("sets", "keys")},
}
"""Page of each table in docs/reference."""
