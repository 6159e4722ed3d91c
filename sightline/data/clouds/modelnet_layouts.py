"""Public layouts of ModelNet: detection of the layout, and the shards of its shapes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from sightline.data.clouds.modelnet_arrays import has_npz_keys, hdf5_contents, npz_contents
from sightline.data.clouds.modelnet_classes import ClassSubset, SourceContents, published_counts
from sightline.data.clouds.modelnet_files import off_contents, text_contents
from sightline.data.store.prepared_set import MANIFEST, summarise_folder
from sightline.errors import DataError

__all__ = ["detect_layout", "read_contents"]

_INNER_FOLDERS = ("modelnet40_ply_hdf5_2048", "modelnet40_normal_resampled", "ModelNet40", "ModelNet10")


def detect_layout(source: Path) -> tuple[str, Path]:
    """Detect the layout (hdf5, text, off or npz) of a file or folder; return it with the resolved path.

    Symbolic links are followed. Raises DataError naming what was found and what was looked for.
    """
    root = source.expanduser().resolve()
    if not root.exists():
        raise DataError(f"{source}: there is no such file or folder (looked at {root}); check the path")
    if root.is_file():
        if zipfile.is_zipfile(root) or root.suffix == ".npz":
            return "npz", root
        raise DataError(f"{root}: is not a layout by itself; give the folder that holds it, or an .npz archive")
    if (root / MANIFEST).is_file():
        raise DataError(f"{root}: is prepared already; give the folder of the public release")
    matches = _match_layouts(root)
    for inner in _INNER_FOLDERS if not matches else ():
        if (root / inner).is_dir():
            matches += _match_layouts((root / inner).resolve())
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(
            f"{root}: holds {len(matches)} layouts, name one: {', '.join(str(path) for _, path in matches)}"
        )
    looked_for = "; ".join(
        f"{facts['title']} ({facts['looks_like']})" for facts in published_counts()["layouts"].values()
    )
    raise DataError(
        f"{root}: holds {summarise_folder(root)}, which is not a layout of ModelNet; looked for: {looked_for}"
    )


def read_contents(layout: str, root: Path, classes: ClassSubset) -> SourceContents:
    """Read the columns and shards of a recognised layout; check lists, headers and labels, but read no clouds.

    Raises DataError naming the file and the position in it.
    """
    readers = {"hdf5": hdf5_contents, "text": text_contents, "off": off_contents, "npz": npz_contents}
    contents = readers[layout](root, classes)
    if not any(part.num_rows for part in contents.parts):
        raise DataError(f"{root}: holds no shape of the classes {', '.join(classes.names)}; is it the right folder?")
    return contents


def _match_layouts(folder: Path) -> list[tuple[str, Path]]:
    """List the layouts (name, path) that the contents of a folder match."""
    matches = [("npz", path) for path in sorted(folder.glob("*.npz")) if has_npz_keys(path)]
    if any(folder.glob("ply_data_*.h5")):
        matches.append(("hdf5", folder))
    if any(folder.glob("modelnet[14]0_t*.txt")) or any(folder.glob("*/*_[0-9][0-9][0-9][0-9].txt")):
        matches.append(("text", folder))
    if any(folder.glob("*/train/*.off")) or any(folder.glob("*/test/*.off")):
        matches.append(("off", folder))
    return matches
