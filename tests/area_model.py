"""A model of resources for tests: plain formulas, with nothing of a device in them."""

from types import SimpleNamespace

from shiftcore.golden.config import HardwareConfig


def fake(config: HardwareConfig, target: str) -> SimpleNamespace:
    """More of everything costs more; wide words slow the clock."""
    size = config.rows * config.cols
    word = config.rows * config.act_bits + 8
    multiplier = config.multiplier == "dsp"
    product = 8 if multiplier else config.weight_bits * config.act_bits * 2
    return SimpleNamespace(
        lut=2000 + size * product + 800 * config.cols + 40 * config.rows,
        ff=2000 + size * (config.weight_bits + config.act_bits + 8) + 700 * config.cols,
        dsp=(size if multiplier else 0) + config.cols * (config.scale_multiplier == "dsp"),
        bram=2 * config.cols + -(-config.buffer_depth * word // 18432),
        fmax_mhz=150 - config.weight_bits - config.rows / 4,
    )
