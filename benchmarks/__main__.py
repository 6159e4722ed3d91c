"""`python -m benchmarks`: `sightline bench` with all cases, those against textbook forms and other packages too."""

from __future__ import annotations

import typer

from sightline import cli
from sightline.commands.look import BenchOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(cli.make_command(BenchOptions, home="benchmarks"))


def main() -> None:
    """Run the cases that the command line names."""
    cli.main(app)


if __name__ == "__main__":
    main()
