"""`sightline show`, `list`, `copy` and `init`: resolved configs, components, the package's configs, new projects."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from sightline.commands.look import CopyOptions, InitOptions, ListOptions, ShowOptions
from sightline.config import RunConfig, render_config
from sightline.config.argument_texts import explain_arguments, strip_links
from sightline.config.plain_values import to_plain
from sightline.config.shipped import ShippedConfig, config_name, copy_shipped, make_project, shipped_configs
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import UserError
from sightline.contract.metric import is_higher_better
from sightline.contract.plugins import find_plugin, load_plugins
from sightline.contract.registry import (
    DATA_FACTS,
    REGISTRIES,
    Registry,
    RegistryEntry,
    locate_errors,
    metrics,
    optimizers,
)
from sightline.contract.schema import describe_type, suggest
from sightline.contract.types import SourceLocation
from sightline.engine.build import build_losses
from sightline.engine.learnt_losses import LearntLosses
from sightline.engine.optimizers import ModuleRate, OptimizerSpec, format_module_rates
from sightline.engine.run_loading import open_run
from sightline.instrument.random_state import preserve_random_state
from sightline.published.rows import list_layouts, list_names
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.runs.output_files import write_document
from sightline.verbs.output import load_config, print_note

WIDTH = 110
INDEX_WIDTH = 79
OTHER_LISTS = ("configs", "layouts")
"""Kinds of `sightline list` that are not components."""


def show(options: ShowOptions) -> int:
    """Print the resolved config, which as a config file gives an equal run."""
    config = load_config(options.config, options.overrides, options.plugins)
    config = _add_origin_of_mode(config)
    sys.stdout.write(render_config(config, origins=True))
    origins = {path_in_config: str(origin) for path_in_config, origin in config.origins.items()}
    document = {"config": to_plain(config), "origins": origins}
    lineage = read_lineage(options.config if options.config.is_dir() else options.config.parent)
    if lineage is not None:
        print_note(describe_lineage(lineage))
        document["lineage"] = lineage
    rates = _find_rates(config, options.config)
    for line in format_module_rates(rates):
        print_note(line)
    if rates:
        document["rates"] = [rate._asdict() for rate in rates]
    write_document(options.json, document)
    return 0


def _add_origin_of_mode(config: RunConfig) -> RunConfig:
    """Return the config with the origin of a default `evaluate.mode`: the metric whose class defines the direction."""
    figure = config.evaluate.metric
    direction_by_metric = {c.name: is_higher_better(metrics.get_class(c), figure) for c in config.metrics}
    directions = {better for better in direction_by_metric.values() if better is not None}
    if config.evaluate.mode is not None or len(directions) != 1:
        return config
    (better,), names = (
        directions,
        " or ".join(f"'{name}'" for name, direction in direction_by_metric.items() if direction is not None),
    )
    origin = SourceLocation(f"{'max' if better else 'min'}, by the metric {names}", path="evaluate.mode")
    return dataclasses.replace(config, origins={**config.origins, "evaluate.mode": origin})


def _find_rates(config: RunConfig, path: Path) -> tuple[ModuleRate, ...]:
    """Return the learning rate of each module if modules differ; if unknown, print a note and return nothing.

    This needs the data set's facts and the model, whose errors `check` and `train` report.
    """
    recipe: OptimizerSpec = optimizers.build(config.optimizer, facts={})
    if not recipe.has_module_rates:
        return ()
    try:
        with preserve_random_state():
            run = open_run(path, config=config)
            model = run.untrained_model()
            losses = LearntLosses(build_losses(config, run.facts, run.world))
        with locate_errors(config.optimizer):
            recipe.build(model, losses)
    except UserError as error:
        print_note(f"learning rates of modules are unknown: {error}")
        return ()
    return recipe.module_rates(model, losses)


def list_components(options: ListOptions) -> int:
    """Print an index of what there is, the entries of a kind, or the components of a name."""
    subject = options.subject
    if subject == "configs":
        return _list_configs(options.json)
    if subject == "layouts":
        return _list_layouts(options.json)
    load_plugins(options.plugins)
    if subject is None:
        _print_index()
        write_document(options.json, {kind: _describe_all(registry) for kind, registry in REGISTRIES.items()})
        return 0
    if subject in REGISTRIES:
        document = {subject: _describe_all(REGISTRIES[subject])}
    else:
        holders = {kind: registry for kind, registry in REGISTRIES.items() if subject in registry.names()}
        if not holders:
            names = {name for registry in REGISTRIES.values() for name in registry.names()}
            choices = (*OTHER_LISTS, *REGISTRIES, *names)
            hint = suggest(subject, choices, otherwise="; 'sightline list' prints the kinds")
            raise UserError(f"list: there is no kind or component '{subject}'{hint}")
        document = {kind: [_describe(kind, registry.get_entry(subject))] for kind, registry in holders.items()}
    for kind, components in document.items():
        shown = (_format_component(component, in_full=subject not in REGISTRIES) for component in components)
        sys.stdout.write(f"{kind}\n" + "".join(shown) + "\n")
        if subject not in REGISTRIES:
            sys.stdout.write(
                "".join(
                    textwrap.indent(f"{component['example']}\n\n", " " * 6)
                    for component in components
                    if component["example"]
                )
            )
    write_document(options.json, document)
    return 0


def _print_index() -> None:
    """Print the kinds, each with the number of its entries and the first of their names, on one screen."""
    lists = {kind: registry.names() for kind, registry in REGISTRIES.items()}
    lists |= {"configs": [config.path for config in shipped_configs()], "layouts": list_names()}
    width = max(map(len, lists))
    for kind, names in lists.items():
        line = f"{kind:<{width}} {len(names):>4}  {' '.join(names)}"
        if len(line) > INDEX_WIDTH:
            line = line[: INDEX_WIDTH - 3].rpartition(" ")[0] + " ..."
        sys.stdout.write(f"{line}\n")
    sys.stdout.write("list KIND: the entries of a kind; list NAME: one component\n")


def _list_layouts(json: Path | None) -> int:
    """Print the layouts of published weights, with what each is converted to and its source."""
    layouts = list_layouts()
    width = max(len(layout.name) for layout in layouts)
    for layout in layouts:
        sys.stdout.write(f"{layout.name:<{width}}  {layout.makes}\n")
    print_note("to convert a file of one: sightline weights convert FILE --to DIR")
    rows = [{"name": row.name, "model": row.model, "makes": row.makes, "url": row.url} for row in layouts]
    write_document(json, {"layouts": rows})
    return 0


def _describe_all(registry: Registry) -> list[dict[str, Any]]:
    return [_describe(registry.kind, registry.get_entry(name)) for name in registry.names()]


def _describe(kind: str, entry: RegistryEntry) -> dict[str, Any]:
    texts = explain_arguments(kind, entry.name, entry.builder, entry.arguments)
    arguments = [
        {
            "name": name,
            "meaning": strip_links(texts.get(name, "")),
            "allowed": describe_type(parameter.annotation),
            "required": parameter.is_required,
            **({} if parameter.is_required else {"default": to_plain(parameter.default)}),
        }
        for name, parameter in entry.arguments.items()
    ]
    facts = [{"name": name, "given_by": "data set" if name in DATA_FACTS else "run"} for name in entry.facts]
    facts += [{"name": name, "given_by": "block before it"} for name in entry.parameters_from_blocks]
    plugin = find_plugin(entry.builder)
    return {
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "example": entry.example,
        "plugin": None if plugin is None else str(plugin),
        "arguments": arguments,
        "facts": facts,
    }


def _format_component(component: dict[str, Any], *, in_full: bool) -> str:
    """Format a component as a paragraph: summary, plugin, source, arguments, and facts that it receives.

    `in_full` also says what each argument does.
    """
    lines = [f"  {component['name']}", *_wrap(component["summary"])]
    if component["plugin"]:
        lines.append(f"      from {component['plugin']}")
    if component["source"]:
        lines += _wrap(f"Source: {component['source']}")
    heads = {a["name"]: _format_argument(a) for a in component["arguments"]}
    column = max(map(len, heads.values()), default=0)
    for argument in component["arguments"]:
        is_explained = in_full and argument["meaning"]
        text = f"{argument['meaning']} ({argument['allowed']})" if is_explained else argument["allowed"]
        lines += _wrap_after(f"      {heads[argument['name']]:<{column}}  ", text)
    for giver in ("data set", "run", "block before it"):
        names = [fact["name"] for fact in component["facts"] if fact["given_by"] == giver]
        if names:
            lines += _wrap(f"(the {giver} gives {', '.join(names)})")
    return "\n".join(lines) + "\n"


def _format_argument(argument: dict[str, Any]) -> str:
    """Format an argument as in a config: with its default value, or as required."""
    value = "(required)" if argument["required"] else format_inline(argument["default"])
    return f"{argument['name']}: {value}"


def _wrap_after(head: str, text: str) -> list[str]:
    """Wrap text after a head; further lines are indented to the head's width."""
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")


# --- the configs of the package --------------------------------------------------------------------------------------

WIDTH = 110


def _list_configs(json: Path | None) -> int:
    """Print the name of each shipped config with its first comment."""
    configs = shipped_configs()
    for config in configs:
        description_lines = textwrap.wrap(config.description, WIDTH, initial_indent="    ", subsequent_indent="    ")
        sys.stdout.write("\n".join([config_name(config.path), *description_lines]) + "\n")
    print_note("a name is given as CONFIG; to change a copy: sightline copy CONFIG [TO]")
    write_document(json, {"configs": [_to_document(config) for config in configs]})
    return 0


def copy_config(options: CopyOptions) -> int:
    """Copy a shipped config, with all files that it needs, into a folder."""
    written, alike = copy_shipped(options.config, options.to)
    for path in written:
        sys.stdout.write(f"{path}\n")
    if alike:
        print_note(f"there already, and alike: {', '.join(map(str, alike))}")
    write_document(options.json, {"written": [str(path) for path in written], "alike": [str(path) for path in alike]})
    return 0


def init_project(options: InitOptions) -> int:
    """Make a project of the user's own parts, and print its files and the next commands."""
    paths = make_project(options.project, options.task, options.to)
    for path in paths:
        sys.stdout.write(f"{path}\n")
    folder, name = shlex.quote(str(paths[0].parent)), options.project
    print_note(f"next: cd {folder} && pytest && sightline train {name}.yaml --plugin {name}.py --out runs/first")
    write_document(options.json, {"written": [str(path) for path in paths], "task": options.task})
    return 0


def _to_document(config: ShippedConfig) -> dict[str, Any]:
    """Convert to JSON, where the description keeps its key `about`."""
    return {("about" if key == "description" else key): value for key, value in dataclasses.asdict(config).items()}
