"""The estimate of resources, as trials use it."""

from ..golden.config import HardwareConfig
from .trial import Area

__all__ = ["capacity", "resources"]


def resources(config: HardwareConfig, target: str) -> Area:
    """What a configuration takes of a device, estimated."""
    raise NotImplementedError


def capacity(target: str) -> dict[str, int]:
    """What a device holds; empty for a family."""
    raise NotImplementedError
