"""One YAML file describes a run: read strictly, checked wholly before any data is touched, every value's origin known."""

from sightline.config.reader import read_config
from sightline.config.run_config import RunConfig
from sightline.config.show import render

__all__ = ["RunConfig", "read_config", "render"]
