"""Names of the columns of clouds: the spellings of other tools, and colours packed into one number."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

SKIPPED = "_"
"""Name of a column that is left out."""
POINTS = ("x", "y", "z")
NORMALS = ("nx", "ny", "nz")
COLOURS = ("red", "green", "blue")
_SPELLINGS: Mapping[tuple[str, str, str], tuple[tuple[str, str, str], ...]] = {
    NORMALS: (("normal_x", "normal_y", "normal_z"), ("normalx", "normaly", "normalz"), ("n_x", "n_y", "n_z")),
    COLOURS: (("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("rf", "gf", "bf")),
}
"""Other names of three columns (the Point Cloud Library, Open3D, CloudCompare, meshes); two of them are not renamed."""
_PACKED = ("rgb", "rgba")
"""Names of a colour in the bits of one number of 32 bits, 0xAARRGGBB (the Point Cloud Library)."""


def rename_columns(names: Sequence[str]) -> dict[str, str]:
    """Map the names by which columns are read to those in `names`, in their order: three of a spelling are renamed."""
    new_names = dict(zip(names, names, strict=True))
    for triple, spellings in _SPELLINGS.items():
        present = next((spelling for spelling in spellings if set(spelling) <= set(names)), None)
        if present is not None and not set(triple) & set(names):
            new_names |= dict(zip(present, triple, strict=True))
    return {new: old for old, new in new_names.items()}


class NamedColumns(Mapping[str, np.ndarray]):
    """Columns (N,) by the names by which they are read, in the dtype of the file; each is looked up when it is used."""

    def __init__(self, stored: Mapping[str, np.ndarray]) -> None:
        self._stored = stored
        self._names_in_file = rename_columns(list(stored))
        self._unpacked: dict[str, np.ndarray] = {}
        packed = next((name for name in _PACKED if name in stored and _is_packed(stored[name])), "")
        if packed and not set(COLOURS) & set(self._names_in_file):
            self._unpacked = _unpack_colours(stored[packed])
            del self._names_in_file[packed]
            self._packed = packed

    def notes(self, used: Collection[str]) -> tuple[str, ...]:
        """Describe which of the `used` columns have other names in the file, or are unpacked."""
        renamed = {own: new for new, own in self._names_in_file.items() if own != new and new in used}
        notes = [f"{', '.join(renamed)} are read as {', '.join(renamed.values())}"] if renamed else []
        if set(self._unpacked) & set(used):
            notes.append(f"{self._packed} is unpacked to {', '.join(COLOURS)}")
        return tuple(notes)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._unpacked[name] if name in self._unpacked else self._stored[self._names_in_file[name]]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._names_in_file, *self._unpacked))

    def __len__(self) -> int:
        return len(self._names_in_file) + len(self._unpacked)


def _is_packed(values: np.ndarray) -> bool:
    return values.ndim == 1 and values.dtype.itemsize == 4 and values.dtype.kind in "fiu"


def _unpack_colours(values: np.ndarray) -> dict[str, np.ndarray]:
    """Unpack colours (N,) to columns uint8 by their bits, which a conversion of NaN would change."""
    bits = values.view(np.dtype("u4").newbyteorder(values.dtype.byteorder))
    return {name: (bits >> shift & 0xFF).astype(np.uint8) for name, shift in zip(COLOURS, (16, 8, 0), strict=True)}


def is_whole(values: np.ndarray, low: float, high: float) -> bool:
    """Return True if all values are whole numbers from `low` to `high`."""
    with np.errstate(invalid="ignore"):
        return bool(((values >= low) & (values <= high) & (values == np.floor(values))).all())
