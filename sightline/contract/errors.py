"""Exceptions by cause (user, run); the command line prints each in one line and returns its exit code."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from sightline.aliases import keep_old_keywords, old_names


def escape_to_one_line(text: str) -> str:
    """Escape characters that are not printable (line breaks as `\\n`) and bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else c.encode("unicode_escape").decode() for c in text)


_SPACES = "\u00a0\u2009\u202f\u3000"
"""Characters that Python calls not printable, but that are harmless."""


@keep_old_keywords(most="max_length")
def summarise_error(error: BaseException, *, max_length: int = 400) -> str:
    """Format the type of an exception and at most `max_length` characters of its message, in one line."""
    message = " ".join(str(error).split())[:max_length]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class UserError(ValueError):
    """Mistake in the user's input: location, actual value, and what to do. Exit code 2.

    The message is one line: what is not printable, such as a terminal's escape codes in a file name, is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape_to_one_line(message))


class ConfigError(UserError):
    """All faults of a config at once, one line each."""

    def __init__(self, *faults: str) -> None:
        super().__init__("")
        self.faults = faults
        self.args = ("\n".join(escape_to_one_line(line) for fault in faults for line in fault.split("\n")),)


class DataError(UserError):
    """Data file or folder that is missing, damaged or not what it claims to be; the message is one line."""

    @classmethod
    def from_lines(cls, lines: Sequence[str]) -> DataError:
        """Create an error of several faults: the first line counts them, each of the others is one."""
        error = cls(lines[0])
        error.args = ("\n  ".join(map(escape_to_one_line, lines)),)
        return error


class MissingDataError(DataError):
    """Data set that is not prepared, or not at its expected path."""


class CheckpointError(UserError):
    """Checkpoint that is damaged, incomplete or made for something else; the message is one line."""


class PluginError(UserError):
    """Plugin that is missing, changed, or cannot be imported."""


class MissingExtraError(UserError):
    """Missing optional package; the message names the command that installs it."""

    def __init__(self, module: str, *, needed_by: str) -> None:
        package = _PACKAGES.get(module, module)
        requirement = f"'{package}'" if "[" in package else package
        super().__init__(f"{needed_by} needs the package '{package}'; install it: pip install {requirement}")


def assert_installed(module: str, *, needed_by: str) -> None:
    """Raise MissingExtraError if a module of an optional package cannot be found; nothing is imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module, needed_by=needed_by)


_PACKAGES = {"sklearn": "scikit-learn", "laspy": "laspy[lazrs]", "lazrs": "laspy[lazrs]", "faiss": "faiss-cpu"}
"""Name of the package to install, for modules of another name."""


class RunError(RuntimeError):
    """Failure for which the config is not to blame (disk full, non-finite gradient). Exit code 1."""


class LostFolderError(RunError):
    """Run folder that was moved, deleted or taken by another run while this one wrote to it."""


__getattr__ = old_names(__name__)
