"""A plugin with a data set of files in a format of your own: NPZ files of cups and spoons.

`sightline data prepare my_clouds --plugin my_clouds.py --from FOLDER --to prepared` checks the files once and stores
them; configs then read them by `data.root=prepared`.
"""

from pathlib import Path

import numpy as np

from sightline.areas.clouds.sets.file_clouds import CloudSpec, FileClouds
from sightline.contract import registry
from sightline.store.files.array_files import npz_array


def read_cloud(path: Path) -> dict[str, np.ndarray]:
    """Read one file: `xyz`, an array (64, 3)."""
    return {"points": npz_array(path, "xyz")}


@registry.data.add("my_clouds")
class MyClouds(FileClouds):
    """Clouds of cups and spoons. Source: our laboratory."""

    spec = CloudSpec(
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
