"""A convolution as several grouped convolutions that together see all that it sees.

N grouped convolutions in series, channels C_0 to C_N, groups g_l and kernels h_l x v_l, replace a
convolution of Kh x Kw. They keep its *volumetric receptive field*, every output sees every input
channel at every kernel position, if

* sum(h_l - 1) = Kh - 1 and sum(v_l - 1) = Kw - 1;
* the channels that an output sees grow to all of them: with n_l = C_(l-1) / g_l that takes
  prod(n_l) >= C_0, and channels that are shuffled between the stages.

They cost sum(C_l n_l h_l v_l) parameters, which are multiply-accumulates per pixel. For given
groups that is linear in the h_l and in the v_l, so that the cheapest kernels have all of Kh in one
stage and all of Kw in one: nothing else is searched. For equal widths C it is, by the inequality of
the means, at least N C (C Kh Kw)^(1/N), and e C ln(C Kh Kw) for any N. (Wei, Tian and Chen,
"Rethinking convolution: towards an optimal efficiency", 2020, for the problem and its orders of
growth; the bounds and rules here are derived.)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import pairwise, product
from typing import Literal, NamedTuple, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Design",
    "Objective",
    "Options",
    "Pair",
    "Stage",
    "best_design",
    "closed_form",
    "counted",
    "designs",
    "free_bound",
    "pair",
]

Pair = int | tuple[int, int]
Objective = Literal["parameters", "macs"]


def pair(name: str, value: Pair) -> tuple[int, int]:
    """(vertical, horizontal). Raises ``ValueError`` unless both are whole numbers from 1."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or any(type(n) is not int or n < 1 for n in both):
        raise ValueError(f"{name} must be from 1, a whole number or a pair, not {value!r}")
    return both[0], both[1]


@dataclass(frozen=True)
class Stage:
    """One grouped convolution, and how its result is shuffled.

    Parameters
    ----------
    in_channels, out_channels, groups, kernel, stride : of the convolution
    shuffle : the result's channels are `shuffle` runs that are dealt out in turn: (shuffle, n)
        transposed; 1 leaves them as they are
    """

    in_channels: int
    out_channels: int
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    shuffle: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups", "shuffle"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}")
        for name in ("kernel", "stride"):
            if pair(name, getattr(self, name)) != getattr(self, name):
                raise ValueError(f"{name} must be a pair, not {getattr(self, name)!r}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide {self.in_channels} and {self.out_channels} channels, not "
                f"{self.groups}"
            )
        if self.out_channels % self.shuffle:
            raise ValueError(
                f"shuffle must divide {self.out_channels} channels, not {self.shuffle}"
            )

    @property
    def depth(self) -> int:
        """n: input channels that an output sees."""
        return self.in_channels // self.groups

    @property
    def parameters(self) -> int:
        """Weights; also multiply-accumulates of one output pixel."""
        return self.out_channels * self.depth * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Design:
    """Stages that replace a convolution.

    Raises ``ValueError`` if channels do not fit, if a stage of several taps follows a stride, whose
    result has pixels left out, or if the last stage shuffles.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a design must have at least one stage")
        for number, (stage, after) in enumerate(pairwise(self.stages), 1):
            if stage.out_channels != after.in_channels:
                raise ValueError(
                    f"stage {number + 1} takes {after.in_channels} channels, stage {number} gives "
                    f"{stage.out_channels}"
                )
        for axis in (0, 1):
            stride = 1
            for number, stage in enumerate(self.stages, 1):
                if stride > 1 and stage.kernel[axis] > 1:
                    raise ValueError(
                        f"stage {number} has a kernel of {stage.kernel} after a stride of {stride}"
                    )
                stride *= stage.stride[axis]
        if self.stages[-1].shuffle > 1:
            raise ValueError("the last stage must not shuffle its channels")

    @classmethod
    def conventional(
        cls, in_channels: int, out_channels: int, kernel: Pair, stride: Pair = 1
    ) -> "Design":
        """The convolution itself."""
        both = pair("kernel", kernel), pair("stride", stride)
        return cls((Stage(in_channels, out_channels, 1, *both),))

    @classmethod
    def depthwise(
        cls, in_channels: int, out_channels: int, kernel: Pair, stride: Pair = 1
    ) -> "Design":
        """Depthwise separable: a kernel for each channel, then 1x1 over all channels."""
        both = pair("kernel", kernel), pair("stride", stride)
        first = Stage(in_channels, in_channels, in_channels, *both)
        return cls((first, Stage(in_channels, out_channels)))

    @classmethod
    def spatial(
        cls, in_channels: int, out_channels: int, kernel: Pair, stride: Pair = 1
    ) -> "Design":
        """Spatially separable: a vertical kernel, then a horizontal one, both over all channels."""
        (kh, kw), (sy, sx) = pair("kernel", kernel), pair("stride", stride)
        width = min(in_channels, out_channels)
        first = Stage(in_channels, width, 1, (kh, 1), (sy, 1))
        return cls((first, Stage(width, out_channels, 1, (1, kw), (1, sx))))

    @property
    def in_channels(self) -> int:
        return self.stages[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.stages[-1].out_channels

    @property
    def widths(self) -> tuple[int, ...]:
        """C_0 to C_N."""
        return (self.in_channels, *(stage.out_channels for stage in self.stages))

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(stage.groups for stage in self.stages)

    @property
    def kernel(self) -> tuple[int, int]:
        """Of the convolution that it replaces."""
        kh, kw = (sum(stage.kernel[axis] - 1 for stage in self.stages) + 1 for axis in (0, 1))
        return kh, kw

    @property
    def stride(self) -> tuple[int, int]:
        sy, sx = (math.prod(stage.stride[axis] for stage in self.stages) for axis in (0, 1))
        return sy, sx

    @property
    def parameters(self) -> int:
        """Weights of all stages, without biases and normalisation."""
        return sum(stage.parameters for stage in self.stages)

    def macs(self, size: tuple[int, int] | None = None) -> int:
        """Multiply-accumulates for an input of `size` (H, W), padded so that only strides make it
        smaller; by default those of one pixel of the result."""
        height, width = self.stride if size is None else size
        total = 0
        for stage in self.stages:
            height, width = -(-height // stage.stride[0]), -(-width // stage.stride[1])
            total += stage.parameters * height * width
        return total

    @cached_property
    def sees(self) -> NDArray[np.bool_]:
        """(C_N, C_0): which output sees which input channel."""
        return _seen(self.stages)

    @property
    def is_full(self) -> bool:
        """Whether every output sees every input channel, at every kernel position."""
        return bool(self.sees.all())

    def __str__(self) -> str:
        def text(stage: Stage) -> str:
            parts = f"{stage.kernel[0]}x{stage.kernel[1]} g={stage.groups}"
            parts += f" to {stage.out_channels}"
            parts += f" /{stage.stride[0]}x{stage.stride[1]}" if max(stage.stride) > 1 else ""
            return parts + (f" shuffled by {stage.shuffle}" if stage.shuffle > 1 else "")

        return f"{self.in_channels}: " + ", ".join(map(text, self.stages))


def _seen(stages: Iterable[Stage]) -> NDArray[np.bool_]:
    """(C_N, C_0): which output of the stages sees which input channel."""
    seen: NDArray[np.bool_] | None = None
    for stage in stages:
        if seen is None:
            seen = np.eye(stage.in_channels, dtype=bool)
        # (groups, n, C_0) to (groups, C_0) to (C_l, C_0)
        group = seen.reshape(stage.groups, stage.depth, -1).any(1)
        seen = group.repeat(stage.out_channels // stage.groups, 0)
        runs = seen.reshape(stage.shuffle, stage.out_channels // stage.shuffle, -1)
        seen = runs.swapaxes(0, 1).reshape(stage.out_channels, -1)
    assert seen is not None
    return seen


def _shuffled(stages: list[Stage]) -> Design | None:
    """The stages with the shuffles that are needed to see every channel; None if no standard
    shuffle achieves it.

    After groups g the standard one deals out g runs. Each one that is left is necessary: without
    it some channel is not seen.
    """
    stages = [replace(stage, shuffle=stage.groups) for stage in stages[:-1]] + stages[-1:]
    if not _seen(stages).all():
        return None
    # A shuffle that can go after a later one has gone is found in another round.
    while True:
        for number, stage in enumerate(stages):
            without = [*stages[:number], replace(stage, shuffle=1), *stages[number + 1 :]]
            if stage.shuffle > 1 and _seen(without).all():
                stages = without
                break
        else:
            return Design(tuple(stages))


def closed_form(channels: int, kernel: Pair, stages: int) -> float:
    """Least parameters of `stages` stages of equal widths, where groups need not be whole.

    N C (C Kh Kw)^(1/N), by the inequality of the means; no design has fewer.
    """
    kh, kw = pair("kernel", kernel)
    return stages * channels * (channels * kh * kw) ** (1 / stages)


def free_bound(channels: int, kernel: Pair) -> float:
    """Least parameters of any number of stages: e C ln(C Kh Kw); no design has fewer."""
    kh, kw = pair("kernel", kernel)
    return math.e * channels * math.log(channels * kh * kw)


class _Choice(NamedTuple):
    """A stage, in the order of preference where the costs are the same."""

    taps: int
    horizontal: bool
    """whether it has the kernel's width, and the horizontal stride"""
    vertical: bool
    depth: int
    width: int
    """channels of its result"""


class _State(NamedTuple):
    """What the stages so far have achieved."""

    width: int
    """channels"""
    need: int
    """how many times more channels must be seen"""
    vertical: bool
    """whether a stage has had the kernel's height"""
    horizontal: bool


_Cost = tuple[int, int]
_Step = tuple[_Choice, _Cost, _State]


@lru_cache(maxsize=4096)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, number + 1) if number % n == 0)


@dataclass(frozen=True)
class _Search:
    """Dynamic programming over what stages have achieved; see :func:`designs`."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    widths: tuple[int, ...]
    size: tuple[int, int]
    objective: Objective
    _rests: dict[tuple[int, _State], _Cost | None] = field(default_factory=dict, repr=False)
    _steps: dict[tuple[bool, _State], list[_Step]] = field(default_factory=dict, repr=False)

    @property
    def start(self) -> _State:
        return _State(self.in_channels, self.in_channels, False, False)

    def steps(self, last: bool, state: _State) -> list[_Step]:
        """The stages that can come next, what they cost and what is achieved with them."""
        if (last, state) not in self._steps:
            self._steps[last, state] = list(self._next(last, state))
        return self._steps[last, state]

    def _next(self, last: bool, state: _State) -> Iterator[_Step]:
        # An axis of one tap is done with by the first stage, which has its stride.
        vertical, horizontal = (
            (False,) if done else (True,) if last or tap == 1 else (False, True)
            for tap, done in zip(self.kernel, state[2:], strict=True)
        )  # fmt: skip
        widths = (self.out_channels,) if last else self.widths
        for v, h, width, depth in product(vertical, horizontal, widths, _divisors(state.width)):
            taps = (self.kernel[0] if v else 1) * (self.kernel[1] if h else 1)
            need = -(-state.need // depth)
            groups = state.width // depth
            if width % groups or depth * taps == 1 or (last and need > 1):
                continue
            after = _State(width, need, state.vertical or v, state.horizontal or h)
            parameters = width * depth * taps
            height, across = (
                -(-size // stride) if done else size
                for size, stride, done in zip(self.size, self.stride, after[2:], strict=True)
            )
            cost = parameters, parameters * height * across
            choice = _Choice(taps, h, v, depth, width)
            ordered = cost if self.objective == "parameters" else (cost[1], cost[0])
            yield choice, ordered, after

    def rest(self, count: int, state: _State) -> _Cost | None:
        """The least cost of `count` stages that achieve what is left; None if none do."""
        if count == 0:
            return 0, 0
        if (count, state) not in self._rests:
            best = None
            for _, cost, after in self.steps(count == 1, state):
                rest = self.rest(count - 1, after)
                if rest is not None:
                    total = cost[0] + rest[0], cost[1] + rest[1]
                    best = total if best is None else min(best, total)
            self._rests[count, state] = best
        return self._rests[count, state]

    def paths(self, counts: Iterable[int]) -> Iterator[tuple[_Choice, ...]]:
        """The choices of all stages, for every number of stages, by ascending cost.

        Best first. What a path still costs at least is known exactly, so that the first one that
        is complete is the cheapest of all.
        """
        heap: list[tuple[_Cost, int, tuple[_Choice, ...], _Cost, _State]] = []
        for count in counts:
            total = self.rest(count, self.start)
            if total is not None:
                heappush(heap, (total, count, (), (0, 0), self.start))
        while heap:
            _, count, path, spent, state = heappop(heap)
            left = count - len(path) - 1
            if left < 0:
                yield path
                continue
            for choice, cost, after in self.steps(left == 0, state):
                rest = self.rest(left, after)
                if rest is not None:
                    paid = spent[0] + cost[0], spent[1] + cost[1]
                    total = paid[0] + rest[0], paid[1] + rest[1]
                    heappush(heap, (total, count, (*path, choice), paid, after))

    def stages(self, path: Sequence[_Choice]) -> list[Stage]:
        """Not shuffled yet."""
        found, channels = [], self.in_channels
        for choice in path:
            here = choice.vertical, choice.horizontal
            (kh, kw), (sy, sx) = (
                [value if now else 1 for value, now in zip(values, here, strict=True)]
                for values in (self.kernel, self.stride)
            )
            groups = channels // choice.depth
            found.append(Stage(channels, choice.width, groups, (kh, kw), (sy, sx)))
            channels = choice.width
        return found


class Options(TypedDict, total=False):
    """What else :func:`designs` takes."""

    stages: int | Iterable[int] | None
    objective: Objective
    size: tuple[int, int] | None
    widths: Iterable[int] | None


def designs(
    in_channels: int,
    out_channels: int | None = None,
    kernel: Pair = 3,
    stride: Pair = 1,
    *,
    stages: int | Iterable[int] | None = None,
    objective: Objective = "parameters",
    size: tuple[int, int] | None = None,
    widths: Iterable[int] | None = None,
) -> Iterator[Design]:
    """All designs that keep the volumetric receptive field with the standard shuffle, by cost.

    Enumerated are all divisors as groups, all stages as the ones that have the kernel's height and
    its width, and all `widths` between stages. Every stage mixes channels or pixels. A stride goes
    where its axis has its taps, the first place that leaves no pixel out. Of the same cost, fewer
    multiply-accumulates (or parameters) come first, then fewer stages, then those whose first
    stages have fewer taps.

    Parameters
    ----------
    in_channels, out_channels, kernel, stride : of the convolution that is replaced; by default as
        many outputs as inputs
    stages : N, or several numbers to choose from; by default up to log2(in_channels) + 3, beyond
        which no stage pays
    objective : "parameters", or "macs": multiply-accumulates, in which a stride counts
    size : (H, W) of the input, for "macs"; by default that of one output pixel
    widths : channels that there may be between stages, by default `in_channels` and `out_channels`;
        fewer than both limit the rank of what the stages compute

    Raises ``ValueError`` where a parameter is out of its range.
    """
    out_channels = in_channels if out_channels is None else out_channels
    inner = tuple(dict.fromkeys((in_channels, out_channels) if widths is None else widths))
    _check_whole(in_channels=(in_channels,), out_channels=(out_channels,), widths=inner)
    if objective not in get_args(Objective):
        raise ValueError(
            f"objective must be one of {', '.join(get_args(Objective))}, not {objective!r}"
        )
    if stages is None:
        stages = range(1, (in_channels - 1).bit_length() + 4)
    counts = (stages,) if isinstance(stages, int) else tuple(stages)
    _check_whole(stages=counts)
    strides = pair("stride", stride)
    sides = strides if size is None else pair("size", size)
    search = _Search(
        in_channels, out_channels, pair("kernel", kernel), strides, inner, sides, objective
    )
    return filter(None, (_shuffled(search.stages(path)) for path in search.paths(counts)))


def _check_whole(**values: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless there are values, all whole numbers from 1."""
    for name, several in values.items():
        for value in several or (None,):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}")


def best_design(
    in_channels: int,
    out_channels: int | None = None,
    kernel: Pair = 3,
    stride: Pair = 1,
    **options: Unpack[Options],
) -> Design:
    """The first of :func:`designs`. Raises ``ValueError`` if there is none."""
    stages = options.get("stages")
    if stages is not None and not isinstance(stages, int):
        options["stages"] = stages = tuple(stages)
    best = next(designs(in_channels, out_channels, kernel, stride, **options), None)
    if best is None:
        raise ValueError(
            f"no design of {counted(stages)} takes {in_channels} channels to "
            f"{out_channels or in_channels} in which each stage mixes channels or pixels"
        )
    return best


def counted(stages: int | Iterable[int] | None) -> str:
    """So many stages, in words."""
    if stages is None:
        return "any number of stages"
    numbers = [stages] if isinstance(stages, int) else sorted(set(stages))
    *first, last = map(str, numbers)
    return f"{', '.join(first)}{' or ' if first else ''}{last} stage{'' if last == '1' else 's'}"
