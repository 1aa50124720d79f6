"""The configuration of all tests that simulate whole networks, which so share one build."""

from shiftcore.golden.config import HardwareConfig

__all__ = ["CONFIG"]

# Few columns: half of the time is the compilation of the simulator.
CONFIG = HardwareConfig(16, 4, buffer_depth=4096)
