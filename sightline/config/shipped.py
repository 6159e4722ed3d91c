"""Shipped configs and examples: inside the package in a wheel, next to it in a checkout."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import keyword
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sightline.contract.errors import UserError, join_some
from sightline.contract.schema import find_similar, suggest

_FOLDERS = ("configs", "examples")
_PROJECTS = "examples/projects"
"""Folder of a project for each task, which `make_project` copies; `_shared` holds what all of them have."""
_PROJECT_NAME = "my_project"
_BASE = re.compile(r"^base:\s*([^\s#]+)", flags=re.MULTILINE)
_MIN_WORD = 3
"""Least number of letters of a word that configs are searched for."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
_PLUGIN = re.compile(r"examples/\w+\.py")


@dataclass(frozen=True)
class ShippedConfig:
    """Shipped config that a run can start from: its path for `copy_shipped`, and its first comment."""

    path: str
    description: str


def shipped_configs() -> list[ShippedConfig]:
    """List the shipped configs by path, without parts of configs, whose names begin with `_`."""
    root = _get_root()
    return [
        ShippedConfig(path, _first_sentence((root / path).read_text(encoding="utf-8")))
        for path in _list_files(root)
        if path.endswith(".yaml") and not Path(path).name.startswith("_")
    ]


def find_config(path: Path) -> Path:
    """Return the shipped config that `path` names if there is no such file, and else `path` itself.

    Names are `classify/modelnet40_dgcnn` or the path in a checkout, `configs/classify/modelnet40_dgcnn.yaml`, and where
    no other task has it `modelnet40_dgcnn` alone.
    """
    root = _find_root()
    name = path.as_posix().removeprefix(f"{_FOLDERS[0]}/")
    if root is None or os.path.lexists(path) or path.is_absolute() or ".." in path.parts:
        return path
    folder = root / _FOLDERS[0]
    if "/" in name:
        files = [folder / f"{name.removesuffix('.yaml')}.yaml"]
    else:
        files = [task / f"{name}.yaml" for task in folder.iterdir()]
    with contextlib.suppress(OSError):  # a name that no file can have
        files = [file for file in files if file.is_file()]
        if len(files) == 1:
            return _relative_if_below(files[0])
    return path


def suggest_shipped(path: Path) -> str:
    """Format the shipped config that the path of a missing file may mean, as `; did you mean 'x'?`; else nothing."""
    root = _find_root()
    if root is None or path.is_absolute():
        return ""
    names = [name for file in _list_files(root) if (name := config_name(file)) != file and "/_" not in name]
    typed = path.as_posix().removesuffix(".yaml").removeprefix(f"{_FOLDERS[0]}/")
    alike = [name for name in names if Path(name).name == path.name.removesuffix(".yaml")]
    if alike and "/" not in typed:
        return f"; did you mean {' or '.join(map(repr, alike))}?"
    if similar := find_similar(typed, names, cutoff=0.8):
        return f"; did you mean '{similar}'?"
    word = typed.casefold()
    holding = sorted((name for name in names if word in name), key=lambda name: "/synthetic_" not in name)
    if len(word) < _MIN_WORD or not holding:
        return ""
    if len(holding) == 1:
        return f"; did you mean '{holding[0]}'?"
    return f"; configs with this word are {join_some(holding, most=4)} ('sightline list configs')"


def config_name(path: str) -> str:
    """Return the name of a shipped config, `classify/x` of `configs/classify/x.yaml`; an example keeps its path."""
    is_config = path.startswith(f"{_FOLDERS[0]}/")
    return path.removeprefix(f"{_FOLDERS[0]}/").removesuffix(".yaml") if is_config else path


def _relative_if_below(path: Path) -> Path:
    """Return a path below the working folder relative to it, as it would be typed."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


def copy_shipped(name: str, to: Path) -> tuple[list[Path], list[Path]]:
    """Copy a config with the configs that it builds on and the plugins that it names, or a folder of these.

    `name` is a path such as `configs/classify/modelnet40_dgcnn.yaml`, `classify/modelnet40_dgcnn` or `examples`; below
    `to` the paths are the same. Returns the files written, and those that existed already with equal content.
    Raises UserError for a name that is not shipped, and before anything is written for a file of another content.
    """
    root = _get_root()
    contents = {to / path: (root / path).read_bytes() for path in _add_dependencies(root, _select_files(root, name))}
    for path, content in contents.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != content):
            raise UserError(f"copy: {path}: is there already, and differs; move it away, or copy to another folder")
    alike = [path for path in contents if path.exists()]
    written = [path for path in contents if path not in alike]
    for path in written:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[path])
        except OSError as error:
            raise UserError(f"copy: {path}: cannot be written: {error.strerror}") from error
    return written, alike


def _find_root() -> Path | None:
    package = Path(__file__).resolve().parents[1]
    return next((folder for folder in (package / "shipped", package.parent) if (folder / _FOLDERS[0]).is_dir()), None)


def _get_root() -> Path:
    root = _find_root()
    if root is None:
        raise UserError("this installation has no configs next to the package; install it from a wheel or a checkout")
    return root


def _list_files(root: Path) -> list[str]:
    files = (path for folder in _FOLDERS for path in (root / folder).rglob("*") if path.suffix in (".yaml", ".py"))
    paths = sorted(path.relative_to(root).as_posix() for path in files)
    return [path for path in paths if not path.startswith(_PROJECTS)]


def make_project(name: str, task: str, to: Path) -> list[Path]:
    """Write a project of a user's own parts into the folder `to`/`name`; return its files.

    Raises UserError for a name that is not one of a Python file, a task without a project, and an existing folder.
    """
    folders = {path.name: path for path in (_get_root() / _PROJECTS).iterdir() if path.is_dir()}
    shared = folders.pop("_shared")
    if task not in folders:
        raise UserError(f"init: --task {task}: there is no such project{suggest(task, sorted(folders))}")
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"init: {name!r} names a Python file: use small letters, digits and _, a letter first")
    target = to / name
    if target.exists():
        raise UserError(f"init: {target}: is there already; give another name")
    if _is_taken(name):
        raise UserError(f"init: {name!r} is another Python file or package, which it would hide; give another name")
    sources = sorted(path for folder in (shared, folders[task]) for path in folder.iterdir() if path.is_file())
    files = {target / path.name.replace(_PROJECT_NAME, name): path.read_text(encoding="utf-8") for path in sources}
    try:
        to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=to) as part:  # the project is whole, or not there
            work = Path(part, name)
            work.mkdir()
            for path, text in files.items():
                (work / path.name).write_text(text.replace(_PROJECT_NAME, name), encoding="utf-8")
            work.rename(target)
    except OSError as error:
        reason = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"init: {target}: cannot be written: {reason}; give another place by --to") from error
    return list(files)


def _is_taken(name: str) -> bool:
    """Return True for a module that Python finds, and for names that pytest reads; a plain folder is not a module."""
    spec = importlib.util.find_spec(name)
    return name == "conftest" or name.startswith("test_") or (spec is not None and spec.origin is not None)


def _select_files(root: Path, name: str) -> list[str]:
    paths = _list_files(root)
    stem = name.removeprefix("./").rstrip("/")
    stems = {stem, stem.removesuffix(".yaml")}
    for prefix in ("", *(f"{folder}/" for folder in _FOLDERS)):
        inside = [path for path in paths if path.startswith(f"{prefix}{stem}/")]
        selected = [
            path
            for path in paths
            if path in {f"{prefix}{candidate}" for candidate in (stem, *(f"{s}.yaml" for s in stems))}
        ]
        if selected or inside:
            return selected or inside
    configs = [path for path in paths if path.endswith(".yaml") and not Path(path).name.startswith("_")]
    matches = [path for path in configs if Path(path).stem in stems]
    if len(matches) == 1:
        return matches
    folders = {folder.as_posix() for path in configs for folder in Path(path).parents if folder.name}
    choices = {path.removesuffix(".yaml") for path in configs} | folders if "/" in stem else set()
    hint = suggest(Path(stem).stem, [Path(path).stem for path in configs], otherwise="")
    hint = suggest(stem.removesuffix(".yaml"), sorted(choices), otherwise=hint)
    which = f"; there are {', '.join(matches)}" if matches else hint
    raise UserError(f"copy: no shipped config is called '{name}'{which} ('sightline list configs' prints all)")


def _add_dependencies(root: Path, paths: list[str]) -> list[str]:
    """Add the dependencies of files: bases, and plugins that a config's comment names."""
    needed: dict[str, None] = {}
    queue = list(paths)
    while queue:
        path = queue.pop(0)
        if path in needed:
            continue
        needed[path] = None
        if path.endswith(".yaml"):
            text = (root / path).read_text(encoding="utf-8")
            queue += [
                ((root / path).parent / base).resolve().relative_to(root).as_posix() for base in _BASE.findall(text)
            ]
            queue += _PLUGIN.findall(text)
    return list(needed)


def _first_sentence(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return re.split(r"(?<=[a-z0-9)])\. (?=[A-Z])", " ".join(lines), maxsplit=1)[0].rstrip(".")
