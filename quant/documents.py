"""Tables, plots and folders of reports: the same content gives the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

__all__ = ["Table", "check_plots", "markdown", "markdown_rows", "svg", "write_text", "write_texts"]

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""title, headings, rows"""


def check_plots() -> None:
    """Raise ``ModuleNotFoundError`` if matplotlib is missing: before long work, not after it."""
    import_module("matplotlib")


def svg(figure: Any) -> str:
    """A matplotlib figure as text without a date, and without names that depend on chance."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "shiftcore"}):
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def markdown_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and the others are numbers."""
    ruler = ("---", *("---:" for _ in headings[1:]))
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ruler, *rows))


def markdown(table: Table) -> str:
    """A heading, and the table below it."""
    title, headings, rows = table
    return f"## {title}\n\n{markdown_rows(headings, rows)}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Leave files in `folder`, which is made if missing, each whole or not at all."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
