"""Ways out for files of points and shapes that are not read: what writes them as a kind that is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from sightline.contract.errors import escape_to_one_line

_SPLATS = (
    "Gaussian splats are read as plain PLY: `npx @playcanvas/splat-transform {name} {stem}.plain.ply` writes that; the "
    "middles of the splats are then the points"
)
_ADVICE = {
    _SPLATS: (".splat", ".ksplat", ".spz", ".sog", ".lcc"),
    "a scene of meshes, y up: `trimesh.load('{name}', force='mesh').export('{stem}.ply')` in Python (pip install "
    "trimesh) joins its parts to one PLY file": (".glb", ".gltf"),
    "export it as PLY, OBJ or STL, in Blender by File > Export": (
        *(".fbx", ".dae", ".blend", ".wrl", ".x3d", ".usd", ".usda", ".usdc", ".usdz", ".3ds", ".3mf"),
    ),
    "export it as E57 or LAS from the scanner's own program": (".rcp", ".rcs", ".fls", ".lsproj", ".zfs", ".rxp"),
    "CloudCompare opens it, and saves it as LAS, PLY or E57": (".ptx", ".fws", ".dp", ".sbf"),
    "a mesh or cloud that Draco has packed: `draco_decoder -i {name} -o {stem}.ply` unpacks it": (".drc",),
    "a recording: write each of its scans to a PCD file first": (".bag", ".db3", ".mcap", ".pcap"),
    "unpack it first": (".zip", ".gz", ".7z", ".tar", ".rar", ".zst", ".bz2", ".xz"),
}
_BY_SUFFIX = {suffix: advice for advice, suffixes in _ADVICE.items() for suffix in suffixes}
_PACKED_SPLATS = frozenset({"packed_position", "packed_rotation", "packed_scale"})
"""Columns of PLY files in which splats are compressed: none of them is a number."""


def advise_conversion(path: Path) -> str:
    """Return how a file of a kind that is not read is made one that is; "" for kinds that nobody takes for a cloud."""
    advice = _BY_SUFFIX.get(path.suffix.lower(), "")
    return advice.format(name=escape_to_one_line(path.name), stem=escape_to_one_line(path.stem))


def advise_conversions(paths: Iterable[Path]) -> str:
    """Return the advice for the first of the files for which there is any, with its suffix; "" if there is none."""
    return next((f"; {path.suffix}: {advice}" for path in paths if (advice := advise_conversion(path))), "")


def advise_packed_splats(path: Path, columns: Collection[str]) -> str:
    """Return how a PLY file whose columns are compressed splats is made one that is read; "" for others."""
    if not _PACKED_SPLATS & set(columns):
        return ""
    return "its splats are compressed; " + _SPLATS.format(name=path.name, stem=path.stem)
