"""A result of the demo, for tests of what is made of it."""

from shiftcore.examples.digits.demo import DemoResult, EngineRow, LayerRow
from shiftcore.toolchain.yosys import Resources

__all__ = ["DEMO"]

DEMO = DemoResult(
    images=2,
    bit_exact=True,
    difference=None,
    compared=4225,
    mismatches=0,
    cycles=[700, 700],
    predicted=700,
    counters_exact=True,
    cycles_exact=True,
    saturated=0,
    macs=9216,
    utilization=0.25,
    sim_cycles_per_s=1e4,
    top1=50.0,
    float_top1=99.72,
    hardware_mode_top1=99.44,
    rows=[LayerRow("conv1", (16, 8, 8), 9216, 144, 0.25, 2176, 0)],
    engine_images=1,
    layers=[EngineRow("conv1", (16, 8, 8), 9216, 150, 0.24, 2048, 0, 150)],
    area={"ecp5": Resources(4572, 4610, 4, 8, {"LUT4": 4000})},
)
