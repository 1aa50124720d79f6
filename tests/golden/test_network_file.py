"""`QuantizedNetwork`: what it accepts, what it computes, and its file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from shiftcore.golden.bfp import BlockFloat, BlockTensor, FixedPoint
from shiftcore.golden.compare import same_numbers
from shiftcore.golden.fixed import FixedFormat, Grid
from shiftcore.golden.floats import FP16, SCALE_FORMATS
from shiftcore.golden.fold import Fold
from shiftcore.golden.layers import Layer, Reduce, Term
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import VariableQuantizedKernel

BLOCK, ACT_BITS = 4, 4
LARGEST = np.float32((2 - 2.0**-23) * 2.0**127)
LOWEST = -LARGEST


def kernel(
    filters: int, depth: int, *taps: int, bits: int = 4, groups: int = 1, scale: str = "bf16"
):
    weight = np.random.default_rng([filters, depth, *taps, bits, groups]).normal(
        size=(filters, depth, *taps)
    )
    return VariableQuantizedKernel.quantize(
        weight,
        weight_bits=bits,
        block=BLOCK,
        groups=groups,
        scale_format=SCALE_FORMATS[scale],
    )


def layer(
    name: str, *terms: Term, reduce: Reduce = "add", output: BlockFloat | None = None
) -> Layer:
    filters = terms[0].kernel.out_channels
    bias = np.random.default_rng(filters).normal(size=filters).astype(np.float32)
    return Layer(name, terms, np.full(filters, LOWEST) if reduce == "max" else bias, reduce, output)


def network() -> QuantizedNetwork:
    """All that the file can describe: planes, a folded input, groups, two terms, max, limits, odd
    counts, every format."""
    unsigned, signed = BlockFloat(BLOCK, ACT_BITS), BlockFloat(BLOCK, ACT_BITS, True, "truncate")
    stem = Term("input", kernel(6, 27, 1, 1, bits=3))
    grouped = Term("stem", kernel(6, 2, 3, 1, groups=3, scale="fp16"), (2, 1), (1, 1, 0, 0))
    main = Term("a.b", kernel(6, 6, 1, 1, bits=7, scale="e8m0"))
    shortcut = Term("stem", kernel(6, 6, 1, 1, bits=8, scale="fp32"), (2, 1), dilation=(1, 2))
    pool = VariableQuantizedKernel.depthwise(6, (2, 2), 1, 1.0, weight_bits=2, block=BLOCK)
    layers = (
        replace(layer("stem", stem, output=unsigned), limits=(0.0, 6.0), macs_per_pixel=100),
        replace(layer("a.b", grouped, output=signed), limits=(-0.5, float(LARGEST))),
        layer("join", main, shortcut, output=unsigned),
        layer("pool", Term("join", pool, (2, 2), (0, 1, 0, 0)), reduce="max", output=unsigned),
        layer("fc", Term("pool", kernel(5, 6, 2, 3, bits=5))),
    )
    fold = Fold((3, 3), padding=(1, 1, 1, 1))
    return QuantizedNetwork(FixedPoint(-6, BLOCK, ACT_BITS), (3, 7, 6), layers, fold)


def on_grids(net: QuantizedNetwork, bits: int) -> QuantizedNetwork:
    """The network with fixed-point accumulators, each layer's on another grid."""
    layers = []
    for number, item in enumerate(net.layers):
        grid = Grid(FixedFormat(bits), 10 - number - bits)
        limits = None if item.limits is None else tuple(grid.constants(item.limits).tolist())
        layers.append(replace(item, bias=grid.constants(item.bias), limits=limits, grid=grid))
    return replace(net, layers=tuple(layers))


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(count, 3, 7, 6)).astype(np.float32)


def test_a_network_computes_its_layers_in_order():
    net, x = network(), images()
    tensors = net.compute(x)
    assert list(tensors) == ["input", "stem", "a.b", "join", "pool", "fc"]
    stored = {"input": net.encode_input(x)}
    for item in net.layers:
        result = item.compute(stored)
        assert same_numbers(result, tensors[item.name])
        if isinstance(result, BlockTensor):
            stored[item.name] = result
    logits = tensors["fc"]
    assert isinstance(logits, np.ndarray)
    assert (logits.shape, logits.dtype) == ((2, 5, 1, 1), np.float32)
    # An image's numbers do not depend on the others.
    assert same_numbers(net.compute(x[1:])["fc"], logits[1:])


def test_sizes_and_macs():
    net = network()
    sizes = {"input": (7, 6), "stem": (7, 6), "a.b": (4, 6), "join": (4, 6), "pool": (2, 3)}
    assert net.sizes() == sizes | {"fc": (1, 1)}
    assert net.macs() == {
        "stem": 7 * 6 * 100,
        "a.b": 4 * 6 * 6 * 2 * 3,
        "join": 4 * 6 * (6 * 6 + 6 * 6),
        "pool": 2 * 3 * 6 * 4,
        "fc": 5 * 6 * 6,
    }
    assert (net.block, net.act_bits, net.weight_bits) == (4, 4, 8)


@pytest.mark.parametrize("accumulator", ["float32", "fixed20", "fixed40"])
def test_round_trip(tmp_path: Path, accumulator: str):
    net = network() if accumulator == "float32" else on_grids(network(), int(accumulator[5:]))
    assert net.accumulator == accumulator
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    net.save(first)
    loaded = QuantizedNetwork.load(first)
    loaded.save(str(second))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]
    for field in ("input", "input_shape", "fold"):
        assert getattr(loaded, field) == getattr(net, field)
    for ours, theirs in zip(loaded.layers, net.layers, strict=True):
        for field in ("name", "reduce", "output", "limits", "macs_per_pixel", "grid"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert ours.bias.dtype == np.float32
        assert np.array_equal(ours.bias.view(np.uint32), theirs.bias.view(np.uint32))
        for mine, yours in zip(ours.terms, theirs.terms, strict=True):
            for field in ("source", "stride", "padding", "dilation", "kernel_size"):
                assert getattr(mine, field) == getattr(yours, field)
            for field in ("weight_bits", "block", "groups", "scale_format"):
                assert getattr(mine.kernel, field) == getattr(yours.kernel, field)
            assert np.array_equal(mine.kernel.codes, yours.kernel.codes)
            assert np.array_equal(mine.kernel.scales, yours.kernel.scales)
    ours, theirs = loaded.compute(images()), net.compute(images())
    assert list(ours) == list(theirs)
    for name in ours:
        assert same_numbers(ours[name], theirs[name])


def test_saving_replaces_an_older_file(tmp_path: Path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"something else")
    network().save(path)
    assert len(QuantizedNetwork.load(path).layers) == 5


def test_stored_sizes_are_the_packed_sizes(tmp_path: Path):
    net, path = network(), tmp_path / "net.safetensors"
    net.save(path)
    expected = {}
    for item in net.layers:
        expected[f"{item.name}.bias"] = 4 * item.bias.size
        for index, term in enumerate(item.terms):
            k = term.kernel
            expected[f"{item.name}.{index}.codes"] = -(-k.codes.size * k.weight_bits // 8)
            width = {"bf16": 2, "fp16": 2, "fp32": 4, "e8m0": 1}[k.scale_format.name]
            expected[f"{item.name}.{index}.scales"] = width * k.scales.size
    with safe_open(path, framework="numpy") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    assert sizes == expected
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + sum(expected.values())


@given(
    st.integers(2, 8), st.integers(1, 7), st.integers(1, 9), st.sampled_from(list(SCALE_FORMATS))
)
def test_any_shape_and_width_survives(
    folder: Path, bits: int, filters: int, depth: int, scale: str
):
    path = folder / "net.safetensors"
    k = kernel(filters, depth, 1, 3, bits=bits, scale=scale)
    net = QuantizedNetwork(FixedPoint(0, BLOCK, 5), (depth, 1, 3), (layer("l", Term("input", k)),))
    net.save(path)
    again = QuantizedNetwork.load(path).layers[0].terms[0].kernel
    assert np.array_equal(again.codes, k.codes)
    assert np.array_equal(again.scales.view(np.uint32), k.scales.view(np.uint32))


def test_arrays_in_any_memory_order_and_precision_are_saved(tmp_path: Path):
    k = kernel(6, 5, 2, 3)
    bias = np.arange(12, dtype=np.float64)[::-2]
    odd = VariableQuantizedKernel(np.asfortranarray(k.codes), np.asfortranarray(k.scales), 4, BLOCK)
    for name, weights, start in (("0", k, bias.astype(np.float32).copy()), ("1", odd, bias)):
        item = Layer("l", (Term("input", weights),), start)  # pyright: ignore[reportArgumentType]
        QuantizedNetwork(FixedPoint(0, BLOCK, 4), (5, 2, 3), (item,)).save(tmp_path / name)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


STEM = layer("stem", Term("input", kernel(6, 3, 1, 1)), output=BlockFloat(BLOCK, ACT_BITS))
OTHER_BLOCK = VariableQuantizedKernel.quantize(np.ones((2, 3, 1, 1)), weight_bits=4, block=8)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            (STEM, layer("l", Term("absent", kernel(2, 6, 1, 1)))),
            r"layer 'l' reads 'absent', which no earlier layer stores",
        ),
        (
            (
                replace(STEM, grid=Grid(FixedFormat(20), -8), bias=np.zeros(6, np.float32)),
                layer("l", Term("stem", kernel(2, 6, 1, 1))),
            ),
            r"all layers must have accumulators of one format, not fixed20 and float32",
        ),
        (
            (layer("l", Term("l", kernel(6, 6, 1, 1))),),
            r"layer 'l' reads 'l', which no earlier layer stores",
        ),
        (
            (
                layer("raw", Term("input", kernel(6, 3, 1, 1))),
                layer("l", Term("raw", kernel(2, 6, 1, 1))),
            ),
            r"layer 'l' reads 'raw', which no earlier layer stores",
        ),
        (
            (layer("l", Term("input", OTHER_BLOCK)),),
            r"layer 'l' has blocks of 8 channels, the network's are 4",
        ),
        (
            (STEM, layer("l", Term("stem", kernel(2, 5, 1, 1)))),
            r"layer 'l' takes 5 channels, 'stem' has 6",
        ),
        ((STEM, STEM), r"layer name 'stem' is used twice"),
        (
            (layer("fc", Term("input", kernel(2, 3, 1, 1))),) * 2,
            r"layer name 'fc' is used twice",
        ),
        ((layer("input", Term("input", kernel(2, 3, 1, 1))),), r"layer name 'input' is used twice"),
        (
            (layer("l", Term("input", kernel(2, 3, 1, 1)), output=BlockFloat(8, 4)),),
            r"layer 'l' stores blocks of 8 channels in 4 bits, the network's are 4 in 4",
        ),
        (
            (layer("l", Term("input", kernel(2, 3, 1, 1)), output=BlockFloat(4, 3)),),
            r"layer 'l' stores blocks of 4 channels in 3 bits, the network's are 4 in 4",
        ),
        (
            (layer("l", Term("input", kernel(2, 3, 8, 1))),),
            r"a \(8, 1\) kernel does not fit an input of \(7, 6\)",
        ),
    ],
)
def test_layers_must_fit(layers: tuple[Layer, ...], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        QuantizedNetwork(FixedPoint(0, BLOCK, ACT_BITS), (3, 7, 6), layers)


def test_images_must_fit():
    with pytest.raises(
        ValueError, match=r"^images must be \(N, \(3, 7, 6\)\), not \(2, 3, 6, 7\)$"
    ):
        network().compute(np.zeros((2, 3, 6, 7), np.float32))
    with pytest.raises(ValueError, match=r"^a non-finite pixel has no fixed-point code$"):
        network().compute(np.full((1, 3, 7, 6), np.nan, np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def saved(folder: Path) -> Path:
    path = folder / "saved.safetensors"
    network().save(path)
    return path


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path, kept: float):
    whole = saved.read_bytes()
    path = tmp_path / "net.safetensors"
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
    with pytest.raises(ValueError, match=r"^.*net\.safetensors is no safetensors file: [^\n]+$"):
        QuantizedNetwork.load(path)


def test_what_is_no_network_file_is_refused(tmp_path: Path):
    missing = tmp_path / "missing.safetensors"
    for path in (missing, tmp_path):
        with pytest.raises(ValueError, match=f"^no network file at {path}$"):
            QuantizedNetwork.load(path)
    text = tmp_path / "text"
    text.write_text("This is a text of more than eight characters.")
    with pytest.raises(ValueError, match=f"^{text} is no safetensors file: "):
        QuantizedNetwork.load(text)
    other = tmp_path / "other"
    save_file({"weight": np.zeros(3, np.float32)}, other)
    with pytest.raises(ValueError, match=f"^{other} holds no Shiftcore network$"):
        QuantizedNetwork.load(other)


def _rewrite(saved: Path, path: Path, change) -> None:
    """A copy of a network file whose description and tensors `change` has edited."""
    with safe_open(saved, framework="numpy") as file:
        description = json.loads(file.metadata()["shiftcore"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    text = change(description, arrays)
    save_file(arrays, path, metadata={"shiftcore": text or json.dumps(description)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a: d.update(format=1), r"has format 1, this version reads 4: quantize again"),
        (lambda d, a: d.pop("format"), r"is incomplete or damaged: 'format'"),
        (lambda d, a: d.pop("fold"), r"is incomplete or damaged: 'fold'"),
        (
            lambda d, a: d["fold"].update(kernel=[0, 3]),
            r"kernel, stride and dilation of a folded input must be at least 1, not \(0, 3\), .*",
        ),
        (lambda d, a: d.pop("layers"), r"is incomplete or damaged: 'layers'"),
        (lambda d, a: a.pop("stem.bias"), r"is incomplete or damaged: 'stem\.bias'"),
        (lambda d, a: a.pop("join.1.codes"), r"is incomplete or damaged: 'join\.1\.codes'"),
        (lambda d, a: d["input"].update(colour=1), r"is incomplete or damaged: .*'colour'"),
        (
            lambda d, a: a.update({"stem.0.codes": a["stem.0.codes"][:-1]}),
            r"162 codes of 3 bits do not fill 60 bytes",
        ),
        (
            lambda d, a: d["layers"][0]["terms"][0].update(scale="bf17"),
            r"is incomplete or damaged: 'bf17'",
        ),
        (
            lambda d, a: a["stem.0.scales"].fill(0x7F80),
            r"an all-ones exponent field is no bf16 scale",
        ),
        (
            lambda d, a: d["layers"][1]["terms"][0].update(source="later"),
            r"layer 'a\.b' reads 'later', which no earlier layer stores",
        ),
        (
            lambda d, a: d.update(accumulator="fixed8"),
            r"accumulator must be one of 'float32', 'fixed20' to 'fixed40', not 'fixed8'",
        ),
        (
            lambda d, a: d.update(accumulator="fixed24"),
            r"the exponent of 24-bit accumulators must be -126 to 104, not None",
        ),
        (lambda d, a: d.__delitem__("accumulator"), r"is incomplete or damaged: 'accumulator'"),
        (lambda d, a: d["layers"][0].pop("exponent"), r"is incomplete or damaged: 'exponent'"),
        (lambda d, a: "{", r"Expecting property name.*"),
        (lambda d, a: "[1]", r"is incomplete or damaged: .*"),
    ],
)
def test_a_damaged_file_is_refused(saved: Path, tmp_path: Path, change, message: str):
    path = tmp_path / "net.safetensors"
    _rewrite(saved, path, lambda d, a: text if isinstance(text := change(d, a), str) else None)
    with pytest.raises(ValueError, match=rf"^{path}: {message}$"):
        QuantizedNetwork.load(path)


def test_an_untouched_copy_is_not_refused(saved: Path, tmp_path: Path):
    _rewrite(saved, tmp_path / "copy", lambda d, a: None)
    shutil.copy(saved, tmp_path / "bytes")
    for name in ("copy", "bytes"):
        assert QuantizedNetwork.load(tmp_path / name).layers[1].terms[0].kernel.scale_format is FP16
