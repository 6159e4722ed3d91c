"""What can go wrong, by whose fault it is; the command line turns each into one line and an exit code."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LostFolderError",
    "MissingDataError",
    "MissingExtraError",
    "PluginError",
    "RunError",
    "UserError",
]


class UserError(ValueError):
    """A mistake in what the user gave: where it is, what was found, what to do. Exit code 2."""


class ConfigError(UserError):
    """All the faults of a configuration at once, one line each."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DataError(UserError):
    """A data file or folder that is missing, damaged or not what it claims to be."""


class MissingDataError(DataError):
    """A data set that was never prepared, or is not where it was looked for."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, incomplete or made for something else."""


class PluginError(UserError):
    """A plugin that is missing, changed, or cannot be imported."""


class MissingExtraError(UserError):
    """An optional package is needed; the message names the command that installs it."""

    def __init__(self, package: str, *, extra: str, needed_by: str) -> None:
        super().__init__(f"{needed_by} needs the package '{package}'; install it: pip install 'sightline[{extra}]'")


class RunError(RuntimeError):
    """The work failed for no fault in its description (disk full, non-finite gradient). Exit code 1."""


class LostFolderError(RunError):
    """The folder of a run was moved, deleted or taken by another run while this one wrote to it."""
