"""WiderPerson, CityPersons and EuroCity Persons in their published layouts, a few images each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.boxes.box_writers import pattern, write_image


def write_widerperson(root: Path, **splits: Mapping[str, Sequence[Sequence[int]] | None]) -> Path:
    """Rows of class, left, top, right and bottom by split and name; None for an image without annotations."""
    for split, images in splits.items():
        for name, rows in images.items():
            write_image(root / "Images" / f"{name}.jpg", pattern(48, 64))
            if rows is not None:
                lines = [str(len(rows)), *(" ".join(map(str, row)) for row in rows)]
                (root / "Annotations").mkdir(exist_ok=True)
                (root / "Annotations" / f"{name}.jpg.txt").write_text("\n".join(lines) + "\n")
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
    return root


def write_citypersons(root: Path, **splits: Mapping[str, Sequence[Sequence[float]]]) -> Path:
    """Rows of ten columns by split and image name, its city before the first underscore."""
    from scipy.io import savemat

    (root / "annotations").mkdir(parents=True)
    for split, images in splits.items():
        cells = np.empty((1, len(images)), dtype=object)
        for place, (name, rows) in enumerate(images.items()):
            city = name.partition("_")[0]
            write_image(root / "leftImg8bit" / split / city / name, pattern(48, 64))
            bbs = np.array(rows, dtype=np.float64 if rows else np.uint8).reshape(-1, 10)
            cells[0, place] = {"cityname": city, "im_name": name, "bbs": bbs}
        savemat(root / "annotations" / f"anno_{split}.mat", {f"anno_{split}_aligned": cells})
    return root


def write_ecp(root: Path, images: Mapping[str, Sequence[dict[str, Any]]], *, wrapped: Sequence[str] = ()) -> Path:
    """Children of frames by path, such as day/train/amsterdam/amsterdam_00000; `wrapped` ones lie in a sequence."""
    for name, children in images.items():
        time, _, rest = name.partition("/")
        write_image(root / time / "img" / f"{rest}.png", pattern(48, 64))
        frame: dict[str, Any] = {"identity": "frame", "imagewidth": 64, "imageheight": 48, "tags": ["rainy"]}
        frame["children"] = list(children)
        if name in wrapped:
            sequence = {"identity": "sequence", "children": [frame]}
            frame = {"@converter": "x", "identity": "seqlist", "children": [sequence]}
        file = root / time / "labels" / f"{rest}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(frame))
    return root
