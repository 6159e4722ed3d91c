import json
from pathlib import Path

import numpy as np

folder = Path("runs/tour/predictions/test")
manifest = json.loads((folder / "manifest.json").read_text())
if "file" in manifest["samples"][0]:  # a label for every point
    worst = min(manifest["samples"], key=lambda sample: sample.get("iou", 0.0))
    labels = np.load(folder / worst["file"])
else:  # a label for each cloud
    wrong = [sample["name"] for sample in manifest["samples"] if sample["answer"] != sample["label"]]
