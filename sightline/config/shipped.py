"""The configs and examples that come with the package: in a wheel inside it, in a checkout beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import UserError
from sightline.schema import suggest

__all__ = ["ShippedConfig", "copy_shipped", "shipped_configs", "shipped_path"]

_FOLDERS = ("configs", "examples")
_BASE = re.compile(r"^base:\s*([^\s#]+)", flags=re.MULTILINE)
_PLUGIN = re.compile(r"examples/\w+\.py")


@dataclass(frozen=True)
class ShippedConfig:
    """A config that a run can be started from: its path, as `copy_shipped` takes it, and its first comment."""

    path: str
    description: str


def shipped_configs() -> list[ShippedConfig]:
    """All of them, by path; parts of configs, whose names begin with `_`, are left out."""
    root = _root()
    return [
        ShippedConfig(path, _first_sentence((root / path).read_text(encoding="utf-8")))
        for path in _paths(root)
        if path.endswith(".yaml") and not Path(path).name.startswith("_")
    ]


def shipped_path(path: Path) -> str | None:
    """The path of the one shipped config that a missing file's name means, as `copy_shipped` takes it, or None."""
    root = _root_or_none()
    if root is None or path.is_absolute():
        return None
    try:
        chosen = _chosen(root, path.as_posix())
    except UserError:
        return None
    return chosen[0] if len(chosen) == 1 and chosen[0].endswith(".yaml") else None


def copy_shipped(name: str, to: Path) -> tuple[list[Path], list[Path]]:
    """Copy a config with the configs that it builds on and the plugins that it names, or a folder of these.

    `name` is a path such as `configs/classify/modelnet40_dgcnn.yaml`, `classify/modelnet40_dgcnn` or `examples`; below
    `to` the paths are the same. Returns the files written, and those that were there already, alike.
    Raises UserError for a name that is not shipped, and before anything is written for a file of another content.
    """
    root = _root()
    contents = {to / path: (root / path).read_bytes() for path in _closure(root, _chosen(root, name))}
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


def _root_or_none() -> Path | None:
    package = Path(__file__).resolve().parents[1]
    return next((each for each in (package / "shipped", package.parent) if (each / _FOLDERS[0]).is_dir()), None)


def _root() -> Path:
    root = _root_or_none()
    if root is None:
        raise UserError("this installation has no configs beside the package; install it from a wheel or a checkout")
    return root


def _paths(root: Path) -> list[str]:
    found = (path for folder in _FOLDERS for path in (root / folder).rglob("*") if path.suffix in (".yaml", ".py"))
    return sorted(path.relative_to(root).as_posix() for path in found)


def _chosen(root: Path, name: str) -> list[str]:
    paths = _paths(root)
    wanted = name.removeprefix("./").rstrip("/")
    stems = {wanted, wanted.removesuffix(".yaml")}
    for prefix in ("", *(f"{folder}/" for folder in _FOLDERS)):
        inside = [path for path in paths if path.startswith(f"{prefix}{wanted}/")]
        chosen = [
            path for path in paths if path in {f"{prefix}{each}" for each in (wanted, *(f"{s}.yaml" for s in stems))}
        ]
        if chosen or inside:
            return chosen or inside
    whole = [path for path in paths if path.endswith(".yaml") and not Path(path).name.startswith("_")]
    ends = [path for path in whole if Path(path).stem in stems]
    if len(ends) == 1:
        return ends
    known = [Path(path).stem for path in whole]
    which = f"; there are {', '.join(ends)}" if ends else suggest(Path(wanted).stem, known, otherwise="")
    raise UserError(f"copy: no shipped config is called '{name}'{which} ('sightline list configs' prints all)")


def _closure(root: Path, paths: list[str]) -> list[str]:
    """The paths, and what they need: bases, and the plugins that a config's comment names."""
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
