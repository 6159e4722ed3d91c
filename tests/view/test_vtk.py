"""VTK files: the header that its specification asks for, and values with x running fastest."""

from __future__ import annotations

import numpy as np

from sightline.view.output import encode_vtk
from sightline.view.panels import Volume


def test_a_volume_can_be_read_back_by_the_words_of_the_format() -> None:
    values = np.random.default_rng(0).random((2, 3, 4), dtype=np.float32)
    volume = Volume.from_heatmaps(values[None], cell=2.0, is_y_up=True)
    file = encode_vtk(volume, title="a sample,\nstage é")
    lines = file.split(b"\n", 10)
    assert lines[0] == b"# vtk DataFile Version 3.0"
    assert lines[1] == b"a sample, stage ?"  # one line of ASCII
    assert lines[2:4] == [b"BINARY", b"DATASET STRUCTURED_POINTS"]
    words = dict(line.split(b" ", 1) for line in lines[4:8])
    assert words == {b"DIMENSIONS": b"2 3 4", b"ORIGIN": b"1 1 1", b"SPACING": b"2 2 2", b"POINT_DATA": b"24"}
    numbers = np.frombuffer(lines[10][: 24 * 4], dtype=">f4")
    for (x, y, z), value in np.ndenumerate(values):
        assert numbers[x + 2 * (y + 3 * z)] == value
