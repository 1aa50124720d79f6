"""Where the cycles of a network go, layer by layer."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

import numpy as np

from ..compiler.network import compile_network
from ..golden.config import HardwareConfig
from ..golden.network import QuantizedNetwork
from ..golden.program import Program
from .accelerator import Prediction, predict_layers

__all__ = ["Cycles", "Estimate", "estimate", "network_cycles"]


@dataclass(frozen=True)
class Cycles:
    """The cycles of one image, or of a layer's share of it, and what the array does in them.

    Parameters
    ----------
    cycles : of the run or the share
    macs : of its convolutions and linear layers
    utilization : ``macs / (cycles * rows * cols)``, 0 to 1
    pixels : cycles in which the array is given a pixel
    stall_tile, stall_ticket, stall_empty, stall_hazard : cycles in which a pixel waits for its
        tile, a PASS for its tickets, there is no PASS, a pixel waits for anything else; those that
        are left fill the pipeline
    """

    cycles: int
    macs: int
    utilization: float
    pixels: int
    stall_tile: int
    stall_ticket: int
    stall_empty: int
    stall_hazard: int


@dataclass(frozen=True)
class Estimate:
    """One image, from start to end, loads and stores included; `layers` by name, in order."""

    total: Cycles
    layers: Mapping[str, Cycles]


def estimate(
    program: Program, macs: Mapping[str, int], *, latency: int = 20, gap: int = 0
) -> Estimate:
    """The cycles that the accelerator takes for one image, exactly, and each layer's share of them.

    What a layer's share is, :func:`~shiftcore.estimate.accelerator.predict_layers` says. The shares
    add up to the total.

    Parameters
    ----------
    macs : of every layer, :meth:`~shiftcore.golden.network.QuantizedNetwork.macs`
    latency, gap : of the memory, see :func:`~shiftcore.estimate.accelerator.predict`

    Raises :class:`~shiftcore.golden.tickets.MachineError` if the run does not come to its end.
    """
    size = program.config.rows * program.config.cols

    def figures(macs: int, found: Prediction) -> Cycles:
        return Cycles(
            found.cycles, macs, macs / (found.cycles * size), found.pixels, found.stall_tile,
            found.stall_ticket, found.stall_empty, found.stall_hazard,
        )  # fmt: skip

    shares = predict_layers(program, latency=latency, gap=gap)
    total = Prediction(*np.sum([astuple(share) for share in shares.values()], axis=0).tolist())
    layers = {name: figures(macs[name], share) for name, share in shares.items()}
    return Estimate(figures(program.macs, total), layers)


def network_cycles(config: HardwareConfig, network: QuantizedNetwork) -> int:
    """The cycles of one image, with the default memory, on `config` with the rows and activation
    bits that `network` has.

    Raises ``ValueError`` if it cannot run there, with what to change.
    """
    own = replace(config, rows=network.block, act_bits=network.act_bits)
    return estimate(compile_network(network, own), network.macs()).total.cycles
