"""Block floating point activations in torch: the values of golden, straight-through gradients."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shiftcore.examples.digits import data, model
from shiftcore.examples.zoo.catalogue import CATALOGUE
from shiftcore.examples.zoo.resnet20 import ResNet20
from shiftcore.frontend.block_float import BLOCK_FLOAT
from shiftcore.golden.bfp import BlockFloat, Rounding
from shiftcore.quant.activation import (
    BlockFloatActivation,
    Requantized,
    block_float,
    requantized_modules,
)
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import as_graph
from shiftcore.quant.dsconv import DSConvConfig, quantize_, restore_
from shiftcore.quant.lower import lower
from shiftcore.tests.golden.bit_patterns import MODES, patterns, pixel
from shiftcore.tests.golden.exact import max_shift_mask


@given(patterns(), st.integers(1, 9), st.sampled_from(MODES))
def test_the_values_are_those_of_golden(words: list[int], block: int, mode: tuple):
    bits, signed, rounding = mode
    spec = BlockFloat(block, bits, signed, rounding)
    x = pixel(words)
    expected = spec.compute(x).values().astype(np.float32)
    found = block_float(torch.from_numpy(x), spec)
    assert np.array_equal(found.numpy(), expected)
    flat = block_float(torch.from_numpy(x[:, :, 0, 0]), spec)
    assert np.array_equal(flat.numpy(), expected[:, :, 0, 0])


@given(patterns(), st.integers(1, 9), st.sampled_from(MODES))
def test_max_shift_and_mask_on_the_bits_are_the_arithmetic(
    words: list[int], block: int, mode: tuple
):
    bits, signed, rounding = mode
    found = block_float(torch.from_numpy(pixel(words)), BlockFloat(block, bits, signed, rounding))
    for start in range(0, len(words), block):
        codes, field = max_shift_mask(words[start : start + block], bits, signed, rounding)
        unit = field - 127 - (bits - 2 if signed else bits - 1)
        values = [float(np.float32(np.ldexp(float(code), unit))) for code in codes]
        assert found[0, start : start + block, 0, 0].tolist() == values


@pytest.mark.parametrize("channels", [3, 8, 13])
def test_a_batch_with_a_ragged_block(channels: int):
    spec = BlockFloat(4, 5)
    x = np.random.default_rng(0).normal(size=(3, channels, 2, 5)).astype(np.float32)
    found = block_float(torch.from_numpy(x), spec)
    assert np.array_equal(found.numpy(), spec.compute(x).values().astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(value: float):
    with pytest.raises(ValueError, match=r"^a non-finite value has no block floating-point code$"):
        block_float(torch.full((1, 1, 1, 1), value), BlockFloat(4, 4))


def test_other_shapes_are_refused():
    message = r"^x must be \(N, C, H, W\) or \(N, C\), not \(2, 3, 4\)$"
    with pytest.raises(ValueError, match=message):
        block_float(torch.ones(2, 3, 4), BlockFloat(4, 4))


def test_mantissas_are_bounded_whatever_the_exponent():
    x = torch.tensor([2.0**100, 1.99, -(2.0**90)])[None, :, None, None]
    for value in (1.99, 100.0, 2.0**60):
        stored = block_float(torch.tensor([[value]]), BlockFloat(1, 4, signed=True))
        assert stored.item() <= value
        assert stored.item() > 0.8 * value
    assert block_float(x, BlockFloat(3, 4)).flatten().tolist() == [2.0**100, 0, 0]


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
@pytest.mark.parametrize("signed", [False, True])
def test_the_gradient_is_one(signed: bool, rounding: Rounding):
    # 1.99 saturates, 1e-9 becomes 0, -1 becomes 0 without a sign.
    x = torch.tensor([[1.99, 1.0, 1e-9, -1.0, 0.0]], requires_grad=True)
    y = block_float(x, BlockFloat(5, 4, signed, rounding))
    assert not torch.equal(x, y)
    weights = torch.arange(1.0, 6)
    (y * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weights[None])


def test_each_bit_adds_six_decibels():
    x = torch.relu(torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0)))
    noise = []
    for bits in range(3, 9):
        noise.append((block_float(x, BlockFloat(16, bits)) - x).square().sum().log10().item() * 10)
    steps = -np.diff(noise)
    assert steps == pytest.approx(np.full(5, 6.02), abs=0.3)


def test_each_bit_adds_six_decibels_to_real_activations():
    """Every tensor that the network of the digits stores, with and without a sign."""
    images = data.load()[0].x[:32]
    layers = lower(as_graph(model.load(), images))
    (tensors,) = float_tensors(layers, images)
    signs = set()
    for layer in layers[:-1]:
        x = tensors[layer.name]
        signs.add(signed := bool(x.min() < 0))
        specs = [BlockFloat(16, bits, signed) for bits in range(3, 9)]
        noise = [(block_float(x, spec) - x).square().sum().log10().item() * 10 for spec in specs]
        assert -np.diff(noise) == pytest.approx(np.full(5, 6.02), abs=0.5), layer.name
    assert signs == {False, True}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype):
    x = torch.rand(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    y = block_float(x.to(dtype), BlockFloat(4, 4))
    assert y.dtype is dtype
    assert torch.equal(y.float(), block_float(x.to(dtype).float(), BlockFloat(4, 4)))


def test_the_module_behaves_as_any():
    module = nn.Sequential(nn.ReLU(), BlockFloatActivation(BlockFloat(4, 3)))
    x = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(torch.compile(module, backend="aot_eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(module, (x,)).module()(x), expected)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    assert repr(module[1]) == "BlockFloatActivation(block=4, bits=3, unsigned, nearest)"


class Residual(nn.Module):
    """A stem with a pool, a block with a shortcut, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.main = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3, 1, 1)
        self.after = nn.ReLU()
        self.classifier = nn.Sequential(nn.Linear(8, 8), nn.ReLU6(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.norm(self.conv(x))))
        x = self.after(self.last(self.main(x)) + x)
        return self.classifier(x.mean((2, 3)))


PLACES = {
    "alexnet": [
        # ReLU and pool, twice; three ReLUs, the last with a pool; two hidden layers
        *("features.2", "features.5", "features.7", "features.9", "features.12"),
        *("classifier.2", "classifier.5"),
    ],
    "resnet50": [
        "pool",
        *(
            f"stages.{n}.{part}"
            for n in range(5)
            for part in ("main.0.2", "main.1.2", "relu")
        ),
    ],
    "mobilenetv2": [
        "features.0.2",
        "features.1.main.0.2",
        *(f"features.{n}.main.{part}.2" for n in range(2, 13) for part in (0, 1)),
        "features.13.2",
    ],
}  # fmt: skip


def test_placement_in_resnet20():
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    relus = [f"{block}.relu{number}" for block in blocks for number in (1, 2)]
    assert list(requantized_modules(ResNet20())) == ["relu", *relus]


@pytest.mark.parametrize("name", PLACES)
def test_placement(name: str):
    assert list(requantized_modules(CATALOGUE[name].small())) == PLACES[name]


def test_placement_in_a_residual_block():
    model = Residual().eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = [name for name, _ in model.named_modules()]
    expected = model(x)
    assert requantized_modules(model) == ("pool", "main.2", "after", "classifier.1")
    quantize_(model, DSConvConfig(8, 4, act_bits=4), lambda module, name: False)
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, BlockFloatActivation):
            module.register_forward_hook(
                lambda module, args, result, name=name: inputs.update({name: (args[0], result)})
            )
    assert not torch.equal(model(x), expected)
    assert list(inputs) == ["pool.1", "main.2.1", "after.1", "classifier.1.1"]
    for before, after in inputs.values():
        assert before.min() >= 0
        assert torch.equal(after, block_float(before, BlockFloat(4, 4)))
    restore_(model)
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(model(x), expected)


class Reused(nn.Module):
    """One ReLU in three places, one of them with a pool; the last layer is what a test wants."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), relu, nn.Conv2d(4, 4, 1), relu)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x)))


def members(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every place of a network and what stands there."""
    return list(model.named_modules(remove_duplicate=False))


def test_a_relu_in_several_places_is_one_again_afterwards():
    model = Reused(nn.Identity())
    before = members(model)
    assert requantized_modules(model) == ("first.2", "second.1", "second.3")
    assert members(model) == before
    quantize_(model, DSConvConfig(act_bits=4))
    assert [name for name, module in members(model) if isinstance(module, Requantized)] == [
        "first.2",
        "second.1",
        "second.3",
    ]
    restore_(model)
    assert members(model) == before


def test_an_error_leaves_the_model_as_it_was():
    model = Reused(Calls())
    before = members(model)
    for call in (requantized_modules, lambda x: quantize_(x, DSConvConfig(act_bits=4))):
        with pytest.raises(ValueError, match=r"^layer 'last': a ReLU is a function call; .*"):
            call(model)
        assert members(model) == before


def test_a_clamp_from_0_is_a_relu():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(0, 6), nn.Conv2d(4, 4, 1), nn.ReLU6())
    assert requantized_modules(model) == ("1", "3")


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_operator_is_registered_as_torch_wants_it(form: torch.memory_format):
    x = torch.randn(2, 6, 4, 5).to(memory_format=form).requires_grad_()
    torch.library.opcheck(BLOCK_FLOAT, (x, 4, 4, False, "nearest"))
    y = block_float(x, BlockFloat(4, 4))
    assert y.stride() == x.stride()


def test_a_pool_that_does_not_read_the_relu_alone_is_no_place():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.other, self.pool = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.relu(x)
            return self.pool(self.other(x)) + self.pool(x) + y[:, :, ::2, ::2]

    assert requantized_modules(Shared()) == ("relu", "other")


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Calls()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class Calls(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Functional(),
            r"layer 'block': a ReLU is a function call; make it a module, nn\.ReLU\(\), so that an "
            r"activation can follow it",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.SiLU(), nn.ReLU()),
            r"layer '1': block floating point follows ReLUs and clamps from 0, not SiLU",
        ),
        (
            nn.Sequential(nn.ReLU(), nn.Hardtanh(-1, 1)),
            r"layer '1': block floating point follows ReLUs and clamps from 0, not Hardtanh",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()),
            r"activations cannot be placed: the network has no ReLU",
        ),
        (Branches(), r"activations cannot be placed: torch\.fx cannot trace the network \(.*\)"),
    ],
)
def test_networks_that_hide_their_relus_are_refused(model: nn.Module, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        quantize_(model, DSConvConfig(act_bits=4))
