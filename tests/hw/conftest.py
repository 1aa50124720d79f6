"""What the tests of gateware share."""

import os

import pytest

from shiftcore.sim.runner import Simulator


@pytest.fixture(scope="session")
def simulator() -> Simulator:
    """Verilator, unless ``SHIFTCORE_SIMULATOR`` says ``icarus``: quick builds and slow runs."""
    name = os.environ.get("SHIFTCORE_SIMULATOR", "verilator")
    if name == "verilator" or name == "icarus":
        return name
    raise ValueError(f"SHIFTCORE_SIMULATOR must be 'verilator' or 'icarus', not {name!r}")
