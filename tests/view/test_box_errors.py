"""The page of a detector's errors: what names of files and notes put into it."""

from __future__ import annotations

import numpy as np

from sightline.areas.detect.metrics.box_errors import KINDS
from sightline.areas.detect.scoring import encode_errors
from sightline.draw.pictures import Picture


def test_no_name_is_taken_for_a_place_of_the_page() -> None:
    names = ["%KINDS%.png: 1 wrong", "%TITLE%.png", "\x1b[31m<b>.png"]
    pictures = [Picture(name, np.zeros((4, 4, 3), np.uint8), name) for name in names]
    labels = dict.fromkeys(("labels", "not_found", "missed", "suppressed"), 0)
    document = {"box_errors": {"counts": dict.fromkeys(KINDS, 0), "confusions": [], "labels": labels}}
    document["metrics"] = {f"gain_{kind}": 0.0 for kind in KINDS} | {"error_ap50": 0.0}
    page = encode_errors(document, pictures, title="%NOTES%", notes=["%IMAGES%"])
    for shown in ("%KINDS%.png: 1 wrong", "%TITLE%.png", "\\x1b[31m&lt;b&gt;.png", "%NOTES%", "%IMAGES%"):
        assert f">{shown}<" in page
