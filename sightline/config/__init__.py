"""Run configs: one YAML file, read strictly and checked before data is read, with the origin of every value."""

from sightline.config.faults import locate_errors
from sightline.config.reader import read_config, read_sections
from sightline.config.run_config import RunConfig
from sightline.config.yaml_writer import render_config

__all__ = ["RunConfig", "locate_errors", "read_config", "read_sections", "render_config"]
