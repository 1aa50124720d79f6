"""Memory and multiplications: the formulas, the file, and what is really multiplied."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from shiftcore.benchmarks.module_shapes import module_kernels
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.network import estimate
from shiftcore.examples.digits import data, model
from shiftcore.examples.zoo.catalogue import CATALOGUE
from shiftcore.examples.zoo.cifar import cifar10
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.frontend.archive import read
from shiftcore.golden import layers as golden_layers
from shiftcore.golden.bfp import BlockTensor
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import BF16, FP16, SCALE_FORMATS
from shiftcore.golden.layers import Step
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.quant.account_report import write_account
from shiftcore.quant.accounting import (
    CONVENTIONS,
    CodedKernel,
    KernelShape,
    account_file,
    account_graph,
    account_network,
    file_memory,
    graph_kernels,
    largest_int_time,
    speedup,
    total,
)
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import DSConvConfig, quantize_
from shiftcore.tests.compiler.random_networks import random_config, random_network
from shiftcore.tests.networks import CONFIG


def digits(config: QuantConfig) -> QuantizedNetwork:
    training, _ = data.load()
    return quantize(model.load(), training.x[:32], config)


def random_networks() -> list[tuple[QuantizedNetwork, HardwareConfig]]:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        config = random_config(rng)
        found.append((random_network(rng, config), config))
    return found


@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(1, 6), st.integers(1, 40)
)
def test_blocks_are_those_of_a_quantized_kernel(
    filters: int, depth: int, taps: int, groups: int, block: int
) -> None:
    weight = np.ones((filters * groups, depth, taps, 1))
    kernel = VariableQuantizedKernel.quantize(weight, weight_bits=2, block=block, groups=groups)
    shape = KernelShape.of("k", kernel, pixels=6)
    assert shape.weights == weight.size
    assert shape.macs == 6 * weight.size
    assert shape.scales(block) == kernel.scales.size
    assert shape.products(block) == np.count_nonzero(kernel.scales)
    assert shape.float_multiplies(block) == 6 * shape.products(block)
    assert shape.blocks(block) == weight.size // depth * math.ceil(depth / block)
    assert shape.blocks(block) <= shape.products(block) <= shape.scales(block)
    if groups == 1 or depth % block == 0 or block % depth == 0:
        assert shape.blocks(block) == shape.scales(block)


def test_blocks_of_groups_that_cross_those_of_the_activations() -> None:
    # Three groups of 3 channels: 0-2 | 3, 4-5 | 6-7, 8 in blocks of 4.
    shape = KernelShape("k", 6, 3, taps=5, groups=3)
    assert shape.blocks(4) == 6 * 5
    assert shape.products(4) == 2 * 5 * (1 + 2 + 2)
    assert shape.scales(4) == 6 * 5 * 2


def test_the_conventions_are_the_papers_formulas() -> None:
    for depth, block, bits, taps in ((256, 128, 6, 9), (100, 32, 3, 1), (3, 128, 2, 121)):
        kernel = [KernelShape("k", 64, depth, taps)]
        count = math.ceil(depth / block)
        by = {name: c.ratio(kernel, bits, block) for name, c in CONVENTIONS.items()}
        exact = {
            "v1": bits / 32 + 2 * count / depth + 2 / (depth * taps),
            "v1_no_cds": bits / 32 + 2 * count / depth,
            "fp32": bits / 32 + count / depth,
            "fp16": bits / 32 + count / depth / 2,
            "codes": bits / 32,
        }
        size = 32 * kernel[0].weights  # ratios of whole numbers of bits
        assert {name: round(size * x) for name, x in by.items()} == {
            name: round(size * x) for name, x in exact.items()
        }


def test_speed() -> None:
    layer = [KernelShape("k", 7, 256, taps=9, pixels=5)]
    for block, ratio, eta, expected in (
        (128, 2, 0, "1.97"), (128, 4, 0, "3.88"), (128, 10, 0, "9.28"), (128, 2, 1, "0.99"),
        (128, 4, 1, "1.97"), (128, 10, 1, "4.81"), (8, 2, 0, "1.60"), (8, 4, 0, "2.67"),
        (8, 10, 0, "4.44"), (8, math.inf, 0, "8.00"), (1, math.inf, 5, "1.00"),
    ):  # fmt: skip
        assert f"{speedup(layer, block, ratio, eta):.2f}" == expected
    for block, eta in ((128, 0), (8, 1), (8, 0.25)):
        limit = largest_int_time(256, block, eta)
        assert speedup(layer, block, 1 / (limit * 1.001), eta) < 1
        assert speedup(layer, block, 1 / (limit * 0.999), eta) > 1


def test_the_largest_int_time_of_a_layer_is_the_formula() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(100, 6, 3), torch.nn.Conv2d(6, 6, 3, groups=6))
    wide, depthwise = account_graph(read(network.eval(), torch.zeros(1, 100, 9, 9)), 4, 32, BF16)
    for eta in (0, 0.25, 3):
        limit = wide.largest_int_time(eta)
        # Quotients of exact numbers: the same rounding of the same one.
        assert limit == largest_int_time(100, 32, eta)
        assert limit is not None
        assert wide.speedup(1 / limit, eta) == pytest.approx(1, rel=1e-15)
    assert depthwise.largest_int_time() == 0  # one block product a MAC


def check_file(network: QuantizedNetwork, path: Path) -> None:
    """The bytes of the file's tensors are what the formulas say, and nothing else is in it."""
    network.save(path)
    rows = account_network(network)
    counted = file_memory(path)
    assert {row.name: row.memory for row in rows} == counted
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + sum(memory.bytes for memory in counted.values())
    assert account_file(path) == rows
    for row, layer in zip(rows, network.layers, strict=True):
        kernels = [term.kernel for term in layer.terms]
        assert row.memory.codes == sum(
            math.ceil(kernel.codes.size * kernel.weight_bits / 8) for kernel in kernels
        )
        scales = sum(k.scales.size * k.scale_format.storage_bits for k in kernels)
        assert 8 * row.memory.scales == scales
        assert row.memory.biases == 4 * layer.bias.size


def test_the_file_of_random_networks(tmp_path: Path) -> None:
    odd = 0
    for network, _ in random_networks():
        check_file(network, tmp_path / "net.safetensors")
        kernels = [term.kernel for layer in network.layers for term in layer.terms]
        odd += sum(kernel.codes.size * kernel.weight_bits % 8 != 0 for kernel in kernels)
    assert odd > 10  # the last byte is not full


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_file_of_the_digits(tmp_path: Path, bits: int) -> None:
    scale = list(SCALE_FORMATS)[bits % len(SCALE_FORMATS)]
    check_file(digits(QuantConfig(bits, 4, 12, scale)), tmp_path / "net.safetensors")


def test_a_file_with_something_else(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    digits(QuantConfig()).save(path)
    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors | {"extra": np.zeros(3)}, path, metadata)
    with pytest.raises(
        ValueError, match=r"net\.safetensors holds 'extra', which is no tensor of a"
    ):
        account_file(path)


def test_the_file_of_resnet20(data_folder: Path, tmp_path: Path) -> None:
    images, _ = cifar10(data_folder, 4, "train-20k")
    network = quantize(resnet20(data_folder), images, QuantConfig(3, 4, 32, "fp16"))
    check_file(network, tmp_path / "net.safetensors")
    every = total(account_network(network))
    assert every.weights == 268_336
    assert every.macs == 40_551_040


def counted_products(network: QuantizedNetwork, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Floating-point multiplications that golden's layers make for an image."""
    counts = []
    product = golden_layers.block_product

    def counting(*operands: Any) -> np.ndarray:
        result = product(*operands)
        counts[-1] += result.size
        return result

    image = np.random.default_rng(0).normal(size=(1, *network.input_shape)).astype(np.float32)
    stored = {"input": network.encode_input(image)}
    with monkeypatch.context() as patch:
        patch.setattr(golden_layers, "block_product", counting)
        for layer in network.layers:
            counts.append(0)
            result = layer.compute(stored)
            if isinstance(result, BlockTensor):
                stored[layer.name] = result
    return dict(zip((layer.name for layer in network.layers), counts, strict=True))


def products_of(network: QuantizedNetwork, steps: Iterable[tuple[str, Step]]) -> Counter[str]:
    """Block products that steps, each with the name of its layer, stand for."""
    sizes, products = network.sizes(), Counter[str]()
    for name, step in steps:
        products[name] += len(step.codes) * math.prod(sizes[name])
    return products


def test_the_integer_path_multiplies_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula counts every step; of a sum, golden leaves out those without any code."""
    grouped = skipped = 0
    networks = [network for network, _ in random_networks()]
    for network in [*networks, digits(QuantConfig(block=12))]:
        planes = dict.fromkeys(network.sizes(), 1) | {"input": network.input.planes}
        every = [
            (layer.name, step)
            for layer in network.layers
            for term in layer.terms
            for step in golden_layers.steps(term, planes[term.source])
        ]
        done = [(layer.name, step) for layer in network.layers for _, step in layer.steps(planes)]
        rows = {row.name: row.float_multiplies for row in account_network(network)}
        assert products_of(network, every) == rows
        assert products_of(network, done) == counted_products(network, monkeypatch)
        skipped += len(every) - len(done)
        grouped += sum(
            1 < term.kernel.groups < term.kernel.in_channels
            for layer in network.layers
            for term in layer.terms
        )
    assert len(every) == len(done)  # of the digits, which are trained: all blocks have codes
    assert grouped > 5
    assert skipped > 100


def test_the_array_multiplies_as_often() -> None:
    """A column multiplies once for each pixel that the array is given."""
    network = digits(QuantConfig())
    found = estimate(compile_network(network, CONFIG), network.macs()).layers
    for row, layer in zip(account_network(network), network.layers, strict=True):
        filters, pixels = layer.bias.size, row.kernels[0].shape.pixels
        used = -(-filters // CONFIG.cols) * CONFIG.cols
        # Columns without a filter multiply too, and the last stored block is filled up with zeros.
        filled = used if layer.output is None else -(-filters // network.block) * network.block
        expected = row.float_multiplies * used // filters + (filled - used) * pixels
        assert found[row.name].pixels * CONFIG.cols == expected


def test_module_and_graph_have_the_same_kernels() -> None:
    entry = CATALOGUE["mobilenetv2"]
    network = entry.small().eval()
    shape = (3, entry.size, entry.size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = module_kernels(network, shape)
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert found == graph_kernels(read(network, torch.zeros(1, *shape)))


def test_a_module_that_is_used_twice_counts_its_weights_once() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    (kernel,) = module_kernels(Twice(), (4, 5, 6))
    assert kernel == KernelShape("conv", 4, 4, taps=9, pixels=60)


def test_a_model_is_accounted_as_its_network_will_be() -> None:
    """Where quantization folds no image, adds no pool and joins no layers."""
    layers = torch.nn.Conv2d(20, 6, 1), torch.nn.ReLU(), torch.nn.Conv2d(6, 10, 3, groups=2)
    network = torch.nn.Sequential(*layers).eval()
    images = np.random.default_rng(0).normal(size=(2, 20, 7, 8)).astype(np.float32)
    graph = read(network, torch.from_numpy(images[:1]))
    expected = account_network(quantize(graph, images, QuantConfig(3, 8, 8, "fp16")))
    found = account_graph(graph, 3, 8, FP16)
    assert found == expected


def test_layers_of_codes_are_accounted_with_their_own_bits() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(20, 6, 1), torch.nn.Conv2d(6, 10, 3)).eval()
    quantize_(network, DSConvConfig(3, 8), lambda _, name: name == "0")
    images = np.random.default_rng(0).normal(size=(2, 20, 7, 8)).astype(np.float32)
    graph = read(network, torch.from_numpy(images[:1]))
    found = account_graph(graph, 5, 8, FP16)
    assert [row.kernels[0].weight_bits for row in found] == [3, 5]
    assert found == account_network(quantize(graph, images, QuantConfig(5, 8, 8, "fp16")))


def test_total() -> None:
    rows = account_network(digits(QuantConfig()))
    every = total(rows)
    pools = [row for row in rows if not row.weights]
    assert [row.name for row in pools] == ["maxpool", "avgpool"]
    for row in pools:
        figures = (row.bits_per_weight, row.percent, row.percent_by(CONVENTIONS["v1"]))
        assert (*figures, row.speedup(), row.float_bytes) == (None, None, None, None, 0)
    # The folded network: the weights, and a bias for each of their filters.
    assert every.float_bytes == 4 * (39_248 + 16 + 24 + 4 * 32 + 10)
    assert every.memory.bytes == sum(row.memory.bytes for row in rows)
    assert every.float_multiplies == sum(row.float_multiplies for row in rows)
    assert [row.largest_int_time() for row in pools] == [None, None]
    limit = every.largest_int_time(0.5)
    assert limit == (every.macs - every.float_multiplies) / (1.5 * every.int_multiplies)
    assert every.speedup(4) == every.macs / (every.int_multiplies / 4 + every.float_multiplies)
    kernels = [kernel for row in rows if row.weights for kernel in row.kernels]
    convention = CONVENTIONS["v1"]
    bits = sum(convention.bits(kernel.shape, 4, 16) for kernel in kernels)
    assert every.percent_by(convention) == 100 * bits / (32 * every.weights)
    assert every.percent_by(convention, 8) > every.percent_by(convention)


def test_the_same_layers_give_the_same_files(tmp_path: Path) -> None:
    rows = account_network(digits(QuantConfig(block=8)))
    for folder in ("a", "b"):
        write_account(tmp_path / folder, "digits", rows)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["bits.svg", "report.md", "size.svg"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = [CodedKernel(KernelShape("k", 8, 8), 2, 8, BF16)]
    assert other[0].memory.bytes == 8 * 8 * 2 // 8 + 8 * 2
