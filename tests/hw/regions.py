"""Random memory regions, runs of beats in them, and the bursts that they are cut into."""

from dataclasses import dataclass

import numpy as np

from shiftcore.golden.accelerator import PAGE_BYTES, AcceleratorSpec


@dataclass(frozen=True)
class Run:
    """`beats` beats from `offset` of `region` on."""

    offset: int
    region: int
    beats: int

    def payload(self, spec: AcceleratorSpec) -> int:
        """As ports of runs have it."""
        bits = spec.offset_bits
        return self.offset | self.region << bits | self.beats << bits + 2


@dataclass(frozen=True)
class Regions:
    """Four regions of some pages each, apart from each other, in a window of memory."""

    spec: AcceleratorSpec
    origin: int
    content: bytes
    bases: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def random(cls, spec: AcceleratorSpec, rng: np.random.Generator, pages: int = 12) -> "Regions":
        step, part = spec.beat_bytes, pages // 4 * PAGE_BYTES
        origin = int(rng.integers(1, (1 << spec.address_bits) // PAGE_BYTES - pages)) * PAGE_BYTES
        half = PAGE_BYTES // 2 // step
        begin = [int(rng.integers(0, half)) for _ in range(4)]
        end = [part // step - int(rng.integers(0, half)) for _ in range(4)]
        order = rng.permutation(4).tolist()
        bases = [origin + order[k] * part + begin[k] * step for k in range(4)]
        sizes = [end[k] - begin[k] for k in range(4)]
        return cls(spec, origin, rng.bytes(pages * PAGE_BYTES), tuple(bases), tuple(sizes))

    @property
    def port(self) -> int:
        """As i_regions has them; the lowest bit of a base is not looked at."""
        address, offset = self.spec.address_bits, self.spec.offset_bits
        value = sum((base | 1) << address * k for k, base in enumerate(self.bases))
        return value | sum(size << 4 * address + offset * k for k, size in enumerate(self.sizes))

    def ranges(self, *regions: int) -> tuple[tuple[int, int], ...]:
        """(begin, end) bytes."""
        step = self.spec.beat_bytes
        return tuple((self.bases[k], self.bases[k] + self.sizes[k] * step) for k in regions)

    def run(self, rng: np.random.Generator, longest: int, regions=range(4)) -> Run:
        """A run inside its region; often at an end of it, or across the end of a page."""
        region = int(rng.choice(list(regions)))
        size = self.sizes[region]
        beats = int(rng.integers(1, min(size, longest) + 1))
        page = PAGE_BYTES // self.spec.beat_bytes
        first = -(self.bases[region] // self.spec.beat_bytes) % page
        crossing = first + page * int(rng.integers(0, 2)) - int(rng.integers(0, beats + 1))
        choices = [0, size - beats, crossing, crossing, int(rng.integers(0, size - beats + 1))]
        return Run(int(np.clip(rng.choice(choices), 0, size - beats)), region, beats)

    def outside(self, rng: np.random.Generator) -> Run:
        """A run of which at least one beat is outside its region."""
        region = int(rng.integers(0, 4))
        size = self.sizes[region]
        end = 1 << self.spec.offset_bits
        beats = int(rng.choice([1, 2, size, size + 1, end - 1, end, 2 * end - 1]))
        first, last = max(size - beats + 1, 0), end - 1
        return Run(int(rng.choice([first, max(first, size), last])), region, beats)

    def beats(self, run: Run) -> list[int]:
        """What is in memory there."""
        step = self.spec.beat_bytes
        start = self.bases[run.region] - self.origin + run.offset * step
        return [
            int.from_bytes(self.content[at : at + step], "little")
            for at in range(start, start + run.beats * step, step)
        ]

    def bursts(self, run: Run) -> list[tuple[int, int]]:
        """(address, beats), by the rule of the splitter's docstring."""
        step = self.spec.beat_bytes
        address, left, found = self.bases[run.region] + run.offset * step, run.beats, []
        while left:
            beats = min(self.spec.burst_beats, left, (PAGE_BYTES - address % PAGE_BYTES) // step)
            found.append((address, beats))
            address, left = address + beats * step, left - beats
        return found
