"""What the engine executes: passes and drains, and the model that executes them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .engine import EngineSpec

__all__ = ["BlockRows", "Drain", "DrainFormat", "Engine", "Pass"]

DrainFormat = Literal["raw", "unsigned", "signed"]


def _require_some(addresses: NDArray[np.int64]) -> None:
    if not len(addresses):
        raise ValueError("a pass or drain must have at least one address")


@dataclass(frozen=True, eq=False)
class Pass:
    """One stationary tile and the pixels that meet it.

    Parameters
    ----------
    codes : (rows, cols) int8, the tile
    scales : (cols,) float32, values of the scale format
    biases : (cols,) numbers where the accumulators start anew, None where they continue
    lanes : (P, rows) int16, activation codes
    exponents : (P,) uint8, exponent fields
    addresses : (P,) int, accumulator of each pixel
    signed : whether the activations are signed
    maximum : take the maximum instead of the sum
    keep : (P,) bool, pixels that leave the accumulator as it is, under ``maximum``

    Raises ``ValueError`` if there is no pixel.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    biases: NDArray[np.floating] | None
    lanes: NDArray[np.int16]
    exponents: NDArray[np.uint8]
    addresses: NDArray[np.int64]
    signed: bool = False
    maximum: bool = False
    keep: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        _require_some(self.addresses)
        if not self.keep.size:
            object.__setattr__(self, "keep", np.zeros(len(self.addresses), bool))

    @property
    def start(self) -> bool:
        return self.biases is not None

    @property
    def pixels(self) -> int:
        return len(self.addresses)


@dataclass(frozen=True, eq=False)
class Drain:
    """Reads accumulators: (n,) `addresses`, in order, raw or requantized to blocks.

    Raises ``ValueError`` if there is no address.
    """

    addresses: NDArray[np.int64]
    form: DrainFormat

    def __post_init__(self) -> None:
        _require_some(self.addresses)


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Requantized rows: codes (n, B) int16 and exponent fields (n,) uint8."""

    codes: NDArray[np.int16]
    exponents: NDArray[np.uint8]


class Engine:
    """Executes passes and drains bit for bit as the gateware does.

    Raises ``ValueError`` if an operand, a scale, a bias or an address does not fit the hardware.
    """

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        unit = spec.scale_unit
        self.accumulators = np.zeros((unit.depth, spec.array.cols), unit.form.dtype)

    def run(self, work: Iterable[Pass | Drain]) -> list[NDArray[np.floating] | BlockRows]:
        """Execute `work`; one result per drain: (n, cols) numbers as memory holds them, or
        :class:`BlockRows`, whose exponent fields take the fixed-point number 1 for 1.0."""
        results: list[NDArray[np.floating] | BlockRows] = []
        for item in work:
            if isinstance(item, Pass):
                self._accumulate(item)
                continue
            rows = self.accumulators[self._checked(item.addresses)]
            if item.form == "raw":
                form = self.spec.scale_unit.form
                results.append(form.decode(form.encode(rows)))
            else:
                signed = item.form == "signed"
                results.append(BlockRows(*self.spec.requantizer.compute(rows, signed)))
        return results

    def _checked(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        depth = self.spec.scale_unit.depth
        addresses = np.asarray(addresses)
        if addresses.size and (addresses.min() < 0 or addresses.max() >= depth):
            raise ValueError(f"accumulator addresses must be 0 to {depth - 1}")
        return addresses

    def _accumulate(self, item: Pass) -> None:
        unit = self.spec.scale_unit
        scale = self.spec.tile.scale
        scales = scale.decode(scale.encode(item.scales))
        biases = None if item.biases is None else unit.form.decode(unit.form.encode(item.biases))
        sums = self.spec.array.compute(item.codes, item.lanes)
        products = unit.product.compute(
            sums, scales, item.exponents[:, None], np.full((item.pixels, 1), item.signed)
        )
        # Pixels of one address are taken in turn, a round for each visit.
        addresses = self._checked(item.addresses)
        order = np.argsort(addresses, kind="stable")
        ranked = addresses[order]
        first = np.r_[True, ranked[1:] != ranked[:-1]]
        run = np.arange(len(ranked)) - np.maximum.accumulate(
            np.where(first, np.arange(len(ranked)), 0)
        )
        visit = np.empty(len(ranked), np.int64)
        visit[order] = run
        for turn in range(int(visit.max(initial=-1)) + 1):
            chosen = np.flatnonzero(visit == turn)
            where = addresses[chosen]
            before = self.accumulators[where] if biases is None else biases[None]
            self.accumulators[where] = unit.add.compute(
                before, products[chosen], item.maximum, item.keep[chosen, None]
            )
