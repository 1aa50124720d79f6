"""Spec of the engine: array, scale units, tile loader and issue stage, and their timing."""

from dataclasses import dataclass

from .array import ArraySpec, TileFormat
from .requantizer import RequantizerSpec
from .scale_unit import ScaleUnitSpec

__all__ = ["EngineSpec"]


@dataclass(frozen=True)
class EngineSpec:
    """How the parts of the engine fit together, in cycles.

    Cycle 0 of a pixel is its issue: the cycle in which the issue stage lets it go.

    Parameters
    ----------
    array, tile, scale_unit, requantizer : the parts
    clamp : whether drained accumulators can be clamped
    """

    array: ArraySpec
    tile: TileFormat
    scale_unit: ScaleUnitSpec
    requantizer: RequantizerSpec
    clamp: bool = True

    @property
    def drain_cycles(self) -> int:
        """Cycles from a drain to its raw row, or to the requantizer."""
        return max(self.scale_unit.drain_cycles, 1 + self.clamp)

    @property
    def wave_delay(self) -> int:
        """Cycles by which the wave follows the array's input port, to column 0."""
        return self.array.latency - 1

    @property
    def scale_play(self) -> int:
        """Cycles after the array's input port at which the scales of a tile are started."""
        return self.wave_delay - 1

    @property
    def bias_play(self) -> int:
        """The same for the biases, which are needed later."""
        return self.wave_delay + self.scale_unit.bias_stage

    def load_cycles(self, start: bool) -> int:
        """Cycles that a tile takes to load, at least: its beats, one a cycle."""
        return self.tile.beats(start)

    @property
    def pass_cycles(self) -> int:
        """Cycles of a pass, at least: the columns take their scales from one bus in turn."""
        return self.array.cols

    @property
    def scale_tiles(self) -> int:
        """Tiles whose scales may be in the loader at once without stalling it."""
        period = max(self.tile.beats(False), self.pass_cycles)
        return 1 + -(-(self.array.cols + 3) // period)

    @property
    def bias_tiles(self) -> int:
        """The same for biases."""
        period = max(self.tile.beats(True), self.pass_cycles)
        held = self.array.cols + self.scale_unit.bias_stage + 5
        return 1 + -(-held // period)

    @property
    def retire_cycles(self) -> int:
        """Cycles from the issue of a pixel until its last column can be drained."""
        columns = self.array.latency + self.array.cols - 1
        return 1 + columns + self.scale_unit.write_stage + 1
