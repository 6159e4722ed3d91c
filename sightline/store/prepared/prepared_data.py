"""Base of the data sets that come in files: a row, `spec`, and `plan`, which plans the preparation of a source."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from sightline.config.argument_texts import explain_arguments, strip_links
from sightline.contract.dataset import Dataset
from sightline.contract.errors import DataError
from sightline.contract.types import Copies
from sightline.store.files.cloud_files import UnnamedColumnsError
from sightline.store.files.guessed_columns import GuessedColumns, guess_columns
from sightline.store.files.input_files import expand_home, file_size, list_files
from sightline.store.prepared.columns import ColumnForm
from sightline.store.prepared.config_bases import ConfigBase
from sightline.store.prepared.prepared_set import (
    LISTED,
    MANIFEST,
    PreparedSet,
    open_prepared,
    prepare_command,
    prepared_root,
    summarise_folder,
    verify,
)
from sightline.store.prepared.prepared_writer import PreparationPlan, Progress, T, find_prepared, write_prepared_set

STATED = "stated_options"
"""Manifest entry of the options that the user stated."""
LEAVE_OUT = "leave_out_of_train"
SHARED = inspect.Parameter(
    "shared",
    inspect.Parameter.KEYWORD_ONLY,
    default="report",
    annotation=Literal["report", "leave_out_of_train"],
)
"""Option of every preparation: what becomes of training samples that are evaluated, too."""
CARDS = Path(__file__).parents[1] / "cards.json"
"""Cards by set. An entry that is null is computed by the set; `options` are those of the command that prepares it."""


_LABELS_AT_ONCE = 2**24
_ASSUMED = {"up_axis": "z", "unit": "m"}
"""Values of options that a preparation needs and files do not state, for a survey without them."""


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """Row of a set that is prepared from files.

    Its source is of a `kind` and contains `what`; without `what` it is not checked. If it has `marks`, it is a folder
    with one of these files: the one that the user gives or one of the folders `inner` in it. `entries` computes entries
    of the card, in addition to those of cards.json. The splits of files of the user's own (`is_own`) are nobody's
    publication: the same sample in two of them is an error. `label_suffixes` are those of a file of labels beside a
    cloud whose points have a class.
    """

    name: str
    what: str = ""
    kind: Literal["folder", "file", "file or folder"] = "folder"
    marks: Sequence[str] = ()
    inner: Sequence[str] = ()
    entries: Callable[[], Mapping[str, Any]] = dict
    is_own: bool = False
    label_suffixes: Sequence[str] = ()

    def find(self, source: Path) -> Path:
        """Find the source, resolved. Raises DataError that names what it looked for."""
        root = expand_home(source).resolve()
        if not self.what:
            return root
        is_there = {"file": root.is_file, "folder": root.is_dir, "file or folder": root.exists}[self.kind]
        advice = f"give {self.what}" if self.kind == "file" else f"give the {self.kind} with {self.what}"
        if not is_there():
            fault = "is not a" if root.exists() else "there is no such"
            raise DataError(f"{source}: {fault} {self.kind} (looked at {root}); {advice}")
        if (root / MANIFEST).is_file():
            raise DataError(f"{root}: is prepared already; {advice}")
        if not self.marks:
            return root
        for folder in (root, *(root / name for name in self.inner)):
            if any((folder / mark).exists() for mark in self.marks):
                return folder
        raise DataError(
            f"{root}: holds {summarise_folder(root)}, which is not {self.what}; looked for {', '.join(self.marks)}"
        )

    def make_card(self, set_name: str) -> dict[str, Any]:
        """Return the entries of the card, between the set's name and the command to prepare it."""
        entries = {**json.loads(CARDS.read_text(encoding="utf-8")).get(self.name, {}), **self.list_entries()}
        command = prepare_command(set_name, "DIR", entries.pop("options", ""))
        return {"set": set_name, **entries, "prepare": command}

    def list_entries(self) -> dict[str, Any]:
        """Return the entries of the card that are computed."""
        return dict(self.entries())


class SplitFigure(NamedTuple):
    """Entry `key` of every split in the manifest; if `names` is one of the manifest, the numbers by these names."""

    key: str
    names: str = ""

    def read(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figure by split."""
        figures = {split: facts[self.key] for split, facts in manifest["splits"].items()}
        if not self.names:
            return figures
        return {split: dict(zip(manifest[self.names], values, strict=True)) for split, values in figures.items()}


Summary: TypeAlias = Mapping[str, SplitFigure | Callable[[Mapping[str, Any]], Any]]
"""Entries of the summary of a prepared folder, read from its manifest."""


class PreparedData(Dataset):
    """Base of the data sets that read a prepared folder.

    A class that defines `plan` can be prepared, and its source surveyed. `plan(root, *, ...)` plans the preparation of
    the source that `spec` finds at `root`; its keyword arguments are the options of `sightline data prepare`, but
    `target` and `progress`, which it gets as that command has them.

    `shared` is what becomes of a training sample of which validation or test has a copy.
    """

    spec: ClassVar[SetSpec]
    set_name: ClassVar[str]
    readable_sets: ClassVar[tuple[str, ...]] = ()
    """Names of other sets whose prepared folders can be opened, too."""
    summary: ClassVar[Summary] = {"samples": SplitFigure("num_rows")}
    """Counts of a prepared folder that `sightline data info` prints."""
    printed: ClassVar[tuple[str, ...]] = ("layout", "options", "differences")
    """Entries of the manifest that `sightline data info` prints, where there are any."""
    config_bases: ClassVar[Sequence[ConfigBase]] = ()
    """Shipped configs for files of the user's own, of a set that reads them; one holds for any number of samples."""
    forms: ClassVar[Mapping[str, ColumnForm]] = {}
    """Forms that columns need where a folder has them: a manifest may state others."""
    plan: ClassVar[Callable[..., PreparationPlan]]
    prepare: ClassVar[Callable[..., dict[str, Any]]]
    survey: ClassVar[Callable[..., dict[str, Any]]]
    card: ClassVar[Callable[[], dict[str, Any]]]
    _prepared: PreparedSet

    @property
    def content_sha256(self) -> str | None:  # type: ignore[override]
        """Digest of the contents of the prepared folder; None if the class does not keep it as `_prepared`."""
        return self._prepared.content_sha256() if "_prepared" in vars(self) else None

    @property
    def copies(self) -> Copies | None:  # type: ignore[override]
        """Digests of the samples, of a set that knows their stored rows; samples of one digest are the same."""
        rows = self._list_stored_rows() if "_prepared" in vars(self) else None
        if rows is None:
            return None
        contents = {split: self._prepared.contents(split) for split in {split for split, _ in rows}}
        options = self._prepared.manifest.get("options", {})
        return Copies(
            [contents[split][row] for split, row in rows],
            is_error=self.spec.is_own,
            are_left_out=options.get(SHARED.name) == LEAVE_OUT,
            advice=f"{self._describe_leaving_out()}, and set data.root to that folder",
        )

    @property
    def doubts(self) -> Sequence[str]:  # type: ignore[override]
        """Faults of the samples that the preparation found, such as mixed units; they may spoil a training."""
        if "_prepared" not in vars(self):
            return ()
        return [*self._prepared.manifest.get("doubts", ()), *self._list_doubts()]

    def _list_doubts(self) -> Sequence[str]:
        """Return what may spoil a training by what this run reads of the set, such as a constant column."""
        return ()

    def _list_stored_rows(self) -> Sequence[tuple[str, int]] | None:
        """Return the stored split and row of every sample; None if the set does not know them."""
        return None

    def _describe_leaving_out(self) -> str:
        """Return the command that prepares this set, with the options of its folder, without shared samples."""
        manifest = self._prepared.manifest
        stated = [
            shlex.quote(f"{name}={_format_option(value)}")
            for name, value in manifest.get(STATED, {}).items()
            if name != SHARED.name
        ]
        source, target = manifest["source"]["path"], f"{self._prepared.root}_unshared"
        words = ["sightline", "data", "prepare", manifest["set"], "--from", shlex.quote(source)]
        return " ".join([*words, "--to", shlex.quote(target), *stated, f"{SHARED.name}={LEAVE_OUT}"])

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "spec" in vars(cls):
            cls.set_name, cls.readable_sets = cls.spec.name, (cls.spec.name, *vars(cls).get("readable_sets", ()))
        if "plan" in vars(cls):
            assert isinstance(vars(cls)["plan"], classmethod), f"{cls.__name__}.plan: a class method is needed"
            plan = vars(cls)["plan"].__func__
            members = {"prepare": _make_prepare(plan), "survey": _make_survey(plan), "card": _make_card}
            for name in members.keys() - vars(cls).keys():
                setattr(cls, name, classmethod(members[name]))

    @classmethod
    def open_root(cls, root: str | None) -> PreparedSet:
        """Open the prepared folder of this set: `root`, by default the one of its name."""
        return cls.open_folder(prepared_root(root, cls.set_name))

    @classmethod
    def open_folder(cls, folder: Path, *, options: str = "") -> PreparedSet:
        """Open a prepared folder; errors name the command that makes one, with `options`."""
        names = tuple(dict.fromkeys((cls.set_name, *cls.readable_sets)))
        assumed = {} if options else cls._assume_required()
        options = options or " ".join(f"{name}={value}" for name, value in assumed.items())
        texts = explain_arguments("prepare", cls.set_name, cls, assumed)
        about = (f"{name} is {strip_links(text)} ({assumed[name]} is assumed)" for name, text in texts.items())
        prepared = open_prepared(folder, set_names=names, options=options, about="; ".join(about))
        prepared.check_forms(cls.forms)
        return prepared

    @classmethod
    def _assume_required(cls) -> dict[str, str]:
        """Return the options of preparing this set that have no default, with the usual value of each."""
        plan = getattr(cls, "plan", None)
        options = [] if plan is None else _list_options(plan)
        return {item.name: _ASSUMED.get(item.name, "VALUE") for item in options if item.default is item.empty}

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        prepared = cls.open_folder(root)
        manifest, source = prepared.manifest, {"source": prepared.manifest["source"]["path"]}
        if LISTED in manifest:
            counts = "{num_files:,} files, {num_bytes:,} bytes, in place below {root}".format(**manifest[LISTED])
            source = {"files": counts}
        head = {"set": manifest["set"], "root": str(root.resolve()), **source}
        return {**head, **cls.summarise(prepared), **{key: manifest[key] for key in cls.printed if key in manifest}}

    @classmethod
    def summarise(cls, prepared: PreparedSet) -> dict[str, Any]:
        """Return counts of a prepared folder, and other entries of its summary."""
        manifest = prepared.manifest
        return {
            name: entry.read(manifest) if isinstance(entry, SplitFigure) else entry(manifest)
            for name, entry in cls.summary.items()
        }

    @classmethod
    def propose(cls, prepared: PreparedSet, base: Mapping[str, Any]) -> list[str]:
        """Return the overrides by which a shipped config suits a prepared folder, but `data.name` and `data.root`.

        `base` is the config's tree, with its own bases merged.
        """
        return []

    @classmethod
    def count_training(cls, prepared: PreparedSet) -> int | None:
        """Return the number of samples to train on, by which the base of a config is chosen; None if none is by it."""
        return None

    @classmethod
    def verify(cls, root: Path) -> int:
        """Compare the hash of every file and return their number. Raises DataError with the first that differs."""
        return verify(root)


def describe_foreign_label(prepared: PreparedSet, split: str) -> str:
    """Describe the first label of a split that is none of the classes in the manifest; empty if all are."""
    names = prepared.manifest.get("class_names") or prepared.manifest.get("classes", {}).get("names")
    labels = prepared.array(split, "label") if names and "label" in prepared.manifest["columns"] else np.zeros(0)
    for start in range(0, len(labels), _LABELS_AT_ONCE):
        part = labels[start : start + _LABELS_AT_ONCE]
        is_foreign = (part < 0) | (part >= len(names))
        if is_foreign.any():
            row = start + int(is_foreign.argmax())
            return (
                f"{prepared.root}: label {row} of '{split}' is {labels[row]}, there are {len(names)} classes (0 to "
                f"{len(names) - 1}); prepare the set again"
            )
    return ""


def find_layout(
    root: Path,
    match: Callable[[Path], list[tuple[str, Path]]],
    *,
    inner: Sequence[str],
    name: str,
    layouts: Mapping[str, Mapping[str, Any]],
) -> tuple[str, Path]:
    """Find the one layout, and its path, that `match` recognises in a folder or in one of the folders `inner` in it.

    `layouts` state a `title` and what each `looks_like`. Raises DataError for none, and for several.
    """
    matches = match(root)
    for folder in (root / path for path in inner if not matches):
        matches += match(folder.resolve()) if folder.is_dir() else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(f"{path} ({layout})" for layout, path in matches)
        raise DataError(f"{root}: holds {len(matches)} layouts, give one: {listed}")
    looked_for = "; ".join(f"{facts['title']} ({facts['looks_like']})" for facts in layouts.values())
    raise DataError(
        f"{root}: holds {summarise_folder(root)}, which is not a layout of {name}; looked for: {looked_for}"
    )


def _make_prepare(plan: Callable[..., PreparationPlan]) -> Callable[..., dict[str, Any]]:
    """Make the class method `prepare` of a class method `plan`, with its options as keyword arguments."""

    @functools.wraps(plan)
    def prepare(
        cls: type[PreparedData], *, source: Path, target: Path, name: str, progress: Progress, **options: Any
    ) -> dict[str, Any]:
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        shared = options.pop(SHARED.name, SHARED.default)
        stated = {**options, **({} if shared == SHARED.default else {SHARED.name: shared})}
        existing = find_prepared(cls.spec.find(source), target, set_name=name, stated=stated)
        if existing is not None:
            return existing
        planned = _call_plan(cls, source, target=target, progress=progress, options=options)
        planned = dataclasses.replace(planned, manifest_extra={**planned.manifest_extra, STATED: stated})
        assert planned.set_name == name, f"{cls.__name__}.plan is about '{planned.set_name}', not '{name}'"
        if shared != SHARED.default:
            planned = dataclasses.replace(planned, options={**planned.options, SHARED.name: shared})
        return write_prepared_set(planned, target, progress=progress)

    return with_options(prepare, [*_list_options(plan), SHARED])


def _format_option(value: Any) -> str:
    """Format the value of an option as the command line reads it."""
    if isinstance(value, bool) or not isinstance(value, (list, tuple)):
        return json.dumps(value) if isinstance(value, bool) else str(value)
    return f"[{', '.join(map(str, value))}]"


def _make_survey(plan: Callable[..., PreparationPlan]) -> Callable[..., dict[str, Any]]:
    """Make the class method `survey` of a class method `plan`: what its preparation would find, by the same options."""
    options = _list_options(plan)
    named = {item.name: item.default for item in options}
    assumed = {
        item.name: _ASSUMED[item.name] for item in options if item.default is item.empty and item.name in _ASSUMED
    }

    @functools.wraps(plan)
    def survey(cls: type[PreparedData], source: Path, **overrides: Any) -> dict[str, Any]:
        root = expand_home(source).resolve()
        target = root.with_name(f"{root.name}.prepared")

        def describe(stated: Mapping[str, Any]) -> dict[str, Any]:
            return _describe_plan(
                _call_plan(cls, source, target=target, progress=lambda *_: None, options={**assumed, **stated})
            )

        added = {key: value for key, value in assumed.items() if key not in overrides}
        try:
            return {**describe(overrides), **({"assumed": added} if added else {})}
        except UnnamedColumnsError as error:
            guessed = _guess_columns(cls, error, named, overrides)
            if guessed is None:
                raise
        document = describe({**overrides, "columns": guessed.names})
        added["columns"] = _format_option(guessed.names)
        return {**document, "columns_by_values": guessed.reason, "assumed": added}

    defaults = [item.replace(default=assumed.get(item.name, item.default)) for item in options]
    return with_options(survey, defaults)


def _guess_columns(
    cls: type[PreparedData], error: UnnamedColumnsError, defaults: Mapping[str, Any], overrides: Mapping[str, Any]
) -> GuessedColumns | None:
    """Guess the columns of a file that has no names; None where the user named some, or values do not tell."""
    if "columns" not in defaults or overrides.get("columns") is not None:
        return None
    has_labels = any(error.path.with_suffix(suffix).is_file() for suffix in cls.spec.label_suffixes)
    label = None if has_labels else overrides.get("label", defaults.get("label"))
    return guess_columns(error.table, label=None if label is None else str(label).lower())


def _list_options(plan: Callable[..., PreparationPlan]) -> list[inspect.Parameter]:
    named = inspect.signature(plan).parameters.values()
    return [item for item in named if item.kind is item.KEYWORD_ONLY and item.name not in ("target", "progress")]


def with_options(function: Callable[..., T], options: Sequence[inspect.Parameter]) -> Callable[..., T]:
    """Set the signature of a function to its own parameters, without its last, and these options; return it."""
    vars(function).pop("__signature__", None)  # of a function that it wraps
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[:-1]
    function.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]
    function.__annotations__ |= {item.name: item.annotation for item in options}
    return function


def _describe_plan(plan: PreparationPlan) -> dict[str, Any]:
    """Describe what a preparation would read: splits, files, and the numbers of the first sample."""
    files = plan.files
    values: Mapping[str, Any] = {}
    faults: list[str] = []
    unread = [path.relative_to(plan.source).as_posix() for path in list_files(plan.source) if path not in files]
    try:
        values = next(row for shard in plan.shards if shard.num_rows for row in shard.rows()).values
    except UnnamedColumnsError:
        raise
    except DataError as error:
        faults = [str(error)]
    numbers = {name: np.asarray(value) for name, value in values.items()}
    return {
        "source": str(plan.source),
        "layout": plan.layout,
        "samples": plan.split_sizes,
        "files": f"{len(files):,}, {sum(map(file_size, files)):,} bytes",
        "files_beside_them": unread,
        **plan.manifest_extra,
        "first_sample": {
            name: f"{' x '.join(map(str, array.shape))}, from {array.min():.4g} to {array.max():.4g}"
            for name, array in numbers.items()
            if array.dtype.kind == "f" and array.size
        },
        "differences": [*plan.manifest_extra.get("differences", ()), *plan.notes, *faults],
    }


def _call_plan(
    cls: type[PreparedData], source: Path, *, target: Path, progress: Progress, options: Mapping[str, Any]
) -> PreparationPlan:
    named = inspect.signature(cls.plan).parameters
    passed = {key: value for key, value in (("target", target), ("progress", progress)) if key in named}
    return cls.plan(cls.spec.find(source), **options, **passed)


def _make_card(cls: type[PreparedData]) -> dict[str, Any]:
    """Return the description of a set: layouts, where to obtain it, terms, and the command that prepares it."""
    return cls.spec.make_card(cls.set_name)
