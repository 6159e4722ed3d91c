"""A plugin with a data set of files in a format of your own: NPZ files of cups and spoons.

`sightline data prepare my_clouds --plugin my_clouds.py --from FOLDER --to prepared` checks the files once and stores
them; configs then read them by `data.root=prepared`.
"""

from pathlib import Path

import numpy as np

import sightline


def read_cloud(path: Path) -> dict[str, np.ndarray]:
    """Read one file: `xyz`, an array (64, 3)."""
    return {"points": sightline.npz_array(path, "xyz")}


@sightline.register.data("my_clouds")
class MyClouds(sightline.FileClouds):
    """Clouds of cups and spoons. Source: our laboratory."""

    spec = sightline.CloudSpec(
        name="my_clouds",
        what="the folders train and test",
        marks=("train",),
        files="{split}/{label}_{name}.npz",
        class_names=("cup", "spoon"),
        read=read_cloud,
        entries=lambda: {
            "layouts": {"npz": "train/CLASS_NAME.npz, test/CLASS_NAME.npz"},
            "obtain": "from our laboratory",
        },
    )
