"""The hardware configuration: one TOML file, one frozen object, every unit's spec."""

import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from .accelerator import AcceleratorSpec
from .array import ArraySpec, Multiplier, TileFormat
from .engine import EngineSpec
from .floats import FLOAT32, SCALE_FORMATS
from .requantizer import RequantizerSpec
from .scale_unit import AddSpec, ProductSpec, ScaleUnitSpec

__all__ = ["ConfigError", "HardwareConfig"]


class ConfigError(ValueError):
    """A hardware configuration that cannot be built."""


@dataclass(frozen=True)
class HardwareConfig:
    """Parameters of one accelerator.

    Parameters
    ----------
    rows : R, also the block size B of the networks it runs, 1 to 128
    cols : C, 1 to 128
    weight_bits, act_bits : b and m, 2 to 8
    scale : "bf16", "fp16", "fp32" or "e8m0"
    accumulator : "float32"
    accumulator_depth : accumulators of a column, 2 to 65536, and at least as many as a block of
        ``rows`` channels takes: ceil(rows / cols)
    bus_bits : width of the memory port and the tile stream: 32, 64, 128 or 256
    multiplier : of the processing elements, "lut" or "dsp"
    scale_multiplier : of the scale units, "lut" or "dsp"
    clamp : whether activations other than ReLU (ReLU6, clamp) can be applied
    buffer_depth : words (blocks of one pixel) of the activation buffer, 16 to 1048576
    queue_depth : instructions that wait in front of each engine, 2 to 64
    weight_fifo, load_fifo, store_fifo : beats buffered between memory and each engine, at least two
        bursts, to 4096
    burst_beats : longest burst on the memory port, 2 to 256
    outstanding : bursts on their way at once, in each direction, 2 to 32
    """

    rows: int
    cols: int
    weight_bits: int = 4
    act_bits: int = 4
    scale: str = "bf16"
    accumulator: str = "float32"
    accumulator_depth: int = 512
    bus_bits: int = 64
    multiplier: Multiplier = "lut"
    scale_multiplier: Multiplier = "dsp"
    clamp: bool = True
    buffer_depth: int = 4096
    queue_depth: int = 8
    weight_fifo: int = 128
    load_fifo: int = 64
    store_fifo: int = 64
    burst_beats: int = 16
    outstanding: int = 8

    def __post_init__(self) -> None:
        numbers = {
            "rows": range(1, 129),
            "cols": range(1, 129),
            "weight_bits": range(2, 9),
            "act_bits": range(2, 9),
            "accumulator_depth": range(2, 65537),
            "buffer_depth": range(16, (1 << 20) + 1),
            "queue_depth": range(2, 65),
            "burst_beats": range(2, 257),
            "outstanding": range(2, 33),
        }
        for name, allowed in numbers.items():
            value = getattr(self, name)
            if type(value) is not int or value not in allowed:
                raise ConfigError(
                    f"{name} must be a whole number from {allowed[0]} to {allowed[-1]}, "
                    f"not {value!r}"
                )
        choices = {
            "scale": tuple(SCALE_FORMATS),
            "accumulator": ("float32",),
            "bus_bits": (32, 64, 128, 256),
            "multiplier": ("lut", "dsp"),
            "scale_multiplier": ("lut", "dsp"),
            "clamp": (False, True),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if not isinstance(value, type(allowed[0])) or value not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ConfigError(f"{name} must be one of {listed}, not {value!r}")
        for name in ("weight_fifo", "load_fifo", "store_fifo"):
            value, least = getattr(self, name), 2 * self.burst_beats
            if type(value) is not int or value not in range(least, 4097):
                raise ConfigError(
                    f"{name} must be a whole number from {least} (two bursts) to 4096, "
                    f"not {value!r}"
                )
        rows = self.requantizer.beats_per_block
        if self.accumulator_depth < rows:
            raise ConfigError(
                f"accumulator_depth must be at least {rows}, not {self.accumulator_depth}: "
                f"a block of {self.rows} channels takes {rows} accumulators of {self.cols} columns"
            )

    @classmethod
    def load(cls, path: Path | str) -> "HardwareConfig":
        """Read a TOML file. Raises ``ConfigError`` with the file, the key and what is allowed."""
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not TOML: {error}") from error
        known = [f.name for f in fields(cls)]
        for key in table:
            if key not in known:
                raise ConfigError(f"{path}: unknown key {key!r}; allowed are {', '.join(known)}")
        for key in ("rows", "cols"):
            if key not in table:
                raise ConfigError(f"{path}: key {key!r} is missing")
        try:
            return cls(**table)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def dumps(self) -> str:
        """The configuration as TOML; :meth:`load` reads it."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values)

    @property
    def array(self) -> ArraySpec:
        return ArraySpec(self.rows, self.cols, self.weight_bits, self.act_bits, self.multiplier)

    @property
    def tile(self) -> TileFormat:
        return TileFormat(self.array, SCALE_FORMATS[self.scale], self.bus_bits)

    @property
    def scale_unit(self) -> ScaleUnitSpec:
        product = ProductSpec(
            self.array.sum_bits,
            SCALE_FORMATS[self.scale].significand_bits,
            self.act_bits,
            FLOAT32,
            self.scale_multiplier,
        )
        return ScaleUnitSpec(product, AddSpec(FLOAT32), self.accumulator_depth)

    @property
    def requantizer(self) -> RequantizerSpec:
        return RequantizerSpec(self.rows, self.cols, self.act_bits)

    @property
    def engine(self) -> EngineSpec:
        return EngineSpec(self.array, self.tile, self.scale_unit, self.requantizer, self.clamp)

    @property
    def accelerator(self) -> AcceleratorSpec:
        return AcceleratorSpec(
            self.engine,
            self.buffer_depth,
            self.queue_depth,
            self.weight_fifo,
            self.load_fifo,
            self.store_fifo,
            self.burst_beats,
            self.outstanding,
        )
