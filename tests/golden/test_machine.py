"""The machine against golden layers, against a reference one pixel at a time, and its errors."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.bfp import BlockFloat, BlockTensor, FixedPoint
from shiftcore.golden.compare import first_mismatch, same_numbers
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import FLOAT32
from shiftcore.golden.isa import (
    Drain,
    End,
    Error,
    Form,
    Load,
    Loop,
    Opcode,
    Pass,
    Region,
    Weights,
    encode,
)
from shiftcore.golden.layers import Layer, Term, steps
from shiftcore.golden.machine import (
    Machine,
    MachineError,
    check_order,
    check_written,
    decode_program,
)
from shiftcore.golden.passes import BlockRows
from shiftcore.golden.program import Place, Program, pack_words
from shiftcore.golden.validity import fetched, outcomes, validate
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.tests.golden.machine_cases import (
    ONCE,
    Builder,
    Reference,
    random_config,
    random_images,
    random_program,
)

LOWEST = np.float32(-FLOAT32.largest)


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int):
    rng = np.random.default_rng(seed)
    program = random_program(rng, random_config(rng))
    images = random_images(rng, program, 3)
    run = Machine(program).run(images, trace=True)
    for n, image in enumerate(images):
        reference = Reference(program, image)
        assert np.array_equal(run.outputs[n], reference.memory[Region.OUTPUT])
        assert run.saturated[n] == reference.saturated
        one = [
            BlockRows(w.codes[n], w.exponents[n]) if isinstance(w, BlockRows) else w[n]
            for w in run.trace
        ]
        for expected, found in zip(reference.trace, one, strict=True):
            assert same_numbers(found, expected)


def test_random_programs_saturate():
    """Of the seeds above, some programs with fixed-point accumulators."""
    counts = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        program = random_program(rng, random_config(rng))
        counts.append(Machine(program).run(random_images(rng, program, 3)).saturated.sum())
        if program.config.accumulator == "float32":
            assert counts[-1] == 0
    assert np.count_nonzero(counts) >= 5


# Layers, each compiled by hand to one program.


def tensor(rng: np.random.Generator, shape: tuple, block: int, bits: int, kind: str) -> BlockTensor:
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-3, 4, (shape[0], 1, *shape[2:]))
    if kind == "planes":
        return FixedPoint(-5, block, bits).compute(x.astype(np.float32))
    return BlockFloat(block, bits, kind == "signed").compute(x.astype(np.float32))


def kernel(
    rng: np.random.Generator, config: HardwareConfig, filters: int, channels: int, taps: tuple
) -> VariableQuantizedKernel:
    weight = rng.normal(size=(filters, channels, *taps))
    return VariableQuantizedKernel.quantize(
        weight,
        weight_bits=config.weight_bits,
        block=config.rows,
        scale_format=config.tile.scale,
    )


def columns_of(config: HardwareConfig, filters: int, raw: bool) -> list[range]:
    """The filters of each column tile."""
    if raw:
        return [range(k, k + config.cols) for k in range(0, filters, config.cols)]
    blocks, block = -(-filters // config.rows), config.rows
    if config.cols >= block:
        size = config.cols // block * block
        return [range(k, k + size) for k in range(0, blocks * block, size)]
    return [
        range(b * block + k, b * block + min(k + config.cols, block))
        for b in range(blocks)
        for k in range(0, block, config.cols)
    ]


def column_tiles(
    layer: Layer, source: BlockTensor, term: Term, filters: range, cols: int
) -> list[tuple[int, list]]:
    """(block, tiles of its kernel positions) for some filters, without biases."""
    found: dict[int, list] = {}
    for step in steps(term, source.planes):
        codes = np.zeros((source.block, cols), np.int8)
        scales = np.zeros(cols, np.float32)
        for c, number in enumerate(filters):
            if step.filters.start <= number < step.filters.stop:
                row = number - step.filters.start
                codes[:, c], scales[c] = step.codes[row], step.scales[row]
        if layer.reduce == "add" or step.block == filters.start // source.block:
            found.setdefault(step.block, []).append((codes, scales, None))
    return list(found.items())


def walk_of(term: Term, width: int, size: tuple[int, int]) -> dict:
    """Where the loops over kernel positions and output pixels go."""
    (height_k, width_k), (dy, dx), (sy, sx) = term.kernel_size, term.dilation, term.stride
    top, _, left, _ = term.padding
    return {
        "y": -top,
        "x": -left,
        "first": -top * width - left,
        "taps": (Loop(height_k, dy * width, 0, dy, 0), Loop(width_k, dx, 0, 0, dx)),
        "pixels": (
            Loop(size[0], sy * width, size[1], sy, 0),
            Loop(size[1], sx, 1, 0, sx),
        ),
    }


def compiled(
    config: HardwareConfig, layer: Layer, sources: dict[str, BlockTensor]
) -> tuple[Program, np.ndarray, tuple[int, int]]:
    """One layer as a program, its images, and its output size."""
    size = layer.output_size({name: x.shape[2:] for name, x in sources.items()})
    spec, pixels = config.accelerator, size[0] * size[1]
    parts, base, places = [], 0, {}
    words = sum(x.codes.shape[1] * x.shape[2] * x.shape[3] for x in sources.values())
    blocks_out = -(-layer.bias.size // config.rows)
    raw = layer.output is None
    columns = columns_of(config, layer.bias.size, raw)
    out_beats = len(columns) * spec.raw_beats if raw else blocks_out * spec.word_beats
    builder = Builder(
        config,
        input=words * max(spec.word_beats, spec.code_beats),
        output=out_beats * pixels,
    )
    offset = 0
    for name, x in sources.items():
        n, _, _, height, width = x.codes.shape
        places[name] = base
        for plane in range(x.planes):
            part = slice(plane * x.blocks_per_plane, (plane + 1) * x.blocks_per_plane)
            count = x.blocks_per_plane * height * width
            codes = x.codes[:, part].transpose(0, 1, 3, 4, 2).reshape(-1, config.rows)
            fields = None if x.planes > 1 else x.exponents[:, part].reshape(-1)
            beats = spec.word_beats if fields is not None else spec.code_beats
            packed = pack_words(codes, fields, config.act_bits, spec.beat_bytes)
            parts.append(packed.reshape(n, -1))
            builder.add(
                Load(
                    offset=offset,
                    region=Region.INPUT,
                    buffer=base,
                    fixed=int(fields is None),
                    exponent=int(x.exponents[0, part.start, 0, 0]) if fields is None else 0,
                    words=width,
                    rows=height,
                    blocks=x.blocks_per_plane,
                    row_step=width * beats,
                    block_step=height * width * beats,
                    buffer_row_step=width,
                    buffer_block_step=height * width,
                )
            )
            base += count
            offset += count * beats
    images = np.concatenate(parts, axis=1)
    missing = builder.sizes["input"] * spec.beat_bytes - images.shape[1]
    images = np.pad(images, ((0, 0), (0, missing)))
    # A block of channels, as several column tiles or a part of one, is at `pixels` each.
    for tile, filters in enumerate(columns):
        started = False
        biases = np.zeros(config.cols, np.float32)
        some = layer.bias[filters.start : filters.stop]
        biases[: len(some)] = some
        for term in layer.terms:
            x = sources[term.source]
            height, width = x.shape[2:]
            where = walk_of(term, width, size)
            for block, tiles in column_tiles(layer, x, term, filters, config.cols):
                same = layer.reduce == "max"
                if same:
                    tiles = tiles[:1]
                if not started:
                    tiles[0] = (*tiles[0][:2], biases)
                builder.weights(tiles)
                # A max pool takes one tile, and starts in the first turn of its first two loops.
                outer = () if same else (ONCE,)
                loops = (*outer, *where["taps"], *where["pixels"], *((ONCE,) if same else ()))
                builder.add(
                    Pass(
                        buffer=(places[term.source] + block * height * width + where["first"])
                        % 2**20,
                        accumulator=tile * pixels,
                        start=int(not started),
                        maximum=int(same),
                        signed=int(x.signed[block]),
                        tile_level=0 if same else 3,
                        start_level=2 if same else 3,
                        y=where["y"],
                        x=where["x"],
                        height=height,
                        width=width,
                        loops=loops,
                    )
                )
                started = True
    where = {"rows": size[0], "pixels": size[1]}
    if layer.output is None:
        for tile in range(len(columns)):
            builder.drain(
                Place("out", tile * config.cols, 0, 0),
                accumulator=tile * pixels,
                form=Form.RAW,
                to_memory=1,
                region=Region.OUTPUT,
                offset=tile * pixels * spec.raw_beats,
                row_step=size[1] * spec.raw_beats,
                **where,
            )
    else:
        form = Form.SIGNED if layer.output.signed else Form.UNSIGNED
        groups = config.requantizer.blocks_per_beat
        beats = config.requantizer.beats_per_block
        for block in range(blocks_out):
            builder.drain(
                Place("out", block * config.rows, 0, 0),
                accumulator=block * beats * pixels if groups == 1 else block // groups * pixels,
                beat_step=pixels,
                form=form,
                select=block % groups,
                to_memory=1,
                region=Region.OUTPUT,
                offset=block * pixels * spec.word_beats,
                row_step=size[1] * spec.word_beats,
                **where,
            )
    shapes = {"out": (layer.bias.size, *size)}
    return replace(builder.program(shapes=shapes), output="out"), images, size


def assert_layer(config: HardwareConfig, layer: Layer, sources: dict[str, BlockTensor]) -> None:
    program, images, _ = compiled(config, layer, sources)
    check_order(program)
    check_written(program)
    run = Machine(program).run(images, trace=True)
    found, expected = program.decode_output(run.outputs), layer.compute(sources)
    assert same_numbers(found, expected)


SHAPES = [(4, 4), (8, 4), (4, 8), (6, 2), (3, 7), (5, 2)]


def config_of(rows: int, cols: int, **change) -> HardwareConfig:
    return replace(HardwareConfig(rows, cols, buffer_depth=1024), **change)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("output", ["raw", "unsigned", "signed"])
def test_convolution(shape: tuple[int, int], output: str):
    rng = np.random.default_rng([*shape, len(output)])
    config = config_of(*shape, scale="fp16" if output == "raw" else "bf16")
    sources = {"x": tensor(rng, (3, 9, 7, 6), config.rows, 4, "signed")}
    filters = 11 if config.cols < config.rows else 10
    term = Term("x", kernel(rng, config, filters, 9, (3, 2)), (2, 1), (1, 2, 1, 0), (1, 2))
    form = None if output == "raw" else BlockFloat(config.rows, 4, output == "signed")
    bias = rng.normal(size=filters).astype(np.float32)
    assert_layer(config, Layer("out", (term,), bias, output=form), sources)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_planes_and_a_residual(shape: tuple[int, int]):
    rng = np.random.default_rng(shape)
    config = config_of(*shape, weight_bits=5)
    sources = {
        "image": tensor(rng, (2, 3, 6, 6), config.rows, 4, "planes"),
        "y": tensor(rng, (2, 9, 6, 6), config.rows, 4, "unsigned"),
    }
    identity = VariableQuantizedKernel.depthwise(
        9, (1, 1), 1, 1.0, weight_bits=5, block=config.rows
    )
    terms = (
        Term("image", kernel(rng, config, 9, 3, (3, 3)), padding=(1, 1, 1, 1)),
        Term("y", identity),
    )
    bias = rng.normal(size=9).astype(np.float32)
    assert_layer(
        config, Layer("out", terms, bias, output=BlockFloat(config.rows, 4, True)), sources
    )


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (6, 2), (5, 3)])
@pytest.mark.parametrize("kind", ["unsigned", "signed"])
def test_max_pool(shape: tuple[int, int], kind: str):
    rng = np.random.default_rng([*shape, len(kind)])
    config = config_of(*shape)
    sources = {"x": tensor(rng, (2, 10, 7, 7), config.rows, 4, kind)}
    ones = VariableQuantizedKernel.depthwise(10, (3, 3), 1, 1.0, weight_bits=4, block=config.rows)
    term = Term("x", ones, (2, 2), (1, 1, 1, 1))
    layer = Layer("out", (term,), np.full(10, LOWEST), "max", BlockFloat(config.rows, 4, True))
    assert_layer(config, layer, sources)


def test_limits_come_before_requantization_and_before_raw_rows():
    rng = np.random.default_rng(5)
    config = config_of(4, 4)
    sources = {"x": tensor(rng, (2, 4, 5, 5), 4, 4, "signed")}
    layer = Layer("out", (Term("x", kernel(rng, config, 4, 4, (1, 1))),), np.zeros(4, np.float32))
    accumulators = layer.accumulate(sources)
    low, high = np.float32(-0.25), np.float32(1.7)
    clamped = np.minimum(np.maximum(accumulators, low), high)
    assert (clamped != accumulators).mean() > 0.2
    bits = {"limited": 1, "low": int(low.view(np.uint32)), "high": int(high.view(np.uint32))}
    for output in (None, BlockFloat(4, 4, True), BlockFloat(4, 4)):
        program, images, _ = compiled(config, replace(layer, output=output), sources)
        items = tuple(
            replace(item, **bits) if isinstance(item, Drain) else item
            for item in program.instructions
        )
        program = replace(program, instructions=items)
        found = program.decode_output(Machine(program).run(images).outputs)
        if output is None:
            assert isinstance(found, np.ndarray)
            assert np.array_equal(found, clamped)
        else:
            assert same_numbers(found, output.compute(clamped))
    # Limits that cross each other give the high one.
    swapped = {"low": bits["high"], "high": bits["low"]}
    program, images, _ = compiled(config, layer, sources)
    items = tuple(
        replace(item, limited=1, **swapped) if isinstance(item, Drain) else item
        for item in program.instructions
    )
    program = replace(program, instructions=items)
    found = program.decode_output(Machine(program).run(images).outputs)
    assert isinstance(found, np.ndarray)
    assert (found == low).all()


def copying(config: HardwareConfig, words: int = 6) -> tuple[Builder, np.ndarray]:
    """A load, and an identity pass from it to the accumulators."""
    builder = Builder(config, input=64, scratch=64, output=128)
    builder.add(Load(offset=0, region=Region.INPUT, buffer=2, words=words))
    eye = np.eye(config.rows, config.cols).astype(np.int8)
    ones = np.ones(config.cols, np.float32)
    builder.weights([(eye, ones, np.zeros(config.cols, np.float32))])
    loops = (ONCE, ONCE, ONCE, ONCE, Loop(words, 1, 1, 0, 1))
    builder.add(Pass(buffer=2, start=1, signed=1, height=1, width=words, loops=loops))
    rng = np.random.default_rng(0)
    x = tensor(rng, (words, config.rows, 1, 1), config.rows, config.act_bits, "signed")
    data = pack_words(
        x.codes[:, 0, :, 0, 0],
        x.exponents[:, 0, 0, 0],
        config.act_bits,
        config.accelerator.beat_bytes,
    )
    image = np.zeros((1, 64 * config.accelerator.beat_bytes), np.uint8)
    image[0, : data.size] = data.ravel()
    return builder, image


def test_spilling_to_scratch_and_back():
    builder, image = copying(config_of(4, 4))
    builder.drain(
        accumulator=0, pixels=6, form=Form.SIGNED, to_memory=1, region=Region.SCRATCH, offset=7
    )
    builder.add(
        Load(
            offset=7,
            region=Region.SCRATCH,
            buffer=2,
            words=3,
            rows=2,
            row_step=3,
            buffer_row_step=100,
        )
    )
    loops = (ONCE, ONCE, ONCE, Loop(2, 100, 3, 0, 0), Loop(3, 1, 1, 0, 0))
    eye = np.eye(4).astype(np.int8)
    builder.weights([(eye, np.full(4, -2, np.float32), np.zeros(4, np.float32))])
    builder.add(Pass(buffer=2, start=1, signed=1, height=1, width=1, loops=loops))
    builder.drain(
        accumulator=0, pixels=6, form=Form.SIGNED, to_buffer=1, buffer=500, to_memory=1,
        region=Region.OUTPUT,
    )  # fmt: skip
    program = builder.program()
    check_order(program)
    check_written(program)
    run = Machine(program).run(image, trace=True)
    first, second = run.trace
    assert isinstance(first, BlockRows)
    assert isinstance(second, BlockRows)
    assert first.codes.any()
    assert np.array_equal(second.codes, -first.codes)
    assert np.array_equal(second.exponents, first.exponents + 1 * (first.exponents > 0))


def test_passes_that_differ_in_where_they_start_only():
    builder, image = copying(config_of(4, 4))
    tile = (np.eye(4).astype(np.int8), np.ones(4, np.float32), np.ones(4, np.float32))
    once = builder.items[-1]
    assert isinstance(once, Pass)
    twice = replace(once, loops=(*once.loops[:3], Loop(2), once.loops[4]), start_level=4)
    for item in (twice, replace(twice, start_level=5), replace(twice, start=0, start_level=5)):
        builder.weights([tile if item.start else (*tile[:2], None)])
        builder.add(item)
        builder.drain(accumulator=0, pixels=6, form=0, to_memory=1, region=Region.OUTPUT)
    program = builder.program()
    trace = Machine(program).run(image, trace=True).trace
    for expected, found in zip(Reference(program, image[0]).trace, trace, strict=True):
        assert isinstance(expected, np.ndarray)
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found[0], expected)


def test_images_do_not_see_each_other():
    rng = np.random.default_rng(11)
    config = random_config(rng)
    program = random_program(rng, config, 14)
    images = random_images(rng, program, 40)
    machine = Machine(program)
    together = machine.run(images, trace=True)
    for n in (0, 15, 16, 39):
        alone = machine.run(images[n : n + 1], trace=True)
        assert np.array_equal(alone.outputs[0], together.outputs[n])
        for a, b in zip(alone.trace, together.trace, strict=True):
            if isinstance(a, BlockRows) and isinstance(b, BlockRows):
                assert np.array_equal(a.codes[0], b.codes[n])
                assert np.array_equal(a.exponents[0], b.exponents[n])
            else:
                assert isinstance(a, np.ndarray)
                assert isinstance(b, np.ndarray)
                assert np.array_equal(a[0], b[n])
    assert machine.run(images[:0]).outputs.shape == (0, together.outputs.shape[1])
    assert machine.run(images).trace == ()


def test_a_mismatch_is_named():
    rng = np.random.default_rng(3)
    config = config_of(4, 4)
    sources = {"x": tensor(rng, (2, 8, 5, 4), 4, 4, "signed")}
    layer = Layer("out", (Term("x", kernel(rng, config, 8, 8, (1, 1))),), np.zeros(8, np.float32))
    program, images, _ = compiled(config, layer, sources)
    trace = Machine(program).run(images, trace=True).trace
    assert first_mismatch(program, trace, trace) is None
    assert isinstance(trace[1], np.ndarray)
    changed_rows = trace[1].copy()
    changed_rows[1, 13, 2] = 7
    other = [trace[0], changed_rows]
    found = first_mismatch(program, trace, other)
    assert found is not None
    assert str(found) == (
        f"image 1, layer 'out', pixel (3, 1), channel 6: value must be "
        f"{trace[1][1, 13, 2].item()}, not 7.0"
    )
    layer = replace(layer, output=BlockFloat(4, 4, True))
    program, images, _ = compiled(config, layer, sources)
    trace = Machine(program).run(images, trace=True).trace
    blocks = [w for w in trace if isinstance(w, BlockRows)]
    codes = [BlockRows(w.codes.copy(), w.exponents.copy()) for w in blocks]
    codes[0].codes[0, 4, 1] ^= 1
    found = first_mismatch(program, trace, codes)
    assert found is not None
    assert (found.drain, found.what, found.row, found.column, found.channel) == (0, "code", 1, 0, 1)
    codes[0].exponents[0, 19] += 1  # of a later pixel
    assert first_mismatch(program, trace, codes) == found
    codes[0].exponents[0, 4] += 1
    found = first_mismatch(program, trace, codes)
    assert found is not None
    assert (found.what, found.row, found.column) == ("exponent", 1, 0)


# Errors.

LOAD = Load(offset=0, region=Region.INPUT, buffer=0, words=2)
PASS = Pass(buffer=0, start=1, height=1, width=2, loops=(ONCE,) * 4 + (Loop(2, 1, 1, 0, 1),))
WEIGHTS = Weights(offset=64, tiles=1, biased=1)
DRAIN = Drain(accumulator=0, pixels=2, form=Form.SIGNED, to_memory=1, region=Region.OUTPUT)
CONFIG = HardwareConfig(4, 8, buffer_depth=16, accumulator_depth=8, queue_depth=2)
SIZES = (100, 20, 10, 40)
GOOD = [LOAD, WEIGHTS, PASS, DRAIN, End()]


def changed(index: int, **fields) -> list:
    items = list(GOOD)
    items[index] = replace(items[index], **fields)
    return items


def looped(index: int, **fields) -> list:
    loops = list(PASS.loops)
    loops[index] = loops[index]._replace(**fields)
    return changed(2, loops=tuple(loops))


def test_the_good_program_is_good():
    validate(GOOD, CONFIG, SIZES)


FIELD = [
    (changed(0, words=0), "instruction 0 (LOAD): words must be at least 1, not 0"),
    (changed(0, rows=0), "instruction 0 (LOAD): rows must be at least 1, not 0"),
    (changed(0, blocks=0), "instruction 0 (LOAD): blocks must be at least 1, not 0"),
    (
        changed(0, region=3),
        "instruction 0 (LOAD): region must be MODEL, INPUT or SCRATCH, not OUTPUT",
    ),
    (changed(1, tiles=0), "instruction 1 (WEIGHTS): tiles must be at least 1, not 0"),
    (looped(0, count=0), "instruction 2 (PASS): count_0 must be at least 1, not 0"),
    (looped(4, count=0), "instruction 2 (PASS): count_4 must be at least 1, not 0"),
    (changed(2, tile_level=6), "instruction 2 (PASS): tile_level must be 0 to 5, not 6"),
    (changed(2, start_level=7), "instruction 2 (PASS): start_level must be 0 to 5, not 7"),
    (changed(3, rows=0), "instruction 3 (DRAIN): rows must be at least 1, not 0"),
    (changed(3, pixels=0), "instruction 3 (DRAIN): pixels must be at least 1, not 0"),
    (changed(3, form=3), "instruction 3 (DRAIN): form must be 0 to 2, not 3"),
    (changed(3, to_memory=0), "instruction 3 (DRAIN): to_buffer or to_memory must be set"),
    (
        changed(3, region=1),
        "instruction 3 (DRAIN): region must be SCRATCH or OUTPUT, not INPUT",
    ),
    (changed(3, form=0, to_buffer=1), "instruction 3 (DRAIN): to_buffer must be 0 for raw rows, "
     "which only go to memory"),
    (
        changed(3, form=0, select=1),
        "instruction 3 (DRAIN): select must be 0 for raw rows, not 1",
    ),
    (changed(3, select=2), "instruction 3 (DRAIN): select must be 0 to 1, not 2"),
]  # fmt: skip
BUFFER = [
    (changed(0, buffer=15), "instruction 0 (LOAD): buffer addresses must be 0 to 15, not 16"),
    (
        changed(0, buffer=2**20 - 1),
        "instruction 0 (LOAD): buffer addresses must be 0 to 15, not 31",
    ),
    (changed(2, buffer=15), "instruction 2 (PASS): buffer addresses must be 0 to 15, not 16"),
    (
        changed(3, to_buffer=1, buffer=16),
        "instruction 3 (DRAIN): buffer addresses must be 0 to 15, not 16",
    ),
]
ACCUMULATOR = [
    (
        changed(2, accumulator=7),
        "instruction 2 (PASS): accumulator addresses must be 0 to 7, not 8",
    ),
    # Pixels outside of the picture have an accumulator too.
    (
        changed(2, accumulator=7, width=1),
        "instruction 2 (PASS): accumulator addresses must be 0 to 7, not 8",
    ),
    (
        changed(3, accumulator=7),
        "instruction 3 (DRAIN): accumulator addresses must be 0 to 7, not 8",
    ),
]
MEMORY = [
    (changed(0, offset=19), "instruction 0 (LOAD): beats of INPUT must be 0 to 19, not 20"),
    (
        changed(0, rows=3, row_step=10),
        "instruction 0 (LOAD): beats of INPUT must be 0 to 19, not 21",
    ),
    (
        changed(0, blocks=2, block_step=2**32 - 1),
        "instruction 0 (LOAD): beats of INPUT must be 0 to 19, not 536870912",
    ),
    (
        changed(0, region=2, words=11),
        "instruction 0 (LOAD): beats of SCRATCH must be 0 to 9, not 10",
    ),
    (changed(1, offset=91), "instruction 1 (WEIGHTS): beats of MODEL must be 0 to 99, not 100"),
    (changed(3, offset=39), "instruction 3 (DRAIN): beats of OUTPUT must be 0 to 39, not 40"),
    (
        changed(3, form=0, offset=33),
        "instruction 3 (DRAIN): beats of OUTPUT must be 0 to 39, not 40",
    ),
]
TILES = [
    (
        changed(1, biased=0),
        "instruction 2 (PASS) must get a tile with biases when its first pixel starts; the tile "
        "of instruction 1 (WEIGHTS) has none",
    ),
    (
        changed(2, start=0),
        "instruction 2 (PASS) must get a tile with no biases when its first pixel continues; the "
        "tile of instruction 1 (WEIGHTS) has some",
    ),
]


@pytest.mark.parametrize(
    ("items", "message", "code"),
    [
        *((*case, Error.BAD_FIELD) for case in FIELD),
        *((*case, Error.BUFFER_RANGE) for case in BUFFER),
        *((*case, Error.ACCUMULATOR_RANGE) for case in ACCUMULATOR),
        *((*case, Error.MEMORY_RANGE) for case in MEMORY),
        *((*case, Error.TILE_MISMATCH) for case in TILES),
        (
            GOOD[:-1],
            "a program must have an END, not 4 other instructions",
            Error.PROGRAM_RANGE,
        ),
        (
            [LOAD, replace(WEIGHTS, offset=0, tiles=2), PASS, DRAIN, End()],
            "instruction 1 (WEIGHTS): every tile must be taken by a PASS; 1 were not when the "
            "program ended",
            Error.WEIGHTS_LEFT,
        ),
        (
            [LOAD, PASS, DRAIN, End()],
            "no engine can go on: instruction 1 (PASS) waits for 1 more tile of WEIGHTS",
            Error.DEADLOCK,
        ),
        (
            changed(3, after_pass=2),
            "no engine can go on: instruction 3 (DRAIN) waits for 2 PASS, 1 are complete",
            Error.DEADLOCK,
        ),
        (
            [
                replace(LOAD, after_drain=1),
                WEIGHTS,
                replace(PASS, after_load=1),
                replace(DRAIN, after_pass=1),
                End(),
            ],
            "no engine can go on: instruction 0 (LOAD) waits for 1 DRAIN, 0 are complete; "
            "instruction 2 (PASS) waits for 1 LOAD, 0 are complete; "
            "instruction 3 (DRAIN) waits for 1 PASS, 0 are complete",
            Error.DEADLOCK,
        ),
        (
            [LOAD, WEIGHTS, replace(PASS, loops=(Loop(4095),) * 5)],
            f"instruction 2 (PASS): pixels must be at most 268435456, not {4095**5}",
            Error.TIMEOUT,
        ),
    ],
)  # fmt: skip
def test_errors(items: list, message: str, code: Error):
    with pytest.raises(MachineError) as caught:
        validate(items, CONFIG, SIZES)
    assert caught.value.code == code
    assert str(caught.value) == message
    assert code in outcomes(model_of(items), CONFIG, SIZES)


def model_of(items: list, spoiled: int | None = None) -> np.ndarray:
    """The encoded program, an instruction of it without an opcode."""
    words = encode(items)
    if spoiled is not None:
        words[spoiled, 0] &= ~np.uint64(0xF)
    return words.view(np.uint8).ravel()


LATE, FAR, HIGH = changed(3, offset=39)[3], changed(0, buffer=15)[0], changed(2, accumulator=7)[2]


@pytest.mark.parametrize(
    ("items", "spoiled", "codes"),
    [
        (GOOD, None, {Error.NONE}),
        # Errors of different engines race; memory decides.
        ([FAR, *GOOD[1:3], LATE, End()], None, {Error.BUFFER_RANGE, Error.MEMORY_RANGE}),
        (
            [LOAD, WEIGHTS, replace(HIGH, buffer=15), DRAIN, End()],
            None,
            {Error.BUFFER_RANGE, Error.ACCUMULATOR_RANGE},
        ),
        (
            [LOAD, replace(WEIGHTS, biased=0), HIGH, DRAIN, End()],
            None,
            {Error.TILE_MISMATCH, Error.ACCUMULATOR_RANGE},
        ),
        # What comes after an instruction that is none does not count, nor does what follows END.
        ([*GOOD[:3], LATE, End()], 2, {Error.BAD_OPCODE}),
        ([FAR, *GOOD[1:]], 2, {Error.BUFFER_RANGE, Error.BAD_OPCODE}),
        ([*GOOD, FAR], 5, {Error.NONE}),
        (changed(1, tiles=0), 3, {Error.BAD_FIELD}),
        # An END must come, but nothing need have waited for it.
        (changed(3, after_pass=2)[:-1], None, {Error.PROGRAM_RANGE, Error.DEADLOCK}),
        (GOOD[:2], None, {Error.PROGRAM_RANGE}),
        # Tiles are left when every PASS is complete, whatever still waits for something.
        (
            [LOAD, replace(WEIGHTS, tiles=2, offset=0), PASS, replace(DRAIN, after_load=2), End()],
            None,
            {Error.WEIGHTS_LEFT},
        ),
        # Nobody walks through so many pixels.
        (
            changed(2, loops=(Loop(4095),) * 5),
            None,
            {Error.TIMEOUT, Error.BUFFER_RANGE, Error.ACCUMULATOR_RANGE},
        ),
    ],
)
def test_outcomes(items: list, spoiled: int | None, codes: set[Error]):
    assert outcomes(model_of(items, spoiled), CONFIG, SIZES) == codes


def test_the_model_region_ends_the_program():
    beats = CONFIG.accelerator.instruction_beats
    for instructions, reason in ((4, Error.PROGRAM_RANGE), (5, Error.NONE), (6, Error.NONE)):
        found = fetched(model_of([*GOOD, LOAD]), CONFIG, instructions * beats)
        assert found == (tuple(GOOD[:instructions]), reason)


def test_offsets_in_memory_wrap():
    # The second block lies before the first one, the second row after the last beat of 2**32.
    wide = replace(CONFIG, address_bits=40)
    validate(changed(0, offset=10, blocks=2, block_step=2**32 - 10), wide, SIZES)
    validate(
        changed(3, offset=2**32 - 2**23, rows=2, row_step=2**23), wide, (*SIZES[:3], 2**32 - 1)
    )
    narrow = replace(CONFIG, address_bits=16)  # 2**13 beats
    validate(changed(0, offset=2**31 + 2**13 + 5, row_step=2**20), narrow, SIZES)
    validate(changed(1, offset=2**13 + 64), narrow, SIZES)
    with pytest.raises(MachineError, match=r"beats of INPUT must be 0 to 19, not 21$"):
        validate(changed(0, offset=20, blocks=2, block_step=2**32 - 10), CONFIG, SIZES)


def test_words_that_are_no_program():
    words = encode(GOOD)
    assert list(decode_program(words)) == GOOD
    assert list(decode_program(np.concatenate([words, np.zeros((1, 8), np.uint64)]))) == GOOD
    with pytest.raises(
        MachineError, match=r"^a program must have an END, not 4 other ins"
    ) as caught:
        decode_program(words[:-1])
    assert caught.value.code == Error.PROGRAM_RANGE
    changes = [
        (2, 0, 0xF, Error.BAD_OPCODE, "instruction 2: opcode 15 does not exist"),
        (2, 0, Opcode.PASS, Error.BAD_OPCODE, "instruction 2: opcode 0 does not exist"),
        (3, 7, 1, Error.BAD_FIELD, "instruction 3: a reserved bit of DRAIN is set"),
        (4, 1, 1, Error.BAD_FIELD, "instruction 4: a reserved bit of END is set"),
    ]
    for index, word, change, code, message in changes:
        bad = words.copy()
        bad[index, word] = (
            (bad[index, word] & ~np.uint64(0xF))
            if change == Opcode.PASS
            else (bad[index, word] | np.uint64(change))
        )
        with pytest.raises(MachineError) as caught:
            decode_program(bad)
        assert (caught.value.code, caught.value.instruction) == (code, index)
        assert str(caught.value) == message


def test_clamping_must_be_there():
    items = changed(3, limited=1, high=0x3F800000)
    validate(items, CONFIG, SIZES)
    message = (
        r"^instruction 3 \(DRAIN\): limited must be 0 where the configuration says clamp = fal"
    )
    with pytest.raises(MachineError, match=message) as caught:
        validate(items, replace(CONFIG, clamp=False), SIZES)
    assert caught.value.code == Error.BAD_FIELD


def test_addresses_outside_of_the_picture_are_not_read():
    validate(changed(2, buffer=15, width=1), CONFIG, SIZES)
    validate(changed(2, buffer=2**20 - 1, x=-1, width=1), CONFIG, SIZES)
    validate(changed(2, buffer=999, height=0), CONFIG, SIZES)


def test_queues_may_be_too_short():
    # The PASS needs tiles of three WEIGHTS, after as many instructions as two queues hold.
    builder = Builder(CONFIG, input=20, output=40)
    zeros = (np.zeros((4, 8), np.int8), np.zeros(8, np.float32), np.zeros(8, np.float32))
    passes = replace(PASS, tile_level=4, start=1, loops=(ONCE,) * 3 + (Loop(3), Loop(2, 0, 1)))
    for _ in range(3):
        builder.weights([zeros])
    builder.add(passes)
    with pytest.raises(MachineError, match=r"no engine can go on: .*waits for room") as caught:
        Machine(builder.program())
    assert caught.value.code == Error.DEADLOCK
    # The accelerator holds more than its queues do, how much more is not the model's business.
    program = builder.program()
    assert outcomes(program.model, CONFIG, program.sizes) == {Error.NONE, Error.DEADLOCK}
    builder.items = [builder.items[k] for k in (0, 1, 3, 2)]
    Machine(builder.program())


def test_numbers_that_are_none():
    builder, _ = copying(config_of(4, 4))
    infinite = 0x7F800000
    builder.drain(accumulator=0, pixels=6, form=0, to_memory=1, region=3, limited=1, high=infinite)
    message = r"^instruction 3 \(DRAIN\): low or high: an all-ones exponent field is no number"
    with pytest.raises(MachineError, match=message) as caught:
        Machine(builder.program())
    assert caught.value.code == Error.NONE
    builder, _ = copying(config_of(4, 4))
    program = builder.program()
    bad = replace(program, weights=np.full_like(program.weights, 255))
    with pytest.raises(MachineError, match=r"^a tile of the model: an all-ones") as caught:
        Machine(bad)
    assert caught.value.code == Error.NONE


def test_lanes_past_the_last_one_must_be_zero():
    builder, image = copying(config_of(3, 2))
    builder.items[-1] = replace(builder.items[-1], accumulator=1)
    builder.drain(accumulator=0, pixels=5, beat_step=1, form=1, to_memory=1, region=3)
    message = r"^instruction 3 \(DRAIN\): lanes past channel 3 of a block must be zero$"
    with pytest.raises(MachineError, match=message) as caught:
        Machine(builder.program()).run(image)
    assert caught.value.code == Error.NONE


def test_images_of_another_size_are_refused():
    builder, image = copying(config_of(4, 4))
    machine = Machine(builder.program())
    message = r"^images must be \(N, 512\) uint8, not \(1, 511\) uint8$"
    with pytest.raises(ValueError, match=message):
        machine.run(image[:, 1:])
    with pytest.raises(ValueError, match=r"not \(1, 512\) int64$"):
        machine.run(image.astype(np.int64))  # pyright: ignore[reportArgumentType]


def test_a_model_larger_than_its_region_is_refused():
    builder, _ = copying(config_of(4, 4))
    program = builder.program()
    message = (
        rf"^the model must have at most {len(program.model)} bytes, not {len(program.model) + 1}$"
    )
    with pytest.raises(ValueError, match=message):
        Machine(replace(program, weights=np.append(program.weights, np.uint8(0))))
