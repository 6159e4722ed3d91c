"""Training steps that are measured on a GPU: recipes at the size of their use, and networks beside a textbook form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "inside" / "gpu_counts.md"
BEGIN, END = "<!-- table of tests/launches.py -->", "<!-- end of launches -->"


class RecipeStep(NamedTuple):
    """A recipe in float32 at one size: `max_launches` of a step, `max_ms` on an H100 (bars; None: none stated).

    `counted` are overrides of the count on a CPU that make the step quicker and leave its operators as they are;
    `workers` read the samples of a set that has no batches, where a GPU is timed.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    max_launches: int | None = None
    max_ms: float | None = None
    size: str = ""
    counted: tuple[str, ...] = ()
    workers: int = 0

    @property
    def config(self) -> Path:
        return ROOT / "configs" / f"{self.recipe}.yaml"

    @property
    def name(self) -> str:
        return f"{self.recipe} {self.size}"


_CLOUD_1024 = ("data.num_points=1024",)
_BALLS_1024 = (
    *("data.num_points=1024", "model.num_centres=[512,128]", "model.radii=[0.2,0.4]"),
    *("model.num_neighbours=[32,64]", "train.batch_size=24"),
)
RECIPE_STEPS = (
    RecipeStep("segment/synthetic_rooms_point_transformer", (), 1550, 40, "4 x 4,096", workers=8),
    RecipeStep("classify/synthetic_shapes_pointnet2", _BALLS_1024, 330, 5, "24 x 1,024"),
    RecipeStep(
        "classify/synthetic_shapes_dgcnn",
        (*_CLOUD_1024, "model.num_neighbours=20", "train.batch_size=32"),
        470,
        10,
        "32 x 1,024",
    ),
    RecipeStep("classify/synthetic_shapes_pct", (), 510, 3, "16 x 256"),
    RecipeStep("classify/synthetic_shapes_pointnet", (), 210, 1.5, "32 x 256"),
    RecipeStep("pose/synthetic_hands_v2v", (), None, 50, "8", ("train.batch_size=2",)),
    RecipeStep("pose/synthetic_hands_v2v_small", (), 130, 6, "16", ("train.batch_size=2",)),
    RecipeStep("detect/synthetic_crowds_retinanet", ("train.batch_size=2",), None, None, "2", workers=8),
    RecipeStep("detect/synthetic_crowds_fcos", ("train.batch_size=2",), None, None, "2", workers=8),
    RecipeStep("detect/synthetic_crowds_yolox", ("train.batch_size=2",), None, None, "2", workers=8),
    RecipeStep("segment/synthetic_lidar_salsanext", ("train.batch_size=2",), None, None, "2", workers=8),
    *(
        RecipeStep(f"segment/synthetic_{recipe}", (), None, None, "4", ("train.batch_size=2",), workers=8)
        for recipe in ("rooms_spunet", "lidar_minkunet", "rooms_ptv3", "lidar_frnet")
    ),
    RecipeStep("boxes3d/synthetic_streets_pointpillars", (), None, None, "4", workers=8),
)
"""Dearest first; bars of launches and milliseconds are those of the issue on operators."""


def read_launches() -> dict[str, int]:
    """Read the tables of launches of docs/inside/gpu_counts.md: of each recipe's small step, and of the steps here."""
    text = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    small = {
        f"{task}/{recipe}": int(number.replace(",", ""))
        for task, rest in re.findall(r"^\| (\w+) \| (.*) \|$", text, flags=re.MULTILINE)
        for recipe, number in re.findall(r"`(\w+)` ([\d,]+)", rest)
    }
    real = re.findall(r"^\| `([\w/]+)` \| ([^|]+) \| ([\d,]+) \|", text, flags=re.MULTILINE)
    return small | {f"{recipe} {size}": int(number.replace(",", "")) for recipe, size, number in real}
