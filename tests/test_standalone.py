"""Standalone images through the pins of their serial line, and what they are made of."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from shiftcore.compiler.network import compile_network
from shiftcore.examples.digits import data, model
from shiftcore.golden.bfp import BlockFloat, FixedPoint
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import FixedFormat, accumulator_format
from shiftcore.golden.isa import Error, Region
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.link import Command, Fault
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.program import Program
from shiftcore.golden.registers import register
from shiftcore.golden.standalone import StandaloneSpec
from shiftcore.golden.uart import UartSpec
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.host.standalone import at_clock, standalone
from shiftcore.quant.accumulators import fix_accumulators
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.standalone import Request, talk

SMALL = HardwareConfig(4, 2, buffer_depth=64, accumulator_depth=16, clamp=False, queue_depth=2)
DIGITS = HardwareConfig(
    16, 4, bus_bits=32, buffer_depth=512, queue_depth=4, weight_fifo=64, load_fifo=32,
    store_fifo=32, outstanding=2, clamp=False,
)  # fmt: skip
"""``examples/ulx3s.toml``"""
IMAGES = np.random.default_rng(5).normal(size=(12, 3, 3, 3)).astype(np.float32)
"""for the small network"""


def kernel(rng: np.random.Generator, *shape: int) -> VariableQuantizedKernel:
    return VariableQuantizedKernel.quantize(rng.normal(size=shape), weight_bits=4, block=4)


def network(outputs: int = 5, size: int = 2, *, codes: bool = False) -> QuantizedNetwork:
    """Two layers on 3x3 pixels; the last one has a kernel of `size`."""
    rng = np.random.default_rng(7)
    stored = BlockFloat(4, 4)
    bias = rng.normal(size=6).astype(np.float32)
    conv = Layer("conv", (Term("input", kernel(rng, 6, 3, 2, 2)),), bias, output=stored)
    last = Layer(
        "last",
        (Term("conv", kernel(rng, outputs, 6, size, size)),),
        rng.normal(size=outputs).astype(np.float32),
        output=stored if codes else None,
    )
    return QuantizedNetwork(FixedPoint(-5, 4, 4, 4), (3, 3, 3), (conv, last))


def expected(program: Program, images: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(N, classes) by the golden machine, bit patterns of float32."""
    found = program.decode_output(Machine(program).run(images).outputs)
    return np.asarray(found, np.float32).reshape(len(images), -1).view(np.uint32)


def ask(spec: StandaloneSpec, image: NDArray[np.uint8], command: Command) -> Request:
    return Request(spec.link.request(image.tobytes(), command), spec.link.reply_bytes(command))


@pytest.fixture(scope="module")
def small() -> tuple[StandaloneSpec, NDArray[np.uint8], NDArray[np.uint32]]:
    """The spec of the small network, and images with their scores."""
    net = network()
    program = compile_network(net, SMALL)
    images = program.encode_input(net.encode_input(IMAGES))
    return standalone(program, UartSpec(8), 400), images, expected(program, images)


@pytest.mark.parametrize("drift", [0.0, 0.025, -0.025])
def test_classes_and_scores(small, drift: float):
    spec, images, scores = small
    commands = [(Command.CLASS, Command.SCORES)[k % 2] for k in range(len(images))]
    requests = [ask(spec, *each) for each in zip(images, commands, strict=True)]
    answers = talk(spec, requests, drift=drift, limit=20_000)
    for request, answer, own in zip(requests, answers, scores, strict=True):
        assert answer.content == spec.link.compute(request.content, own)
    assert len(set(spec.link.argmax.compute(scores))) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulator": "fixed24"},
        {"accumulator": "fixed36"},  # its lowest bits do not go to memory
        {"accumulator": "fixed20", "control": "serial"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_scores_of_fixed_point(changes: dict[str, str]):
    """Classes by whole numbers; scores, decoded, are those of the network."""
    form = accumulator_format(changes["accumulator"])
    assert isinstance(form, FixedFormat)
    plain = network()
    # Of negative scores the largest is not the one that would be as float32.
    low = replace(plain.layers[-1], bias=plain.layers[-1].bias - 2)
    net = fix_accumulators(replace(plain, layers=(*plain.layers[:-1], low)), IMAGES, form)
    program = compile_network(net, replace(SMALL, **changes))
    spec = standalone(program, UartSpec(8), 400)
    images = program.encode_input(net.encode_input(IMAGES))
    outputs = Machine(program).run(images).outputs.view("<u4")
    begin = dict(spec.run.writes)[register("OUTPUT_BASE_LO").offset]
    scores = outputs[:, [(address - begin) // 4 for address in spec.scores]]
    requests = [ask(spec, image, Command.SCORES) for image in images]
    results = np.asarray(net.compute(IMAGES)["last"]).reshape(len(IMAGES), -1)
    for request, answer, own, result in zip(
        requests, talk(spec, requests, limit=20_000), scores, results, strict=True
    ):
        assert answer.content == spec.link.compute(request.content, own)
        found, decoded = spec.link.parse(answer.content)
        assert found == own.view(np.int32).argmax()
        assert np.array_equal(decoded, result)
    assert len(set(spec.link.argmax.compute(scores))) > 1
    below = (scores.view(np.int32) < 0).all(axis=1)
    assert below.any()
    assert not below.all()


def test_faults_and_what_comes_after(small):
    spec, images, scores = small
    good = ask(spec, images[0], Command.CLASS)
    content = good.content
    answered = spec.link.compute(content, scores[0])
    wrong = {
        b"?" + content[1:]: Fault.UNKNOWN_COMMAND,
        content[:-1] + bytes([content[-1] ^ 128]): Fault.WRONG_CHECK,
        content[:9]: Fault.TRUNCATED,
        content[:1]: Fault.TRUNCATED,
    }
    requests, replies = [], []
    for each, fault in wrong.items():
        assert spec.link.fault(each) == fault
        requests += [Request(each, 3), good]
        replies += [spec.link.refusal(fault), answered]
    for broken in (0, 5, len(content) - 1):
        requests += [Request(content, 3, broken), good]
        replies += [spec.link.refusal(Fault.BROKEN_BYTE), answered]
    # What comes during a run is dropped.
    requests += [replace(good, content=content + b"C"), good]
    replies += [answered, answered]
    answers = talk(spec, requests, limit=20_000)
    assert [answer.content for answer in answers] == replies


def test_a_halt_is_answered(small):
    spec, images, _ = small
    memory = spec.memory
    broken = replace(memory, content=bytes(8) + memory.content[8:])
    answers = talk(
        replace(spec, memory=broken), [Request(ask(spec, images[0], Command.CLASS).content, 3)] * 2,
        limit=20_000,
    )  # fmt: skip
    assert [answer.content for answer in answers] == [spec.link.refusal(Error.BAD_OPCODE)] * 2


def test_digits():
    """The demo's network at the divisor of a ULX3S: the gateware of its bitstream."""
    training, held_out = data.load()
    net = quantize(model.load(), training.x[:256], QuantConfig())
    program = compile_network(net, DIGITS)
    images = program.encode_input(net.encode_input(held_out.x[:2]))
    scores = expected(program, images)
    spec = at_clock(program, 25e6, 1_000_000)
    assert spec.link.uart.divisor == 25
    requests = [ask(spec, image, Command.SCORES) for image in images]
    for request, answer, own in zip(requests, talk(spec, requests), scores, strict=True):
        assert answer.content == spec.link.compute(request.content, own)
        found, decoded = spec.link.parse(answer.content)
        assert found == own.view(np.float32).argmax()
        assert np.array_equal(decoded.view(np.uint32), own)


def test_the_example_is_this_hardware():
    from importlib.resources import as_file, files

    with as_file(files("shiftcore.examples") / "ulx3s.toml") as path:
        assert HardwareConfig.load(path) == DIGITS


def test_the_spec_is_what_the_driver_does(small):
    spec, images, _ = small
    program = compile_network(network(), SMALL)
    values = dict(spec.run.writes)
    places = [values[register(f"{region.name}_BASE_LO").offset] for region in Region]
    sizes = [values[register(f"{region.name}_SIZE").offset] for region in Region]
    assert sizes == list(program.sizes)
    beat = spec.memory.beat_bytes
    ends = [place + size * beat for place, size in zip(places, sizes, strict=True)]
    assert places == [0, *ends[:-1]]
    assert ends[-1] == len(spec.memory.content)
    assert spec.run.writes[-1] == (register("CONTROL").offset, 1)
    assert spec.memory.content[: ends[0]] == program.model.tobytes()
    assert not any(spec.memory.content[ends[0] :])
    assert (spec.image, spec.link.image_bytes) == (places[Region.INPUT], images.shape[1])
    # Scores anywhere in the result are found where decoding finds them.
    size = program.sizes[Region.OUTPUT] * beat
    result = np.random.default_rng(1).normal(size=size // 4).astype("<f4")
    decoded = np.asarray(program.decode_output(result.view(np.uint8)[None])).ravel()
    words = [(address - places[Region.OUTPUT]) // 4 for address in spec.scores]
    assert np.array_equal(result[words], decoded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, r"layer 'last' gives 5x2x2 numbers"),
        ({"codes": True}, r"layer 'last' gives 5x1x1 codes"),
        ({"outputs": 257}, r"layer 'last' gives 257x1x1 numbers"),
    ],
)
def test_networks_without_a_class(options, message: str):
    program = compile_network(network(**options), SMALL)
    need = "a standalone image needs one score for each of at most 256 classes"
    with pytest.raises(ValueError, match=rf"^{message}: {need}$"):
        standalone(program, UartSpec(8), 400)
