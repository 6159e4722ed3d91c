"""Viewer of samples in the report of a run, for which its data are needed."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.draw.page import PageClouds
from sightline.view.page import make_clouds
from sightline.view.stages import ViewedSample

MAX_PICTURE_BYTES = MAX_SAMPLE_BYTES = 1_800_000
"""Maximum size of the pictures of a page, and of its samples: the page stays below 5 MB, and can be mailed."""


def make_samples(subjects: Sequence[ViewedSample]) -> tuple[PageClouds, list[str]]:
    """Make the viewer of as many samples as fit into `MAX_SAMPLE_BYTES`; also return a note on the others."""
    for count in range(len(subjects), 0, -1):
        clouds = make_clouds(subjects[:count], title="Samples", max_bytes=MAX_SAMPLE_BYTES // 2)
        if len(clouds.encode()) <= MAX_SAMPLE_BYTES or count == 1:
            break
    left_out = [f"{len(subjects) - count} samples do not fit into the page"] if count < len(subjects) else []
    return clouds, left_out
