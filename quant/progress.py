"""Progress of long work, as bars on a terminal."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

from .search import ProgressCallback

__all__ = ["progress_bars"]


@contextmanager
def progress_bars(console: Console) -> Iterator[ProgressCallback]:
    """Gives a :data:`.search.ProgressCallback` with a bar for each message.

    At the end they vanish.
    """
    with Progress(console=console, transient=True) as bars:
        tasks = defaultdict[str, TaskID](lambda: bars.add_task(""))

        def progress(message: str, done: int, of: int) -> None:
            bars.update(tasks[message], description=message, completed=done, total=of)

        yield progress
