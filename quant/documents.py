"""Tables, plots and folders of reports: the same content gives the same bytes."""

from collections.abc import Mapping
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

__all__ = ["Table", "check_plots", "markdown", "svg", "write_texts"]

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


def markdown(table: Table) -> str:
    """A heading and a table whose first column is text and the others are numbers."""
    title, headings, rows = table
    ruler = ("---", *("---:" for _ in headings[1:]))
    lines = ["| " + " | ".join(row) + " |" for row in (headings, ruler, *rows)]
    return "\n".join([f"## {title}", "", *lines])


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Leave files in `folder`, which is made if missing, each whole or not at all."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
