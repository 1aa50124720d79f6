"""Where trials run: in this process, on a local cluster, or on any that Dask reaches."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["QUEUES", "Pool", "check_place", "open_pool"]

QUEUES = {
    "slurm": "SLURMCluster",
    "lsf": "LSFCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "oar": "OARCluster",
    "htcondor": "HTCondorCluster",
}
"""queueing systems and their classes in dask_jobqueue"""

_ANY_PORT = "127.0.0.1:0"
"""of the scheduler's own pages: several studies on a machine do not get in each other's way"""

_PATIENCE = 60
"""seconds until work is sent where there is no worker yet"""


@dataclass(frozen=True)
class Pool:
    """Workers.

    Parameters
    ----------
    executor : runs functions of plain data
    width : how many can run at once, now
    """

    executor: Executor
    width: Callable[[], int]


class _Here(Executor):
    """Runs everything at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def check_place(on: str) -> None:
    """Raise ``ValueError`` if `on` is nothing that :func:`open_pool` knows."""
    known = ("here", "local", *QUEUES)
    if on not in known and "://" not in on:
        raise ValueError(
            f"{on!r} is none of {', '.join(known)} and no address such as tcp://host:8786"
        )


@contextmanager
def open_pool(on: str = "local", workers: int = 2) -> Iterator[Pool]:
    """Workers until the end of the context.

    A worker that dies has its work done again by another one; whatever kills this process, local
    workers end with it.

    Parameters
    ----------
    on : "here", this process; "local", processes of this machine; a key of :data:`QUEUES`, jobs as
        Dask's configuration of it describes them; else the address of a Dask scheduler
    workers : processes or jobs; a scheduler has its own

    Raises ``ValueError`` if there is no such scheduler.
    """
    check_place(on)
    if on == "here":
        yield Pool(_Here(), lambda: 1)
        return
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if on == "local":
            cluster: Any = LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True,
                dashboard_address=_ANY_PORT, silence_logs=logging.CRITICAL,
            )  # fmt: skip
        elif on in QUEUES:
            import dask_jobqueue

            cluster = getattr(dask_jobqueue, QUEUES[on])(
                scheduler_options={"dashboard_address": _ANY_PORT}
            )
            cluster.scale(jobs=workers)
        else:
            cluster = None
        try:
            client: Any = Client(on) if cluster is None else Client(stack.enter_context(cluster))
        except OSError:
            raise ValueError(f"there is no Dask scheduler at {on}") from None
        stack.enter_context(client)
        # Workers of a queue, or of a cluster that grows with its work, come when they come.
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=_PATIENCE)
        yield Pool(client.get_executor(pure=False), lambda: max(1, sum(client.nthreads().values())))
