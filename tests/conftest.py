"""What every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# One thread for each test process: the processes themselves fill the machine. Read when torch and
# numpy's BLAS are first imported, therefore set here.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The gate gives the same answer every time; no deadline, since other builds may load the machine.
settings.register_profile("gate", derandomize=True, database=None, deadline=None)
settings.load_profile("gate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--waves", metavar="DIR", help="leave the waveforms of simulations in DIR")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--waves"):
        os.environ["SHIFTCORE_WAVES"] = str(Path(str(config.getoption("--waves"))).absolute())


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real weights and images that `SHIFTCORE_DATA` names; without it, skip."""
    name = os.environ.get("SHIFTCORE_DATA")
    if not name:
        pytest.skip("SHIFTCORE_DATA names no folder with real weights and images")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"SHIFTCORE_DATA must name a folder, not {name!r}")
    return folder
