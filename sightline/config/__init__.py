"""One YAML file describes a run: read strictly, checked wholly before any data is touched, origins kept."""

from sightline.config.faults import located
from sightline.config.reader import read_config, read_sections
from sightline.config.run_config import RunConfig
from sightline.config.show import render

__all__ = ["RunConfig", "located", "read_config", "read_sections", "render"]
