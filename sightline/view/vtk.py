"""Legacy VTK files of volumes, for ParaView, 3D Slicer and others.

Source: VTK File Formats, version 4.2, "Simple Legacy Formats": structured points, binary, big endian.
"""

from __future__ import annotations

from sightline.view.volumes import Volume

__all__ = ["encode_vtk"]


def encode_vtk(volume: Volume, *, title: str) -> bytes:
    """Encode a volume as a VTK file: one float per cell, at the cell's centre, x fastest.

    Coordinates are those of the stage that the volume belongs to.
    """
    text = " ".join(title.encode("ascii", "replace").decode("ascii").split())[:250]
    header = [
        "# vtk DataFile Version 3.0",
        text,
        "BINARY",
        "DATASET STRUCTURED_POINTS",
        f"DIMENSIONS {' '.join(map(str, volume.values.shape))}",
        f"ORIGIN {' '.join([format(volume.cell / 2, 'g')] * 3)}",
        f"SPACING {' '.join([format(volume.cell, 'g')] * 3)}",
        f"POINT_DATA {volume.values.size}",
        "SCALARS value float 1",
        "LOOKUP_TABLE default",
        "",
    ]
    return "\n".join(header).encode("ascii") + volume.values.astype(">f4").tobytes(order="F") + b"\n"
