"""The rows of what the project must do, by area; their assertions say what was missing."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"tests.mission.{name}"
        for name in (
            *("boxes", "clouds", "compressed", "detections", "detectors", "fitting", "labels", "pedestrians"),
            *("scans", "small", "volumes"),
        )
    )
)
