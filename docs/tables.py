"""Writes the tables of docs/reference that follow from the code anew: .venv/bin/python docs/tables.py"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import re
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sightline import ops
from sightline.areas.pose.sets.depth_sets import DepthSpec
from sightline.config import RunConfig
from sightline.config.faults import ConfigFaults
from sightline.config.reader import read_with_bases
from sightline.config.shipped import config_name, shipped_configs
from sightline.contract.catalogue import find_modules
from sightline.contract.members import describe_members
from sightline.contract.registry import REGISTRIES, data
from sightline.contract.schema import Parameter, describe_type, signature_parameters
from sightline.contract.types import ComponentConfig
from sightline.ops.operator import OPERATORS
from sightline.workbench.check.suite import all_rules

REFERENCE = Path(__file__).with_name("reference")
SET_KEYS = json.loads(Path(__file__).with_name("set_keys.json").read_text(encoding="utf-8"))
"""Meaning of an argument (`data`), or of an option of preparing, by its name, or by SET.NAME where it differs."""
FAMILIES = {
    "data_clouds": ("clouds", "contrast"),
    "data_scenes": ("scenes",),
    "data_lidar": ("scans",),
    "data_boxes": ("detect", "loading"),
    "data_depth": ("pose",),
}
"""Pages of data sets, and the rooms whose sets they list."""

MEANING = {
    "name": "names the run's folder; left out, it is the config's file name",
    "data": "the data set",
    "model": "the model",
    "losses": "their sum, each times its `weight` (a key of every block here, default 1), is minimised; a weight may "
    "move, see [training](../manual/train.md#weights-of-losses)",
    "metrics": "what evaluation measures",
    "optimizer": "the optimiser; also `groups`, `decay`, `frozen`, `layer_decay`, see [training](../manual/train.md)",
    "seed": "of every random draw",
    "task": "what is predicted from the model's outputs",
    "schedule": "the factor of the learning rate at each step",
    "transforms.train": "applied in order to training batches",
    "transforms.evaluate": "applied to evaluated batches, and stored with the run",
    "transforms.vote": "applied after those of `evaluate`, before every voting pass but the first",
    "train.epochs": "passes over the training part",
    "train.batch_size": "samples per optimiser step, over all processes and micro-batches; `auto`: "
    "[the largest that fits on the GPU](../manual/train.md#the-largest-batch-that-fits)",
    "train.steps": "end after this many steps, where that is earlier",
    "train.micro_batches": "split each step into this many backward passes; the numbers stay the same",
    "train.tail": "train on an epoch's shorter last batch, or drop it",
    "train.clip_norm": "largest norm of the whole gradient",
    "train.ema_decay": "keep an average of the weights, which is then what is evaluated",
    "train.precision": "number format, see [training](../manual/train.md)",
    "train.determinism": "see [training](../manual/train.md)",
    "train.cudnn": "which layers may use cuDNN on a GPU, see [training](../manual/train.md#kernels-of-a-gpu)",
    "train.compile": "run the model through `torch.compile`",
    "train.early_stopping": "end after evaluations without [progress](../manual/train.md#early-stopping)",
    "train.early_stopping.patience": "how many of them, in a row",
    "train.early_stopping.min_change": "a smaller gain of `evaluate.metric` is none",
    "train.graph": "on a GPU, replay steps as a [CUDA graph](../topics/speed.md#on-a-gpu) if possible; `off` never",
    "evaluate.metric": "what chooses the best checkpoint; any number that a metric of the run computes",
    "evaluate.every": "epochs between evaluations; the last step is always evaluated",
    "evaluate.batch_size": "samples per evaluated batch",
    "evaluate.mode": "whether a higher or a lower figure is better; null: as the metric states",
    "evaluate.select": "the part that chooses `best`: a held-out tenth of the training part, or the test part",
    "evaluate.votes": "predictions averaged over this many passes; needs `transforms.vote`",
    "init": "start from the weights of another run; a mapping with the keys below",
    "init.from": "a run directory or a checkpoint",
    "init.modules": "take this sub-module of the source alone",
    "init.into": "fill this sub-module alone; null is that of `modules` if the model has it, else the whole model",
    "init.may_be_missing": "patterns of names that need not match, such as `head.*`",
    "compress": "weights that are quantised after `init`, see [compression](../topics/compress.md)",
    "compress.policy": "what each named weight is stored as, or the path of a file of it, whose content the run keeps",
    "compress.gradient": "at a codebook's number, the mean or the sum over its weights",
    "teacher": "a trained run that losses compare with, see [compression](../topics/compress.md#distil)",
    "teacher.from": "a run directory or a checkpoint",
    "teacher.sha256": "of its weights; others are refused. A run notes it, leave it out",
    "checkpoint.every": "epochs between checkpoints; every evaluated step has one too",
    "checkpoint.every_steps": "steps between checkpoints, besides",
    "checkpoint.keep_last": "how many are kept, besides `best`",
    "loader.workers": "processes that read ahead; 0 for sets in memory",
    "loader.prefetch": "batches that each of them reads ahead",
    "loader.transforms": "`auto`: on a GPU those of sets in memory run there, if they have the same numbers",
    "log.every": "steps between training lines",
    "log.tensorboard": "write TensorBoard event files",
    "log.wandb": "write to Weights & Biases",
    "log.mlflow": "write to MLflow at this tracking URI: folder, database or server ([logs](../manual/train.md#logs))",
    "log.gradients": "also write and draw the norm of each layer's gradient",
    "log.curves": "draw losses and metrics over the steps as `results.svg` when the training ends",
    "checks.skip": "codes of checks that this run declares it does not want",
    "expect": "what must hold of layers, see [a few samples](../topics/fit.md#expectations)",
    "distributed.sync_batch_norm": "batch statistics over all processes",
    "distributed.timeout_s": "seconds after which a collective that other processes do not join ends the run",
}


def config_table() -> str:
    """Every key of a config: what is allowed, the default, what it means."""
    rows = list(_rows(RunConfig, ""))
    unexplained = {row[0] for row in rows} ^ MEANING.keys()
    assert not unexplained, f"MEANING of {Path(__file__).name} and RunConfig differ in {sorted(unexplained)}"
    lines = [f"| `{key}` | {allowed} | {default} | {MEANING[key]} |" for key, allowed, default in rows]
    return "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *lines])


def relation_table() -> str:
    """A row for each rule: what it asks of a run, of a module, its loss and its loaders, or of a loop."""
    rows = sorted((rule.code, rule.holds, ", ".join(rule.causes)) for rule in all_rules())
    lines = [f"| `{code}` | {holds} | {causes} |" for code, holds, causes in rows]
    return "\n".join(["| code | holds in every correct program | causes |", "|---|---|---|", *lines])


def member_table() -> str:
    """Every member of the base class of a kind: whether a component has to define it, and what it is for."""
    nouns: dict[tuple[str, str, str], list[str]] = {}
    for kind, registry in REGISTRIES.items():
        parts = [part for part in registry.base.__mro__ if part.__module__.startswith("sightline.")]
        for name, member in ((name, member) for part in parts for name, member in describe_members(part).items()):
            if kind != "optimizers":  # functions
                nouns.setdefault((name, "" if member.has_default else "yes", member.text), []).append(registry.noun)
    lines = [f"| {', '.join(kinds)} | {' | '.join((f'`{n}`', *more))} |" for (n, *more), kinds in nouns.items()]
    return "\n".join(["| component | member | required | meaning |", "|---|---|---|---|", *lines])


def public_table() -> str:
    """Every name of `import sightline` for parts of one's own: what it is, by the first sentence of its docstring."""
    lines = []
    for name, module in sorted(find_modules("public").items(), key=lambda pair: pair[0].lower()):
        text = re.split(
            r"(?<=[^.])\. (?=[A-Z`])", _describe(importlib.import_module(module), name).replace("|", "\\|")
        )[0]
        lines.append(f"| `sightline.{name}` | {text.removesuffix('.')} |")
    return "\n".join(["| name | what it is |", "|---|---|", *lines])


def _describe(module: ModuleType, name: str) -> str:
    """The first paragraph of the docstring of a class or function, or of the text below a constant, in one line."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return " ".join(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].split())
    body = ast.parse(inspect.getsource(module)).body
    for node, after in itertools.pairwise(body):
        targets = {target.id for target in ast.walk(node) if isinstance(target, ast.Name)}
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in targets and isinstance(after, ast.Expr):
            return " ".join(ast.literal_eval(after.value).split("\n\n")[0].split())
    raise AssertionError(f"{name} of {module.__name__} has no text below it")


def operator_table() -> str:
    """Every public operator: its arguments, what it does, and how many kernels it launches on CUDA."""
    rows = []
    for name in sorted(ops.__all__, key=str.lower):
        value = getattr(ops, name)
        text = inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].replace("|", "\\|")
        arguments = "" if inspect.isclass(value) else f"({', '.join(inspect.signature(value).parameters)})"
        operator = OPERATORS.get(name)
        launches = "-" if operator is None or operator.launches is None else operator.launches
        rows.append(f"| `{name}{arguments}` | {' '.join(text.split()).split('. ')[0].rstrip('.')} | {launches} |")
    return "\n".join(["| name | what it does | launches |", "|---|---|---|", *rows])


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
        source = (
            f"{home if ' ' in home else f'<{home}>'}; {terms}" if home else "-" if "layout" in card else "your files"
        )
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
def _configs_by_set() -> dict[str, list[str]]:
    """The shipped configs by the data set that they name."""
    configs: defaultdict[str, list[str]] = defaultdict(list)
    for name in (config_name(config.path) for config in shipped_configs() if config.path.startswith("configs/")):
        faults = ConfigFaults()
        tree: Any = read_with_bases(Path(name), faults).plain()
        faults.raise_any()
        configs[tree["data"]["name"]].append(name)
    return configs


def _list_configs(name: str) -> str:
    """The shipped configs of a set; where a folder has more than three, their common beginning and number."""
    preset = getattr(data.get_class(name), "preset", "")
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for config in _configs_by_set().get(name) or filter(None, [preset]):
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
    meanings = SET_KEYS[kind]
    assert key in meanings or f"{name}.{key}" in meanings, f"set_keys.json: say what {key} of {name} means ({kind})"
    return str(meanings.get(f"{name}.{key}", meanings.get(key)))


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
    "config": config_table,
    "relations": relation_table,
    "members": member_table,
    "public": public_table,
    "ops": operator_table,
    "formats": format_table,
    "cameras": camera_table,
    **{f"{page}_sets": partial(set_table, page) for page in FAMILIES},
    **{f"{page}_keys": partial(set_key_table, page) for page in FAMILIES},
}
PAGES = {name: REFERENCE / f"{name}.md" for name in TABLES} | {
    "ops": REFERENCE.parent / "ops.md",
    "public": REFERENCE / "python.md",
    "relations": REFERENCE / "checks.md",
    "formats": REFERENCE / "data_boxes.md",
    "cameras": REFERENCE / "data_depth.md",
    **{f"{page}_{table}": REFERENCE / f"{page}.md" for page in FAMILIES for table in ("sets", "keys")},
}


def with_table(name: str, text: str) -> str:
    """The text of a page of the reference with its marked table as it should be."""
    start, end = f"<!-- {name}: written by docs/tables.py -->\n", f"<!-- end of {name} -->"
    before, has_start, rest = text.partition(start)
    _, has_end, after = rest.partition(end)
    lost = [mark.strip() for mark, is_there in ((start, has_start), (end, has_end)) if not is_there]
    assert not lost, f"{PAGES[name]} lost a mark of its table: {', '.join(lost)}"
    return f"{before}{start}{TABLES[name]()}\n{end}{after}"


def _rows(section: type, path: str) -> Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        key = field.metadata.get("key", field.name)
        if key is None:
            continue
        inner = _section_in(hints[field.name])
        if inner is None or _is_optional(hints[field.name]):
            yield f"{path}{key}", _allowed(hints[field.name]), _default(field)
        if inner is not None:
            yield from _rows(inner, f"{path}{key}.")


def _section_in(hint: Any) -> type | None:
    return next(
        (member for member in _members(hint) if dataclasses.is_dataclass(member) and member is not ComponentConfig),
        None,
    )  # type: ignore[return-value]


def _is_optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _allowed(hint: Any) -> str:
    if hint is ComponentConfig:
        return "a component block"
    if hint == tuple[ComponentConfig, ...]:
        return "a list of component blocks"
    if _section_in(hint) is not None:
        return "a mapping, or null"
    return describe_type(hint).replace("|", "\\|")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return "the file's name" if field.name == "name" else "required"
    if isinstance(value, ComponentConfig):
        return f"`{value.name}`"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    for name, page in PAGES.items():
        page.write_text(with_table(name, page.read_text()))
