"""Long runs of many cases, which go on where an earlier run stopped."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from rich.progress import track

from .runner import SimulationError, sources_hash

__all__ = ["current_sources", "finished", "resume"]


class _Case(Protocol):
    """A dataclass of values that JSON has."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seed(self) -> int: ...

    @property
    def sources(self) -> str: ...


CaseT = TypeVar("CaseT", bound=_Case)


@cache
def current_sources() -> str:
    """What a case says about the state of gateware, models and simulations that it was run in."""
    return sources_hash("golden", "estimate", "hw", "host", "sim")


def finished(path: Path, form: type[CaseT]) -> dict[int, CaseT]:
    """Cases of this state of the sources that an earlier run left in `path`, by seed."""
    if not path.exists():
        return {}
    sources = current_sources()
    cases = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            case = form(**json.loads(line))
        except (ValueError, TypeError):
            continue  # cut off when a run was stopped, or of an earlier form
        if case.sources == sources:
            cases[case.seed] = case
    return cases


def resume(
    path: Path,
    form: type[CaseT],
    work: Callable[[range], list[CaseT]],
    cases: int,
    *,
    title: str,
    jobs: int,
    chunk: int = 1,
) -> tuple[list[CaseT], dict[int, str]]:
    """Run what is missing of the seeds 0 to `cases` less one, in processes, with a progress bar.

    Parameters
    ----------
    path : where finished cases are kept, a line each
    form : the dataclass of a case
    work : runs the cases of some seeds; a function of a module
    jobs : processes
    chunk : seeds at a time

    Returns the cases in the order of their seeds, and for each first seed of a chunk that raised
    ``SimulationError`` or ``ValueError`` what it said.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = finished(path, form)
    chunks = [range(first, min(first + chunk, cases)) for first in range(0, cases, chunk)]
    missing = [seeds for seeds in chunks if any(seed not in done for seed in seeds)]
    failed: dict[int, str] = {}
    with ProcessPoolExecutor(jobs) as pool, path.open("a", encoding="utf-8") as file:
        futures = {pool.submit(work, seeds): seeds for seeds in missing}
        for future in track(as_completed(futures), title, total=len(futures)):
            try:
                found = future.result()
            except (SimulationError, ValueError) as error:
                failed[futures[future].start] = " ".join(str(error).split())
                continue
            for case in found:
                done[case.seed] = case
                file.write(json.dumps(asdict(case)) + "\n")
            file.flush()
    return [done[seed] for seed in range(cases) if seed in done], failed
