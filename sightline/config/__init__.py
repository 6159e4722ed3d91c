"""One YAML file describes a run: read strictly, checked wholly before any data is touched, origins kept."""

from sightline.config.faults import locate_errors
from sightline.config.reader import read_config, read_sections
from sightline.config.run_config import RunConfig
from sightline.config.yaml_writer import render_config

__all__ = ["RunConfig", "locate_errors", "read_config", "read_sections", "render_config"]
