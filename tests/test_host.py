"""The driver and the memory-mapped transport, without hardware."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Region
from shiftcore.golden.registers import ID, MAP_BITS, register
from shiftcore.host.driver import Accelerator, AcceleratorError
from shiftcore.host.mmio import MappedTransport
from shiftcore.host.standalone import _Recorder
from shiftcore.tests.compiler.random_networks import random_network

ADDRESS = 0x7000_0000


@pytest.fixture
def devices(tmp_path: Path) -> tuple[Path, Path]:
    """Ordinary files in the place of the device files."""
    registers, memory = tmp_path / "uio0", tmp_path / "udmabuf0"
    content = np.zeros(1 << MAP_BITS >> 2, "<u4")
    content[register("ID").offset // 4] = ID
    content[register("ISA_VERSION").offset // 4] = 1
    content[register("CYCLES_LO").offset // 4] = 7
    content[register("CYCLES_HI").offset // 4] = 2
    registers.write_bytes(content.tobytes())
    memory.write_bytes(bytes(64 << 10))
    return registers, memory


def test_registers_and_memory(devices: tuple[Path, Path]):
    with MappedTransport(*devices, address=ADDRESS, size=64 << 10) as transport:
        accelerator = Accelerator(transport, base=transport.address)
        assert accelerator.counters()["cycles"] == 7 + (2 << 32)
        accelerator.write("IMAGES", 0x12345678)
        assert accelerator.read("IMAGES") == 0x12345678
        content = np.arange(100, dtype=np.uint8)
        transport.write_memory(ADDRESS + 8, content)
        assert np.array_equal(transport.read_memory(ADDRESS + 8, 100), content)
        transport.wait()
        with pytest.raises(ValueError, match=r"^the buffer is 65536 bytes at 0x70000000; 2 bytes"):
            transport.read_memory(ADDRESS + (64 << 10) - 1, 2)
        with pytest.raises(ValueError, match=r"1 bytes at 0x6fffffff are not in it$"):
            transport.write_memory(ADDRESS - 1, content[:1])
    assert devices[1].read_bytes()[8:108] == content.tobytes()


def test_serial_control_has_no_timeout():
    config = HardwareConfig(4, 4, accumulator_depth=64, buffer_depth=256, control="serial")
    program = compile_network(random_network(np.random.default_rng(0), config), config)
    recorder = _Recorder(program)
    driver = Accelerator(recorder)
    driver.load(program)
    assert driver.saturated() is None
    image = np.zeros((1, program.sizes[Region.INPUT] * config.accelerator.beat_bytes), np.uint8)
    with pytest.raises(ValueError, match=r"^timeout must be 0 under serial control, not 5$"):
        driver.run(image, timeout=5)
    assert recorder.writes == []


def test_a_program_for_other_cells():
    """It runs where forms that the family lacks are plain; on another configuration it does not."""
    config = HardwareConfig(
        *(4, 4), accumulator_depth=64, buffer_depth=256, multiplier="ice40-dual",
        scale_multiplier="ecp5-dsp",
    )  # fmt: skip
    program = compile_network(random_network(np.random.default_rng(0), config), config)
    for family in ("ecp5", "ice40", "xilinx7", None):
        there = replace(program, config=config.on(family))
        Accelerator(_Recorder(there)).load(program)
    there = replace(program, config=replace(config, multiplier="packed18"))
    with pytest.raises(AcceleratorError, match=r"^the program is for configuration 0x"):
        Accelerator(_Recorder(there)).load(program)


def test_no_accelerator(devices: tuple[Path, Path]):
    devices[0].write_bytes(bytes(1 << MAP_BITS))
    message = r"^no accelerator: register ID reads 0x00000000$"
    with (
        MappedTransport(*devices, address=ADDRESS, size=64 << 10) as transport,
        pytest.raises(AcceleratorError, match=message),
    ):
        Accelerator(transport, base=ADDRESS)


def test_a_missing_device(devices: tuple[Path, Path]):
    with pytest.raises(FileNotFoundError):
        MappedTransport(devices[0], "/dev/none", address=0, size=4096)
    with pytest.raises(FileNotFoundError):
        MappedTransport(devices[0], devices[1])
