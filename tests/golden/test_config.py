"""`HardwareConfig`: what a TOML file may say, and the exact words of every refusal."""

import re
from pathlib import Path

import pytest

from shiftcore.golden.array import STYLES, ArraySpec, TileFormat
from shiftcore.golden.config import ConfigError, HardwareConfig
from shiftcore.golden.floats import BF16, E8M0, FLOAT32, FP16, FP32
from shiftcore.golden.scale_unit import AddSpec, ProductSpec, ScaleUnitSpec

KEYS = (
    "rows, cols, weight_bits, act_bits, scale, accumulator, accumulator_depth, bus_bits, "
    "multiplier, scale_multiplier, pipeline, clamp, buffer_depth, control, queue_depth, "
    "weight_fifo, load_fifo, store_fifo, burst_beats, outstanding, address_bits"
)
LISTED = ", ".join(map(repr, STYLES))
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example():
    config = HardwareConfig.load(EXAMPLES / "array16.toml")
    assert config == HardwareConfig(16, 16, clamp=False, buffer_depth=14563)
    assert config.buffer_depth == (1 << 20) // config.accelerator.word_bits


def test_every_key(tmp_path: Path):
    path = tmp_path / "hw.toml"
    path.write_text(
        """
        rows = 8
        cols = 12
        weight_bits = 3
        act_bits = 5
        scale = "fp16"
        accumulator = "float32"
        accumulator_depth = 100
        bus_bits = 128
        multiplier = "dsp"
        scale_multiplier = "lut"
        pipeline = "short"
        clamp = false
        buffer_depth = 321
        control = "serial"
        queue_depth = 5
        weight_fifo = 64
        load_fifo = 70
        store_fifo = 80
        burst_beats = 32
        outstanding = 3
        """
    )
    config = HardwareConfig(
        8, 12, 3, 5, "fp16", "float32", 100, 128, "dsp", "lut", "short", False, 321,
        "serial", 5, 64, 70, 80, 32, 3,
    )  # fmt: skip
    assert HardwareConfig.load(str(path)) == config
    path.write_text(config.dumps())
    assert HardwareConfig.load(path) == config


def test_defaults(tmp_path: Path):
    path = tmp_path / "hw.toml"
    path.write_text("rows = 1\ncols = 128\n")
    assert HardwareConfig.load(path) == HardwareConfig(
        1, 128, 4, 4, "bf16", "float32", 512, 64, "lut", "dsp", "balanced", True, 4096,
        "queued", 8, 128, 64, 64, 16, 8,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Rows = 3", f"unknown key 'Rows'; allowed are {KEYS}"),
        ("colour = 'red'", f"unknown key 'colour'; allowed are {KEYS}"),
        ("[rows2]", f"unknown key 'rows2'; allowed are {KEYS}"),
        ("rows = 0", "rows must be a whole number from 1 to 128, not 0"),
        ("rows = 129", "rows must be a whole number from 1 to 128, not 129"),
        ("rows = true", "rows must be a whole number from 1 to 128, not True"),
        ("rows = 4.0", "rows must be a whole number from 1 to 128, not 4.0"),
        ("rows = '4'", "rows must be a whole number from 1 to 128, not '4'"),
        ("rows = [4]", "rows must be a whole number from 1 to 128, not [4]"),
        ("cols = 0", "cols must be a whole number from 1 to 128, not 0"),
        ("cols = 129", "cols must be a whole number from 1 to 128, not 129"),
        ("weight_bits = 1", "weight_bits must be a whole number from 2 to 8, not 1"),
        ("weight_bits = 9", "weight_bits must be a whole number from 2 to 8, not 9"),
        ("act_bits = 1", "act_bits must be a whole number from 2 to 8, not 1"),
        ("act_bits = 9", "act_bits must be a whole number from 2 to 8, not 9"),
        (
            "accumulator_depth = 1",
            "accumulator_depth must be a whole number from 2 to 65536, not 1",
        ),
        (
            "accumulator_depth = 65537",
            "accumulator_depth must be a whole number from 2 to 65536, not 65537",
        ),
        ("scale = 'fp8'", "scale must be one of 'bf16', 'fp16', 'fp32', 'e8m0', not 'fp8'"),
        ("scale = 16", "scale must be one of 'bf16', 'fp16', 'fp32', 'e8m0', not 16"),
        ("scale = ['bf16']", "scale must be one of 'bf16', 'fp16', 'fp32', 'e8m0', not ['bf16']"),
        (
            "accumulator = 'fixed19'",
            "accumulator must be one of 'float32', 'fixed20' to 'fixed40', not 'fixed19'",
        ),
        ("bus_bits = 48", "bus_bits must be one of 32, 64, 128, 256, not 48"),
        ("bus_bits = 64.0", "bus_bits must be one of 32, 64, 128, 256, not 64.0"),
        ("bus_bits = '64'", "bus_bits must be one of 32, 64, 128, 256, not '64'"),
        ("multiplier = 'luts'", f"multiplier must be one of {LISTED}, not 'luts'"),
        (
            "weight_bits = 8\nmultiplier = 'packed18'",
            "multiplier 'packed18' needs 2 * weight_bits + act_bits + 1 of at most 18, not 21",
        ),
        (
            "scale_multiplier = false",
            "scale_multiplier must be one of 'lut', 'dsp', 'ecp5-dsp', not False",
        ),
        (
            "scale = 'fp32'\nscale_multiplier = 'ecp5-dsp'",
            "multiplier 'ecp5-dsp' of scale units takes 18 bits at most, not 24",
        ),
        (
            "pipeline = 'long'",
            "pipeline must be one of 'balanced', 'short', 'fast', 'ecp5-fast', not 'long'",
        ),
        (
            "accumulator_depth = 16385\npipeline = 'ecp5-fast'",
            "block RAMs of ECP5 hold 16384 accumulators at most, not 16385",
        ),
        ("clamp = 1", "clamp must be one of False, True, not 1"),
        (
            "buffer_depth = 15",
            "buffer_depth must be a whole number from 16 to 1048576, not 15",
        ),
        (
            "buffer_depth = 1048577",
            "buffer_depth must be a whole number from 16 to 1048576, not 1048577",
        ),
        ("queue_depth = 1", "queue_depth must be a whole number from 2 to 64, not 1"),
        ("queue_depth = 65", "queue_depth must be a whole number from 2 to 64, not 65"),
        ("burst_beats = 1", "burst_beats must be a whole number from 2 to 256, not 1"),
        ("burst_beats = 257", "burst_beats must be a whole number from 2 to 256, not 257"),
        ("outstanding = 1", "outstanding must be a whole number from 2 to 32, not 1"),
        ("outstanding = 33", "outstanding must be a whole number from 2 to 32, not 33"),
        *(
            (
                f"{name} = {value}",
                f"{name} must be a whole number from 32 (two bursts) to 4096, not {value}",
            )
            for name in ("weight_fifo", "load_fifo", "store_fifo")
            for value in (31, 4097)
        ),
    ],
)
def test_a_bad_value_is_refused(tmp_path: Path, line: str, message: str):
    path = tmp_path / "hw.toml"
    key = line.split(" ")[0]
    lines = [f"{other} = 4" for other in ("rows", "cols") if other != key]
    path.write_text("\n".join([*lines, line]))
    with pytest.raises(ConfigError) as error:
        HardwareConfig.load(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_block_that_does_not_fit_the_accumulators_is_refused():
    assert HardwareConfig(9, 4, accumulator_depth=3).requantizer.beats_per_block == 3
    message = (
        "accumulator_depth must be at least 3, not 2: "
        "a block of 9 channels takes 3 accumulators of 4 columns"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        HardwareConfig(9, 4, accumulator_depth=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cols = 4", "key 'rows' is missing"),
        (b"rows = 4", "key 'cols' is missing"),
        (b"", "key 'rows' is missing"),
        (b"rows = 4\nrows = 5", "is not TOML: Cannot overwrite a value"),
        (b"rows: 4", "is not TOML: Expected '=' after a key in a key/value pair"),
        (b"rows = \xff", "is not TOML: 'utf-8' codec can't decode byte 0xff in position 7"),
    ],
)
def test_a_file_that_is_not_complete_toml_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "hw.toml"
    path.write_bytes(content)
    start = re.escape(f"{path}: {message}")
    with pytest.raises(ConfigError, match=f"^{start}[^\n]*$"):
        HardwareConfig.load(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    path = tmp_path / "missing.toml"
    for unreadable, why in ((path, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as error:
            HardwareConfig.load(unreadable)
        assert str(error.value) == f"{unreadable}: cannot be read: {why}"


def test_the_object_is_checked_as_the_file_is():
    with pytest.raises(ConfigError) as error:
        HardwareConfig(4, 4, act_bits=9)
    assert str(error.value) == "act_bits must be a whole number from 2 to 8, not 9"
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("form", [BF16, FP16, FP32, E8M0], ids=lambda form: form.name)
def test_every_spec_follows_from_the_configuration(form):
    config = HardwareConfig(6, 10, 3, 5, form.name, "float32", 77, 32, "dsp", "lut")
    array = ArraySpec(6, 10, 3, 5, "dsp")
    assert config.array == array
    assert config.tile == TileFormat(array, form, 32)
    product = ProductSpec(array.sum_bits, form.significand_bits, 5, FLOAT32, "lut")
    assert config.scale_unit == ScaleUnitSpec(product, AddSpec(FLOAT32), 77)
    assert (config.requantizer.block, config.requantizer.cols) == (6, 10)
    assert (config.requantizer.act_bits, config.requantizer.rounding) == (5, "nearest")
    engine = config.engine
    assert (engine.array, engine.tile) == (array, config.tile)
    assert (engine.scale_unit, engine.requantizer) == (config.scale_unit, config.requantizer)
