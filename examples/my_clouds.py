"""A plugin with a data set of files in a format of your own: NPZ files of cups and spoons.

`sightline data prepare my_clouds --plugin my_clouds.py --from FOLDER --to prepared` checks the files once and stores
them; configs then read them by `data.name=my_clouds data.root=prepared`.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import sightline

CLASSES = ["cup", "spoon"]
NUM_POINTS = 64


def read_cloud(path: Path) -> sightline.SampleRow:
    """Read one file: `xyz`, an array (64, 3). The name of the file begins with its class: cup_017.npz."""
    points = sightline.npz_array(path, "xyz")
    if points.shape != (NUM_POINTS, 3):
        raise sightline.DataError(f"{path}: xyz is {points.shape}, {(NUM_POINTS, 3)} is needed; export it again")
    label = CLASSES.index(path.stem.partition("_")[0])
    return sightline.SampleRow(
        path.stem, str(path), {"points": sightline.normalize_to_unit_sphere(points, where=str(path)), "label": label}
    )


def summarise(prepared: sightline.PreparedSet) -> dict[str, object]:
    """Count the clouds of each class and split, for `sightline data info` and the facts of a config."""
    return {"splits": sightline.count_labels(prepared, len(CLASSES))}


@sightline.register.data("my_clouds")
class MyClouds(sightline.LabelledClouds):
    """Clouds of cups and spoons. Source: our laboratory."""

    spec = sightline.SetSpec(
        name="my_clouds",
        what="the folders train and test",
        marks=("train",),
        entries=lambda: {
            "layouts": {"npz": "train/CLASS_NAME.npz, test/CLASS_NAME.npz"},
            "obtain": "from our laboratory",
        },
    )

    @classmethod
    def plan(cls, root: Path, *, up_axis: Literal["y", "z"] = "z") -> sightline.PreparationPlan:
        """Plan to store the clouds, with radius 1; `up_axis` is that of the files."""
        shards = []
        for split in ("train", "test"):
            files = tuple(path for name in CLASSES for path in sorted((root / split).glob(f"{name}_*.npz")))
            shards.append(sightline.Shard(split, split, len(files), files, partial(map, read_cloud, files)))
        about = {
            "up_axis": up_axis,
            "orientation": f"{up_axis} up, as the files have it",
            "normalisation": "by prepare: about the mean of the points, the farthest at distance 1",
            "class_names": CLASSES,
        }
        return sightline.PreparationPlan(
            set_name=cls.set_name,
            layout="npz",
            source=root,
            columns={
                "points": sightline.ColumnSpec((NUM_POINTS, 3), "float32"),
                "label": sightline.ColumnSpec((), "int64"),
            },
            shards=tuple(shards),
            manifest_extra=about,
            summarise=summarise,
            options={"up_axis": up_axis},
        )
