"""How benchmarks measure time on a machine that is never quite quiet."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from rich.console import Console
from rich.progress import track

__all__ = ["medians"]


def medians(tasks: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each task. They run by turns, each once before it counts."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in track(range(-1, repetitions), "running", console=Console(stderr=True)):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: median(found) for name, found in seconds.items()}
