"""The hardware configuration: one TOML file, one frozen object, every unit's spec."""

import json
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from .accelerator import ADDRESS_BITS, CONTROLS, AcceleratorSpec, Control
from .array import STYLES, ArraySpec, Style, TileFormat, family_of
from .engine import EngineSpec
from .fixed import ACCUMULATORS, AccumulatorFormat, accumulator_format
from .floats import SCALE_FORMATS
from .pipeline import PIPELINES
from .requantizer import RequantizerSpec
from .scale_unit import (
    MULTIPLIERS,
    BlockProductSpec,
    Multiplier,
    ProductSpec,
    ScaleUnitSpec,
    add_spec,
    product_spec,
)

__all__ = ["KEYS", "ConfigError", "HardwareConfig", "Key"]


class ConfigError(ValueError):
    """A hardware configuration that cannot be built."""


@dataclass(frozen=True)
class Key:
    """What a key of the configuration may be, and what it means.

    Parameters
    ----------
    allowed : a range of whole numbers, or all choices
    doc : meaning and unit
    least : what the lowest number is, where it follows from another key
    listed : the choices in short, where they are many
    """

    allowed: range | tuple[str | int, ...]
    doc: str
    least: str = ""
    listed: str = ""

    def check(self, name: str, value: object) -> None:
        """Raise ``ConfigError`` if `value` is not allowed."""
        if isinstance(self.allowed, range):
            if type(value) is not int or value not in self.allowed:
                low = f"{self.allowed[0]} ({self.least})" if self.least else self.allowed[0]
                raise ConfigError(
                    f"{name} must be a whole number from {low} to {self.allowed[-1]}, not {value!r}"
                )
        elif not isinstance(value, type(self.allowed[0])) or value not in self.allowed:
            listed = self.listed or ", ".join(map(repr, self.allowed))
            raise ConfigError(f"{name} must be one of {listed}, not {value!r}")


def _fifo(doc: str, burst_beats: int = 2) -> Key:
    return Key(range(2 * burst_beats, 4097), doc, "two bursts")


KEYS: dict[str, Key] = {
    "rows": Key(range(1, 129), "R: rows of the array, and the block size B of its networks"),
    "cols": Key(range(1, 129), "C: columns of the array"),
    "weight_bits": Key(range(2, 9), "b: bits of a weight code"),
    "act_bits": Key(range(2, 9), "m: bits of an activation code"),
    "scale": Key(tuple(SCALE_FORMATS), "format of the weights' scales"),
    "accumulator": Key(
        ACCUMULATORS,
        "format of the accumulators; fixed point has so many bits",
        listed=f"{ACCUMULATORS[0]!r}, {ACCUMULATORS[1]!r} to {ACCUMULATORS[-1]!r}",
    ),
    "accumulator_depth": Key(
        range(2, 65537), "accumulators of a column; at least `ceil(rows / cols)`, for one block"
    ),
    "bus_bits": Key((32, 64, 128, 256), "bits of a beat: of the memory port and the tile stream"),
    "multiplier": Key(STYLES, "multipliers of the processing elements"),
    "scale_multiplier": Key(MULTIPLIERS, "multipliers of the scale units"),
    "pipeline": Key(tuple(PIPELINES), "where the scale units have registers"),
    "clamp": Key(
        (False, True), "whether activations other than ReLU (ReLU6, clamp) can be applied"
    ),
    "buffer_depth": Key(
        range(16, (1 << 20) + 1), "words (blocks of one pixel) of the activation buffer"
    ),
    "control": Key(
        CONTROLS,
        "whether instructions overlap: queued for each unit, or one after the other in less area",
    ),
    "queue_depth": Key(
        range(2, 65), "instructions that wait in front of each unit, under queued control"
    ),
    "weight_fifo": _fifo("beats between memory and `WEIGHTS`"),
    "load_fifo": _fifo("beats between memory and `LOAD`"),
    "store_fifo": _fifo("beats between `DRAIN` and memory"),
    "burst_beats": Key(range(2, 257), "beats of the longest burst on the memory port"),
    "outstanding": Key(range(2, 33), "bursts on their way at once, in each direction"),
    "address_bits": Key(range(16, ADDRESS_BITS + 1), "bits of a byte's address in memory"),
}
"""All keys, in the order of :class:`HardwareConfig`."""


_PLAIN = {
    "ecp5-carry": "lut", "ecp5-ternary": "lut", "ice40-dual": "dsp",
    "ecp5-dsp": "dsp", "ecp5-fast": "fast",
}  # fmt: skip
"""What to have instead of a form that instantiates cells of a family."""


@dataclass(frozen=True)
class HardwareConfig:
    """Parameters of one accelerator; :data:`KEYS` says what each means and may be.

    Raises ``ConfigError`` with the key and what is allowed.
    """

    rows: int
    cols: int
    weight_bits: int = 4
    act_bits: int = 4
    scale: str = "bf16"
    accumulator: str = "float32"
    accumulator_depth: int = 512
    bus_bits: int = 64
    multiplier: Style = "lut"
    scale_multiplier: Multiplier = "dsp"
    pipeline: str = "balanced"
    clamp: bool = True
    buffer_depth: int = 4096
    control: Control = "queued"
    queue_depth: int = 8
    weight_fifo: int = 128
    load_fifo: int = 64
    store_fifo: int = 64
    burst_beats: int = 16
    outstanding: int = 8
    address_bits: int = 32

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            if not key.least:
                key.check(name, getattr(self, name))
        for name, key in KEYS.items():
            if key.least:
                _fifo(key.doc, self.burst_beats).check(name, getattr(self, name))
        try:
            _ = self.scale_unit  # which, as the array, refuses widths that a multiplier lacks
        except ValueError as error:
            raise ConfigError(str(error)) from None
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

    def on(self, family: str | None) -> "HardwareConfig":
        """The same accelerator for an FPGA `family`, None for an unknown one, with the same numbers
        in the same cycles.

        Where a form instantiates cells of another family, it is the plain one. On iCE40 no DSP
        block multiplies where yosys gets that wrong: two registers after a multiplication of
        floating-point products go into an SB_MAC16 together, and its output is lost.
        """
        lacking = [key for key, needed in self.families.items() if needed != family]
        plain = replace(self, **{key: _PLAIN[getattr(self, key)] for key in lacking})
        product = plain.scale_unit.product
        lost = isinstance(product, ProductSpec) and "deliver" in product.cuts
        if family == "ice40" and lost and plain.scale_multiplier == "dsp":
            return replace(plain, scale_multiplier="lut")
        return plain

    @property
    def families(self) -> dict[str, str]:
        """Keys that ask for cells of a vendor, and the FPGA family that has them."""
        chosen = {key: getattr(self, key) for key in ("multiplier", "scale_multiplier", "pipeline")}
        found = {key: family_of(choice) for key, choice in chosen.items()}
        return {key: family for key, family in found.items() if family is not None}

    @property
    def accumulator_format(self) -> AccumulatorFormat:
        return accumulator_format(self.accumulator)

    @property
    def array(self) -> ArraySpec:
        return ArraySpec(self.rows, self.cols, self.weight_bits, self.act_bits, self.multiplier)

    @property
    def tile(self) -> TileFormat:
        return TileFormat(
            self.array, SCALE_FORMATS[self.scale], self.bus_bits, self.accumulator_format
        )

    @property
    def scale_unit(self) -> ScaleUnitSpec:
        form = self.accumulator_format
        block = BlockProductSpec(
            self.array.sum_bits, SCALE_FORMATS[self.scale].significand_bits, self.act_bits
        )
        cuts = PIPELINES[self.pipeline]
        product = product_spec(block, form, self.scale_multiplier, cuts)
        add, depth = add_spec(form, cuts), self.accumulator_depth
        shared = self.control == "serial" and "read" not in cuts.fetch
        return ScaleUnitSpec(product, add, depth, cuts.fetch, cuts.memory, shared)

    @property
    def requantizer(self) -> RequantizerSpec:
        return RequantizerSpec(self.rows, self.cols, self.act_bits, form=self.accumulator_format)

    @property
    def engine(self) -> EngineSpec:
        return EngineSpec(self.array, self.tile, self.scale_unit, self.requantizer, self.clamp)

    @property
    def accelerator(self) -> AcceleratorSpec:
        return AcceleratorSpec(
            self.engine,
            self.buffer_depth,
            self.control,
            self.queue_depth,
            self.weight_fifo,
            self.load_fifo,
            self.store_fifo,
            self.burst_beats,
            self.outstanding,
            self.address_bits,
        )
