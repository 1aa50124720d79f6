"""Runs passes and drains on the simulated engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..golden.config import HardwareConfig
from ..golden.fixed import FixedFormat
from ..golden.passes import BlockRows, Drain, Pass
from ..hw.engine import Engine
from .runner import SimulationError, Simulator, simulate
from .stream_bench import StreamAnswer, StreamJob

__all__ = ["EngineRun", "engine_job", "make_engine", "run_engine"]


def make_engine(config: HardwareConfig) -> Engine:
    """The engine of a configuration."""
    return Engine(config.engine)


@dataclass(frozen=True)
class EngineRun:
    """What the simulated engine did.

    Parameters
    ----------
    results : as of :meth:`shiftcore.golden.passes.Engine.run`
    cycles : for each stream, the cycle of every transfer
    total : cycle after the last result, counted from the first beat of the first tile
    last_busy : last cycle in which a pixel was on its way to the accumulators, same origin
    """

    results: list[NDArray[np.floating] | BlockRows]
    cycles: dict[str, NDArray[np.int64]]
    total: int
    last_busy: int


def _pack(fields: Sequence[tuple[NDArray[np.int64], int]]) -> list[int]:
    """Rows of fields, lowest first, as integers: each field is (n,) or (n, k) and so wide."""
    bits = []
    for values, width in fields:
        columns = values.reshape(len(values), -1).astype(np.int64)
        spread = (columns[:, :, None] >> np.arange(width)) & 1
        bits.append(spread.reshape(len(values), -1).astype(np.uint8))
    packed = np.packbits(np.concatenate(bits, axis=1), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _fields(payloads: list[int], width: int, count: int) -> NDArray[np.int64]:
    """(n, count) fields of `width` bits, lowest first."""
    size = -(-width * count // 8)
    raw = np.frombuffer(b"".join(p.to_bytes(size, "little") for p in payloads), np.uint8)
    bits = np.unpackbits(raw.reshape(len(payloads), size), axis=1, bitorder="little")
    bits = bits[:, : width * count].reshape(len(payloads), count, width).astype(np.int64)
    return bits @ (1 << np.arange(width, dtype=np.int64))


def _pixels(item: Pass, config: HardwareConfig) -> list[int]:
    count = item.pixels
    unit = config.scale_unit

    def flag(value: bool) -> NDArray[np.int64]:
        return np.full(count, int(value))

    return _pack(
        [
            (flag(False), 1),
            ((np.arange(count) == 0).astype(np.int64), 1),
            (flag(item.start), 1),
            (flag(item.maximum), 1),
            (item.keep.astype(np.int64), 1),
            (flag(item.signed), 1),
            (item.exponents.astype(np.int64), 8),
            (np.asarray(item.addresses), unit.address_bits),
            (item.lanes.astype(np.int64), config.act_bits),
        ]
    )


def engine_job(
    work: Sequence[Pass | Drain], config: HardwareConfig, *, stall: float = 0.0
) -> StreamJob:
    """The stimulus that makes the engine do `work`.

    A drain is offered when all pixels before it are accepted, a pixel when all drains before it
    are; tiles are offered as soon as they are taken.

    Raises ``ValueError`` where that is too early for the accumulators' shared port.
    """
    if config.scale_unit.shared:
        raise ValueError("the engine by itself needs control = 'queued', not 'serial'")
    requantizer = config.requantizer
    fixed = isinstance(config.accumulator_format, FixedFormat)
    tiles: list[int] = []
    pixels: list[int] = []
    drains: list[int] = []
    after = {"i_pixel": {}, "i_drain": {}}
    raw = blocks = 0
    drained = False
    for item in work:
        if isinstance(item, Pass):
            beats = config.tile.pack(item.codes, item.scales, item.biases)
            last = 1 << config.bus_bits
            tiles += [*beats[:-1], beats[-1] | last]
            if drained:
                after["i_pixel"][len(pixels)] = {"i_drain": len(drains)}
            pixels += _pixels(item, config)
            drained = False
            continue
        count = len(item.addresses)
        if not drained:
            after["i_drain"][len(drains)] = {"i_pixel": len(pixels)}
        drained = True
        ends = (np.arange(count) + 1) % requantizer.beats_per_block == 0
        drains += _pack(
            [
                (np.ones(count, np.int64), 1),
                (ends.astype(np.int64), 1),
                (np.full(count, item.form == "signed"), 1),
                (np.full(count, item.form == "raw"), 1),
                (np.asarray(item.addresses), config.scale_unit.address_bits),
            ]
        )
        if item.form == "raw":
            raw += count
        else:
            blocks += count // requantizer.beats_per_block
    return StreamJob(
        {"i_tile": tiles, "i_pixel": pixels, "i_drain": drains},
        {"o_raw": raw, "o_block": blocks},
        after,
        stall,
        {"i_limits": 0} | ({"i_field": 127} if fixed else {}),
        "o_busy",
    )


def _results(
    work: Sequence[Pass | Drain], answer: StreamAnswer, config: HardwareConfig
) -> list[NDArray[np.floating] | BlockRows]:
    spec = config.requantizer
    raw, blocks = iter(answer.payloads["o_raw"]), iter(answer.payloads["o_block"])
    results: list[NDArray[np.floating] | BlockRows] = []
    for item in work:
        if isinstance(item, Pass):
            continue
        count = len(item.addresses)
        if item.form == "raw":
            bits = _fields([next(raw) for _ in range(count)], 32, config.cols)
            results.append(config.accumulator_format.decode(bits))
            continue
        rows = [next(blocks) for _ in range(count // spec.beats_per_block)]
        width = 8 + spec.block * spec.act_bits
        mask = (1 << width) - 1
        single = [(r >> (k * width)) & mask for r in rows for k in range(spec.blocks_per_beat)]
        exponents = np.array([s & 0xFF for s in single], np.uint8)
        codes = _fields([s >> 8 for s in single], spec.act_bits, spec.block)
        if item.form == "signed":
            sign = 1 << (spec.act_bits - 1)
            codes = (codes ^ sign) - sign
        results.append(BlockRows(codes.astype(np.int16), exponents))
    return results


def run_engine(
    work: Sequence[Pass | Drain],
    config: HardwareConfig,
    *,
    stall: float = 0.0,
    simulator: Simulator = "verilator",
    waves: Path | None = None,
    seed: int = 0,
) -> EngineRun:
    """Do `work` on the simulated engine.

    Parameters
    ----------
    stall : probability that a stream pauses in a cycle, on every stream
    """
    answer = simulate(
        make_engine,
        config,
        bench="stream_bench",
        job=engine_job(work, config, stall=stall),
        simulator=simulator,
        waves=waves,
        seed=seed,
    )
    if any(answer.held.values()):
        raise SimulationError(f"a payload changed while it waited: {answer.held}")
    origin = answer.cycles["i_tile"][0]
    cycles = {name: np.array(c, np.int64) - origin for name, c in answer.cycles.items()}
    return EngineRun(
        _results(work, answer, config), cycles, answer.total - origin, answer.last_busy - origin
    )
