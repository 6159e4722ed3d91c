"""What can go wrong, by whose fault it is; the command line turns each into one line and an exit code."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from sightline.aliases import old_names, renamed_keywords

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
    "assert_installed",
    "escape_to_one_line",
    "summarise_error",
]


def escape_to_one_line(text: str) -> str:
    """The text with what is not printable, line breaks and bytes that are no UTF-8 among it, as escapes (`\\n`)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else c.encode("unicode_escape").decode() for c in text)


_SPACES = "\u00a0\u2009\u202f\u3000"
"""Not printable for Python, but harmless."""


@renamed_keywords(most="max_length")
def summarise_error(error: BaseException, *, max_length: int = 400) -> str:
    """The type of an exception and at most so many characters of its message, in one line."""
    words = " ".join(str(error).split())[:max_length]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


class UserError(ValueError):
    """A mistake in what the user gave: where it is, what was found, what to do. Exit code 2.

    One line: what is not printable, such as a terminal's escape codes in the name of a file, is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape_to_one_line(message))


class ConfigError(UserError):
    """All the faults of a configuration at once, one line each."""

    def __init__(self, *faults: str) -> None:
        super().__init__("")
        self.faults = faults
        self.args = ("\n".join(escape_to_one_line(line) for fault in faults for line in fault.split("\n")),)


class DataError(UserError):
    """A data file or folder that is missing, damaged or not what it claims to be; in one line, whatever names hold."""

    @classmethod
    def from_lines(cls, lines: Sequence[str]) -> DataError:
        """Several faults at once: the first line counts them, each of the others is one."""
        error = cls(lines[0])
        error.args = ("\n  ".join(map(escape_to_one_line, lines)),)
        return error


class MissingDataError(DataError):
    """A data set that was never prepared, or is not where it was looked for."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, incomplete or made for something else; in one line, whatever names hold."""


class PluginError(UserError):
    """A plugin that is missing, changed, or cannot be imported."""


class MissingExtraError(UserError):
    """An optional package is needed; the message names the command that installs it, from a wheel and a checkout."""

    def __init__(self, module: str, *, needed_by: str) -> None:
        package = _PACKAGES.get(module, module)
        words = f"'{package}'" if "[" in package else package
        super().__init__(f"{needed_by} needs the package '{package}'; install it: pip install {words}")


def assert_installed(module: str, *, needed_by: str) -> None:
    """Raise MissingExtraError where a module of an optional package cannot be found; nothing is imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module, needed_by=needed_by)


_PACKAGES = {"sklearn": "scikit-learn", "laspy": "laspy[lazrs]", "lazrs": "laspy[lazrs]", "faiss": "faiss-cpu"}
"""The name to install, where it is not the one to import."""


class RunError(RuntimeError):
    """The work failed for no fault in its description (disk full, non-finite gradient). Exit code 1."""


class LostFolderError(RunError):
    """The folder of a run was moved, deleted or taken by another run while this one wrote to it."""


__getattr__ = old_names(__name__)
