"""How a bench inside a simulator reads its job and hands back its answer."""

import os
import pickle
from pathlib import Path
from typing import Any

__all__ = ["answer", "job"]


def _folder() -> Path:
    return Path(os.environ["SHIFTCORE_EXCHANGE"])


def job() -> Any:
    """What :func:`shiftcore.sim.runner.simulate` was given."""
    return pickle.loads((_folder() / "job.pickle").read_bytes())


def answer(result: Any) -> None:
    """What :func:`shiftcore.sim.runner.simulate` returns."""
    (_folder() / "answer.pickle").write_bytes(pickle.dumps(result))
