"""Bench of a component without handshakes: values in every cycle, values out every cycle."""

from dataclasses import dataclass

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from .exchange import answer, job

__all__ = ["PipelineJob"]


@dataclass(frozen=True)
class PipelineJob:
    """Stimulus of a pipeline.

    Parameters
    ----------
    inputs : for each input port, its unsigned value in each cycle; all of one length
    outputs : ports to record
    """

    inputs: dict[str, list[int]]
    outputs: tuple[str, ...]


@cocotb.test(timeout_time=1, timeout_unit="sec")
async def run(dut):
    """Answer: for each output port its value in each cycle, one entry more than there are inputs
    (entry k is read after k inputs were clocked in)."""
    work: PipelineJob = job()
    dut.rst.value = 1
    for port, values in work.inputs.items():
        getattr(dut, port).value = values[0]
    Clock(dut.clk, 2, unit="ns").start(start_high=False)
    for _ in range(2):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    drivers = [(getattr(dut, port), values) for port, values in work.inputs.items()]
    recorded = {port: [] for port in work.outputs}
    readers = [(getattr(dut, port), recorded[port]) for port in work.outputs]
    edge = RisingEdge(dut.clk)
    for cycle in range(len(next(iter(work.inputs.values())))):
        for handle, values in drivers:
            handle.value = values[cycle]
        await edge
        for handle, values in readers:
            values.append(int(handle.value))
    answer(recorded)
