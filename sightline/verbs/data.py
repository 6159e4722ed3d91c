"""`sightline data`: prepare, render, convert, describe and verify data sets."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sightline.commands.data import ConvertOptions, InfoOptions, PrepareOptions, RenderOptions, VerifyOptions
from sightline.commands.fields import MoreHelp
from sightline.config.argument_texts import explain_arguments, strip_links
from sightline.config.key_values import read_key_values
from sightline.config.own_config import find_preset, list_presets, read_shipped, render_over
from sightline.config.yaml_writer import format_inline
from sightline.contract import registry
from sightline.contract.catalogue import load_member
from sightline.contract.errors import UserError, escape_to_one_line
from sightline.contract.plugins import load_plugins
from sightline.contract.schema import Parameter, describe_type, signature_parameters, suggest
from sightline.draw.progress_line import show_progress
from sightline.runs.output_files import write_document
from sightline.store.files.atomic_write import replace_atomic
from sightline.store.prepared import prepared_set
from sightline.store.prepared.config_bases import ConfigBase, choose_base
from sightline.store.prepared.prepared_data import SHARED
from sightline.store.prepared.prepared_set import MANIFEST
from sightline.store.prepared.prepared_writer import Progress
from sightline.store.prepared.views import VIEWS_SET, Views
from sightline.verbs.base_of_config import describe_base
from sightline.verbs.output import print_note, print_tree
from sightline.verbs.weights import refuse_weights

if TYPE_CHECKING:
    from sightline.workbench.check.batch_of_one import BatchOfOne

_SET_BY_PREPARE = ("source", "target", "name", "progress")


def prepare(options: PrepareOptions) -> int:
    """Prepare a data set from one of its public layouts; `options` are `key=value` arguments of its `prepare`."""
    load_plugins(options.plugins)
    name = options.dataset
    preparable = list_preparable()
    if name not in preparable:
        raise UserError(f"data prepare: '{name}' is not a data set to prepare{suggest(name, preparable)}")
    texts = explain_arguments("prepare", name, _builder(name), _list_parameters(name, exclude=_SET_BY_PREPARE))
    arguments = read_key_values(
        name,
        _builder(name).prepare,
        options.options,
        command="data prepare",
        exclude=_SET_BY_PREPARE,
        texts={key: strip_links(text) for key, text in texts.items()},
    )
    if options.config is None and options.base is not None:
        raise UserError(f"--base {options.base}: is what a config builds on; give its file: --config own.yaml")
    bases = [] if options.config is None else _find_bases(name, options)
    with _counting(name) as progress:
        report = _builder(name).prepare(
            source=options.source, target=options.target, name=name, progress=progress, **arguments
        )
    _print_report(report, _builder(name), options.json)
    if options.config is not None:
        _write_config(options, name, bases)
    return 0


def _find_bases(name: str, options: PrepareOptions) -> list[ConfigBase]:
    """List the bases of configs for a set, or the one that the user names.

    Raises UserError for a set without one, for one of another task, and for a config that is there already.
    """
    assert options.config is not None
    if options.config.suffix not in (".yaml", ".yml"):
        raise UserError(f"--config {options.config}: is a file of YAML; give a name that ends in .yaml")
    if options.config.exists() and not (options.target / MANIFEST).exists():
        raise UserError(f"--config {options.config}: is there already; give the name of a new file")
    bases = _list_bases(name)
    if not bases:
        raise UserError(f"--config: no shipped config is about '{name}'; leave it out, and write a config of your own")
    if options.base is None:
        return bases
    base = find_preset(options.base)
    tasks = [read_shipped(each)["task"]["name"] for each in (base, bases[0].name)]
    if tasks[0] != tasks[1]:
        known = ", ".join(row.name for row in bases)
        raise UserError(f"--base {options.base}: is for the task {tasks[0]}, and {name} for {tasks[1]}; take {known}")
    return [next((row for row in bases if row.name == base), ConfigBase(base))]


def _list_bases(name: str) -> list[ConfigBase]:
    """List the shipped configs that configs for a set build on: those that it states, else those about it."""
    stated = getattr(_builder(name), "config_bases", ())
    return [*stated] or [ConfigBase(preset) for preset in list_presets(name)]


def _write_config(options: PrepareOptions, name: str, bases: Sequence[ConfigBase]) -> None:
    """Write the config that trains on a prepared folder. Raises UserError for a file of another content."""
    assert options.config is not None
    path, root, builder = options.config, options.target, _builder(name)
    prepared = builder.open_folder(root) if hasattr(builder, "propose") else None
    num_samples = None if prepared is None else builder.count_training(prepared)
    base = choose_base(bases, num_samples)
    proposed = [] if prepared is None else builder.propose(prepared, read_shipped(base.name))
    words = [f"data.name={name}", f"data.root={format_inline(str(root))}", *proposed]
    others = [row.name for row in _list_bases(name) if row.name != base.name]
    also = [f"Others for this data set: {', '.join(others)}"] if others else []
    about = escape_to_one_line(f"{root}, prepared as {name}; what differs from the shipped config {base.name}.")
    few, alone = _fit_to_few(base.name, words)
    words += [*few, *([] if alone is None else alone.list_words())]
    text = render_over(base.name, words, heading=[about, *also])
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise UserError(f"--config {path}: is there already, and differs; give the name of a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomic(path, text.encode())
    if few:
        print_note(
            f"{path}: too few samples of training to hold some out for validation: it has evaluate.select=test, so the "
            "test part chooses the best checkpoint; the last one is chosen by nothing"
        )
    if alone is not None and alone.changes:
        print_note(f"{path}: {alone.reason}, which batch norm cannot normalise: it has {' '.join(alone.list_words())}")
    plugins = [word for plugin in options.plugins for word in ("--plugin", str(plugin))]
    stated = getattr(builder, "config_bases", ())
    for line in describe_base(base, words, bases=stated, num_samples=num_samples, is_named=options.base is not None):
        print_note(f"{path}: {line}")
    print_note(f"{path}: trains on it: {shlex.join(['sightline', 'train', str(path), *plugins])}")


def _fit_to_few(preset: str, words: Sequence[str]) -> tuple[list[str], BatchOfOne | None]:
    """Find what a training on few samples needs that would be refused: words, and a batch of one sample.

    The words are for one without a sample to hold out. There are neither if the data cannot be built.
    """
    from sightline.config import read_config  # slow, as torch is: only a config to write needs it
    from sightline.engine.build import build
    from sightline.engine.distributed import World
    from sightline.engine.run_data import EmptyValidationError, build_data
    from sightline.workbench.check.batch_of_one import find_batch_of_one

    few: list[str] = []
    try:
        config = read_config(Path(preset), [*words, "init=null"])  # weights are not fetched for it
        try:
            data = build_data(config)
        except EmptyValidationError:
            config = read_config(Path(preset), [*words, "evaluate.select=test", "init=null"])
            data, few = build_data(config), ["evaluate.select=test"]
        size = config.train.batch_size
        if not isinstance(size, int) or len(data.train.indices) % size != 1:
            return few, None  # as most sets: no network is built
        return few, find_batch_of_one(build(config, World()), World())
    except UserError:
        return few, None  # what is wrong is said where the config is read or trained


def list_preparable() -> set[str]:
    """List the data sets that `data prepare` makes from files."""
    return {n for n in registry.data.names() if _builder(n).prepare is not None}


def list_options(words: Sequence[str]) -> MoreHelp:
    """List the options of preparing the set that `words` name, with what each does, and commands that prepare it."""
    name = _find_set(words)
    if name is None:
        return MoreHelp()
    parameters = _list_parameters(name, exclude=_SET_BY_PREPARE)
    command = shlex.join(["data", "prepare", name, "--from", "FOLDER", "--to", f"data/{name}"])
    command += "".join(f" {key}={_make_example(p)}" for key, p in parameters.items() if p.is_required)
    command += "".join(f" --plugin {shlex.quote(word)}" for word in words if word.endswith(".py"))
    examples = [command]
    bases = _list_bases(name)
    examples += [f"{command} --config own.yaml"] if bases else []
    examples += [f"{command} --config own.yaml --base {Path(row.name).name}" for row in bases[1:] if row.reason]
    return MoreHelp(f"Options of {name}, as KEY=VALUE", _describe_options(name, parameters), examples)


def list_reading_options(words: Sequence[str]) -> MoreHelp:
    """List the options of reading the labels of the set that `words` name, and commands that convert them."""
    name = _find_set(words)
    if name is None:
        return MoreHelp()
    parameters = _list_parameters(name, exclude=(*_SET_BY_PREPARE, SHARED.name))
    forms = getattr(_builder(name), "written_forms", ("coco", "yolo_txt"))
    new = next(form for form in forms if form != name)
    command = shlex.join(["data", "convert", name, "--from", "FOLDER", "--as", new, "--to", f"{name}_as_{new}"])
    return MoreHelp(f"Options of {name}, as KEY=VALUE", _describe_options(name, parameters), [command])


def _find_set(words: Sequence[str]) -> str | None:
    """Return the first of the words that is a set to prepare, of a plugin among them too."""
    load_plugins([Path(word) for word in words if word.endswith(".py")])
    return next((word for word in words if word in list_preparable()), None)


def _list_parameters(name: str, *, exclude: Collection[str]) -> dict[str, Parameter]:
    return {key: p for key, p in signature_parameters(_builder(name).prepare).items() if key not in exclude}


def _describe_options(name: str, parameters: Mapping[str, Parameter]) -> list[tuple[str, str]]:
    """Return a row for each option: what it does, what is allowed, and the default."""
    texts = explain_arguments("prepare", name, _builder(name), parameters)
    rows = []
    for key, parameter in parameters.items():
        default = "required" if parameter.is_required else f"default: {json.dumps(parameter.default, default=str)}"
        allowed = describe_type(parameter.annotation)
        text = f"{strip_links(texts[key])} ({allowed})" if key in texts else allowed
        rows.append((f"{key}=VALUE", f"{text}  [{default}]"))
    return rows or [("none", "it has no options")]


def _make_example(parameter: Parameter) -> str:
    """Return a value that a required option may have: the last of its choices, such as the axis z, else VALUE."""
    choices = typing.get_args(parameter.annotation) if typing.get_origin(parameter.annotation) is Literal else ()
    return str(choices[-1]) if choices else "VALUE"


def convert(options: ConvertOptions) -> int:
    """Convert labels of boxes to another format; print what was written, and what the format cannot hold."""
    load_plugins(options.plugins)
    name = options.dataset
    for path in (Path(name), *filter(None, [options.source])):
        refuse_weights(path, command="data convert")
    stated = {"--from PATH": options.source, "--as NAME": options.as_format, "--to DIR": options.target}
    if missing := [flag for flag, value in stated.items() if value is None]:
        raise UserError(
            f"data convert: {', '.join(missing)} missing: say what is read, as what and where it is written"
        )
    arguments = {}
    if name in list_preparable():
        reader = _builder(name).prepare
        exclude = (*_SET_BY_PREPARE, SHARED.name)
        arguments = read_key_values(name, reader, options.options, command="data convert", exclude=exclude)
    own = getattr(_builder(name), "convert_labels", None) if name in registry.data.names() else None
    with _counting(name) as progress:
        if own is not None:
            report = own(options.source, options.as_format, options.target, progress=progress, **arguments)
        else:
            report = load_member("tools", "convert_labels")(
                name, options.source, options.as_format, options.target, box=options.box, progress=progress, **arguments
            )
    print_tree({key: value for key, value in report.items() if key not in ("lost", "differences")})
    _print_differences(report)
    for what, count in report["lost"].items():
        print_note(escape_to_one_line(f"{count} {what}"))
    write_document(options.json, report)
    return 0


def render(options: RenderOptions) -> int:
    """Render views of every cloud of a prepared set into a view store."""
    with _counting("views") as progress:
        report = load_member("tools", "render_views")(options, progress=progress)
    _print_report(report, Views, options.json)
    return 0


def _print_report(report: Mapping[str, Any], describer: Any, json: Path | None) -> None:
    """Print what was written, and then every difference from what was expected."""
    written = {key: value for key, value in describer.describe(Path(report["root"])).items() if key != "differences"}
    print_tree({"outcome": report["outcome"], **written})
    _print_differences(report)
    write_document(json, report)


def _print_differences(report: Mapping[str, Any]) -> None:
    for line in report.get("differences", ()):
        print_note(escape_to_one_line(f"look at this: {line}"))


def info(options: InfoOptions) -> int:
    """Describe a data set by its name, a prepared folder, or (`source`) files that are not prepared yet.

    `options` are `key=value` arguments of the survey of such files.
    """
    load_plugins(options.plugins)
    name, source = options.dataset, options.source
    folder = Path(name)
    if options.options and source is None:
        raise UserError(f"data info: {options.options[0]}: options need --from PATH, the files to read")
    if source is not None:
        document = _survey(name, options.options, source)
    elif (folder / "manifest.json").is_file():
        document = _find_describer(folder).describe(folder)
    elif name in registry.data.names():
        card = _builder(name).card
        document = {"summary": registry.data.get_entry(name).summary} if card is None else card()
    elif name and folder.is_dir():
        raise UserError(
            f"{name}: is a folder that is not prepared; see its files by `sightline data info SET --from "
            f"{shlex.quote(name)}`, prepare it with `sightline data prepare SET --from {shlex.quote(name)} --to DIR`"
        )
    else:
        raise UserError(
            f"data info: '{name}' is neither a data set nor a prepared folder{suggest(name, registry.data.names())}"
        )
    print_tree({key: value for key, value in document.items() if key != "label_map"})
    write_document(options.json, document)
    return 0


def _survey(name: str, options: Sequence[str], source: Path) -> dict[str, Any]:
    """Survey files of a data set that are not prepared. A proposed label map is printed as YAML, to be edited."""
    surveyed = {n for n in registry.data.names() if hasattr(_builder(n), "survey")}
    if name not in surveyed:
        advice = suggest(name, surveyed, otherwise=f", not of '{name}'")
        raise UserError(f"data info: --from reads files of {', '.join(sorted(surveyed))}{advice}")
    builder = _builder(name)
    arguments = read_key_values(name, builder.survey, options, command="data info", exclude=("source",))
    document: dict[str, Any] = builder.survey(source, **arguments)
    assumed = [f"{key}={value}" for key, value in document.get("assumed", {}).items()]
    known = signature_parameters(builder.prepare)
    passed_on = [word for word in options if word.partition("=")[0].strip() in known]
    command = ["sightline", "data", "prepare", name, "--from", str(source), "--to", "prepared", *passed_on, *assumed]
    command += ["--config", "own.yaml"] if _list_bases(name) else []
    if assumed:
        document["assumed"] = f"{', '.join(assumed)}; the files do not state it: correct it where it is wrong"
    document["for_data_prepare"] = shlex.join(command)
    if "label_map" in document:
        sys.stdout.write("# a label map with all ids; keep it, name and merge classes, and set data.label_map to it\n")
        sys.stdout.write("".join(f"{key}: {_format_table(table)}\n" for key, table in document["label_map"].items()))
    return document


def _format_table(table: Mapping[int, Any]) -> str:
    entries = (f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in table.items())
    return "{" + ", ".join(entries) + "}"


def verify(options: VerifyOptions) -> int:
    """Compare every file of a prepared folder with the hash that was stored when it was written."""
    num_sound = prepared_set.verify(options.folder)
    sys.stdout.write(escape_to_one_line(f"{options.folder}: all {num_sound} files are as they were written") + "\n")
    write_document(options.json, {"root": str(options.folder.resolve()), "num_files": num_sound})
    return 0


def _builder(name: str) -> Any:
    return registry.data.get_class(name)


def _find_describer(folder: Path) -> Any:
    """Find the data set class that describes a prepared folder, by the name in its manifest."""
    name = str(prepared_set.read_manifest(folder)["set"])
    if name == VIEWS_SET:
        return Views
    if name not in registry.data.names():
        raise UserError(
            f"{folder}: contains the data set '{name}', which is unknown{suggest(name, registry.data.names())}"
        )
    return _builder(name)


@contextlib.contextmanager
def _counting(name: str) -> Iterator[Progress]:
    """Give a callback with number done, total and current item, which are shown as progress."""
    doing = "begins"

    def count(done: int, total: int, what: str) -> None:
        nonlocal doing
        doing = f"{done} of {total}, {what}"

    with show_progress(name, lambda: doing):
        yield count
