"""What may vary: keys of the hardware configuration and the candidates of each."""

from collections.abc import Mapping
from typing import Any

from ..golden.config import KEYS
from ..golden.network import QuantizedNetwork

__all__ = ["DEFAULT", "NETWORK_KEYS", "Space", "full_space", "parse"]

Space = Mapping[str, tuple[Any, ...]]
"""key of :data:`~shiftcore.golden.config.KEYS` → its candidates"""

NETWORK_KEYS = ("weight_bits", "act_bits", "rows", "scale", "accumulator")
"""b, m, B and the formats of scales and accumulators, which network and array have in common"""

DEFAULT: Space = {
    "weight_bits": (2, 3, 4, 5, 6, 8),
    "act_bits": (4, 5, 6, 8),
    "rows": (8, 16, 32, 64),
    "cols": (4, 8, 12, 16, 24, 32, 48, 64),
    "buffer_depth": (256, 512, 1024, 2048, 4096, 8192, 16384),
    "accumulator_depth": (64, 128, 256, 512, 1024),
    "bus_bits": (64, 128),
    "multiplier": ("lut", "dsp"),
    "scale_multiplier": ("lut", "dsp"),
    "weight_fifo": (32, 64, 128, 256),
    "load_fifo": (32, 64, 128),
    "store_fifo": (32, 64, 128),
    "queue_depth": (4, 8, 16),
}


def _value(key: str, text: str) -> Any:
    sample = KEYS[key].allowed[0]
    if isinstance(sample, bool):
        return {"true": True, "false": False}.get(text, text)
    try:
        return int(text) if isinstance(sample, int) else text
    except ValueError:
        return text  # which the key then refuses


def parse(text: str) -> tuple[str, tuple[Any, ...]]:
    """A key and its candidates, in order and each once, of ``key=value,value``.

    Raises ``ValueError`` that says what is allowed.
    """
    key, equals, listed = text.partition("=")
    if not equals or key not in KEYS:
        raise ValueError(f"{text!r} must be key=value,value with one of the keys {', '.join(KEYS)}")
    values = [_value(key, each.strip()) for each in listed.split(",")]
    for value in values:
        KEYS[key].check(key, value)
    # Numbers by size, so that neighbours are alike; names in the order of their key.
    allowed = KEYS[key].allowed
    return key, tuple(sorted(set(values), key=allowed.index))


def full_space(given: Space, network: QuantizedNetwork | None = None) -> Space:
    """:data:`DEFAULT` with the candidates that are `given`; of a `network` that is quantized
    already its own b, m, B, scales and accumulators.

    Raises ``ValueError`` if those are given too.
    """
    space = {**DEFAULT, **given}
    if network is None:
        return space
    scale = network.layers[0].terms[0].kernel.scale_format.name
    values = (network.weight_bits, network.act_bits, network.block, scale, network.accumulator)
    for key, value in zip(NETWORK_KEYS, values, strict=True):
        if key in given:
            raise ValueError(f"{key} cannot vary: the network is quantized already, with {value}")
        space[key] = (value,)
    return space
