"""A small exploration for tests, also as a process of its own that can be killed."""

import sys
from dataclasses import replace
from pathlib import Path

from shiftcore.explore.pool import open_pool
from shiftcore.explore.resources import Area
from shiftcore.explore.study import Settings, Study, explore
from shiftcore.explore.trial import File
from shiftcore.golden.config import HardwareConfig

SPACE = {
    "cols": (4, 8, 16, 32),
    "buffer_depth": (64, 256, 4096),
    "accumulator_depth": (64, 512),
    "bus_bits": (64,),
    "multiplier": ("lut", "dsp"),
    "scale_multiplier": ("dsp",),
    "weight_fifo": (32, 128),
    "load_fifo": (64,),
    "store_fifo": (64,),
    "queue_depth": (8,),
}


def fake(config: HardwareConfig, target: str) -> Area:
    """Resources by plain formulas, with nothing of a device in them: more of everything costs
    more, and wide words slow the clock."""
    size = config.rows * config.cols
    word = config.rows * config.act_bits + 8
    dsp = config.multiplier == "dsp"
    return Area(
        lut=2000 + size * (8 if dsp else 2 * config.weight_bits * config.act_bits)
        + 800 * config.cols + 40 * config.rows,
        ff=2000 + size * (config.weight_bits + config.act_bits + 8) + 700 * config.cols,
        dsp=size * dsp + config.cols,
        bram=2 * config.cols + -(-config.buffer_depth * word // 18432),
        fmax_mhz=150.0 - config.weight_bits - config.cols / 4,
    )  # fmt: skip


def settings(network: Path, **changes: object) -> Settings:
    """Two objectives for a network that is quantized."""
    own = Settings(
        File.of(network), "ecp5-85k-8", {"lut": 25000, "bram": 90}, None,
        ("images_per_s", "lut"), space=SPACE,
    )  # fmt: skip
    return replace(own, **changes)


if __name__ == "__main__":
    folder, network, on, trials = sys.argv[1:]
    with Study.open(Path(folder), settings(Path(network)), fake) as study, open_pool(on) as pool:
        explore(study, pool, int(trials), lambda *what: print(*what, flush=True))
