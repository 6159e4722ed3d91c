"""Writes the tables of docs/reference that follow from the code anew: .venv/bin/python docs/tables.py"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import set_tables  # beside this file

import sightline
from sightline import ops
from sightline.cli import SECTIONS
from sightline.commands.fields import Command, CommandParameter
from sightline.config import RunConfig
from sightline.contract.catalogue import find_modules
from sightline.contract.members import describe_members
from sightline.contract.registry import REGISTRIES
from sightline.contract.schema import describe_type
from sightline.contract.types import ComponentConfig
from sightline.doctor.finding import SEVERITIES
from sightline.ops.operator import OPERATORS
from sightline.workbench.check.suite import all_rules

REFERENCE = Path(__file__).with_name("reference")

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
    "evaluate.tile": "larger images are also evaluated in tiles of so many pixels a side, by a task that merges them",
    "evaluate.tile_overlap": "the share of a tile's side that neighbours have in common at least",
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


MORE = {
    "init": "../manual/own_parts.md",
    "data info": "data.md",
    "data prepare": "data.md",
    "data convert": "data_boxes.md#convert-labels",
    "data verify": "data.md",
    "data render": "data_views.md",
    "train": "../manual/train.md",
    "evaluate": "../manual/train.md#evaluation-and-the-best-checkpoint",
    "predict": "../manual/predict.md",
    "score": "../topics/detection.md#files-of-results",
    "check": "../manual/check.md",
    "fit": "../topics/fit.md",
    "compare": "../manual/compare.md",
    "view": "../topics/view.md",
    "report": "../topics/view.md#a-page-to-show",
    "runs list": "../topics/series.md#list-and-compare-runs",
    "runs diff": "../topics/series.md#list-and-compare-runs",
    "runs push": "../topics/series.md#share-a-run",
    "runs pull": "../topics/series.md#share-a-run",
    "describe": "../topics/view.md#modules-and-their-cost",
    "profile": "../topics/speed.md#where-the-time-goes",
    "weights list": "../topics/weights.md#weights-that-are-fetched",
    "weights fetch": "../topics/weights.md#weights-that-are-fetched",
    "weights convert": "../topics/weights.md#published-files",
    "compress run": "../topics/compress.md",
    "compress search": "../topics/compress.md",
    "compress report": "../topics/compress.md",
    "compress size": "../topics/compress.md",
    "export": "../topics/deploy.md",
    "serve": "../topics/deploy.md#serve-over-http",
    "study": "../topics/series.md#compare-settings-sightline-study",
    "sweep": "../topics/series.md#search-values-sightline-sweep",
}
"""Page that explains a command, where there is one."""


def command_table() -> str:
    """Every command in the order of `sightline --help`: its arguments, what it does, and the page about it."""
    records = _list_commands()
    assert MORE.keys() <= {record.name for record in records}
    rows = []
    for record in records:
        words = [record.name, *(parameter.metavar or "" for _, parameter in record.parameters() if not parameter.flag)]
        summary = record.summary().removesuffix(".")
        more = f"[{summary}]({MORE[record.name]})" if record.name in MORE else summary
        rows.append(f"| `{_escape(' '.join(words))}` | {_prose(more)} |")
    return "\n".join(["| command | does |", "|---|---|", *rows])


def option_table() -> str:
    """Every option with its default, once for all commands in which it means the same."""
    records, commands = _list_commands(), dict[tuple[str, str], list[str]]()
    for record in records:
        hints = typing.get_type_hints(record)
        for name, parameter in record.parameters():
            if parameter.flag:
                commands.setdefault(_describe_option(parameter, hints[name]), []).append(record.name)
    rows = [f"| `{option}` | {_name_commands(names, records)} | {text} |" for (option, text), names in commands.items()]
    return "\n".join(["| option | of | meaning |", "|---|---|---|", *rows])


def help_texts() -> str:
    """The text of `--help` of every command of which it says more than its first line, with its examples."""
    texts = []
    for record in _list_commands():
        _, _, more = inspect.cleandoc(record.__doc__ or "").partition("\n\n")
        lines = [more, ""] if more else []
        for title, parts in record.sections.items():
            wrapped = (textwrap.wrap(f"{part}: {text}", 116, subsequent_indent="  ") for part, text in parts)
            lines += [f"{title}:", *(f"  {line}" for line in itertools.chain.from_iterable(wrapped)), ""]
        lines += [f"sightline {line}" for line in record.examples]
        if more:
            texts.append("\n".join([f"### {record.name}", "", "```text", *lines, "```"]))
    return "\n\n".join(texts)


def _list_commands() -> list[type[Command]]:
    return [record for records in SECTIONS.values() for record in records]


def _describe_option(parameter: CommandParameter, hint: Any) -> tuple[str, str]:
    """Return an option as it is written, with the words that it allows, and its meaning with its default."""
    default, choices = parameter.default, "|".join(str(choice) for choice in _list_choices(hint))
    words = parameter.metavar or choices
    is_stated = default not in (None, ()) and not isinstance(default, bool) and default is not dataclasses.MISSING
    ending = "; required" if default is dataclasses.MISSING else f"; default `{default}`" * is_stated
    text = re.sub(r" \[([^]]*)\]$", r"; default \1", parameter.help) + ending
    return _escape(f"{parameter.flag} {words}".strip()), _prose(text)


def _list_choices(hint: Any) -> list[Any]:
    """List the values of the literals in a type."""
    parts = typing.get_args(hint)
    return [*parts] if typing.get_origin(hint) is typing.Literal else list(itertools.chain(*map(_list_choices, parts)))


def _name_commands(names: list[str], records: list[type[Command]]) -> str:
    left_out = [record.name for record in records if record.name not in names]
    if len(left_out) < len(names) // 2:
        return "all" + f" but {', '.join(left_out)}" * bool(left_out)
    return ", ".join(names)


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _prose(text: str) -> str:
    """Return the text of a cell in which no word in angle brackets reads as HTML."""
    return _escape(re.sub(r"(`[^`]*`)|<(?=[a-z])", lambda match: match[1] or "&lt;", text))


def rule_table() -> str:
    """Every rule: its code, the gravity of its findings, what every correct program has, and what to do if not."""
    rules = {(rule.code, SEVERITIES.index(rule.severity), rule.holds, rule.action) for rule in all_rules()}
    rows = [
        f"| `{code}` | {SEVERITIES[gravity]} | {_prose(holds)} | {_prose(action)} |"
        for code, gravity, holds, action in sorted(rules)
    ]
    return "\n".join(["| code | severity | what every correct program has | what to do |", "|---|---|---|---|", *rows])


def kind_table() -> str:
    """Every kind of component: its base class, the function that registers one, and what lists those there are."""
    functions = {id(getattr(add, "__self__", None)): name for name, add in vars(sightline.register).items()}
    rows = [
        f"| `{kind}` | {registry.noun} | `sightline.{registry.base.__name__}` | "
        f"`@sightline.register.{functions[id(registry)]}(NAME)` |"
        for kind, registry in REGISTRIES.items()
    ]
    return "\n".join(
        [
            "| kind, as `sightline list KIND` takes it | one is a | base class | registered by |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def function_table() -> str:
    """Every other name of `import sightline`: its arguments, and the first sentence of its docstring."""
    lines = []
    for name in sorted({*sightline.__all__} - find_modules("public").keys() - {"__version__"}, key=str.lower):
        value = getattr(sightline, name)
        text = _first_sentence(" ".join(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].split()))
        arguments = _list_arguments(value) if inspect.isfunction(value) else ""
        text += f": {', '.join(f'`{each}`' for each in value.__all__)}" if name == "metrics" else ""
        lines.append(f"| `sightline.{name}{arguments}` | {_escape(text)} |")
    return "\n".join(["| name | what it is |", "|---|---|", *lines])


def _list_arguments(function: types.FunctionType) -> str:
    """Return the arguments of a function in brackets, without their types."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[^.])\. (?=[A-Z`])", text)[0].removesuffix(".")


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
        text = _first_sentence(_describe(importlib.import_module(module), name))
        lines.append(f"| `sightline.{name}` | {_escape(text)} |")
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


TABLES = {
    "commands": command_table,
    "options": option_table,
    "help": help_texts,
    "config": config_table,
    "rules": rule_table,
    "kinds": kind_table,
    "members": member_table,
    "public": public_table,
    "functions": function_table,
    "ops": operator_table,
} | set_tables.TABLES
PAGES = {name: REFERENCE / f"{name}.md" for name in TABLES} | {
    "options": REFERENCE / "commands.md",
    "help": REFERENCE / "commands.md",
    "rules": REFERENCE / "checks.md",
    "kinds": REFERENCE / "members.md",
    "public": REFERENCE / "members.md",
    "functions": REFERENCE / "python.md",
    **{name: REFERENCE / page for name, page in set_tables.PAGES.items()},
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
