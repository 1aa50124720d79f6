"""How a benchmark of several rows shows them, and when it fails."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["Row", "print_table", "show"]

Row = dict[str, Any]
"""What was measured of one thing, by name."""


def print_table(
    rows: Sequence[Row],
    headings: Sequence[str],
    cells: Callable[[Row], list[str]],
    *,
    title: str,
    caption: str | None = None,
) -> None:
    """Print `rows` on standard output, as a table with a column for each heading."""
    table = Table(title=title, caption=caption, box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=max(Console().width, 160)).print(table)


def show(
    rows: Sequence[Row],
    headings: Sequence[str],
    cells: Callable[[Row], list[str]],
    failed: Callable[[Row], bool],
    *,
    title: str,
    caption: str | None = None,
    as_json: bool,
) -> None:
    """Print `rows` on standard output, as a table with a column for each heading or as JSON.

    Exits with status 1 if a row has failed.
    """
    if as_json:
        click.echo(json.dumps(rows))
    else:
        print_table(rows, headings, cells, title=title, caption=caption)
    if any(failed(row) for row in rows):
        raise SystemExit(1)
