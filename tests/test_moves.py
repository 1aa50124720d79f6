"""Moving data: whatever the spelling, the graph computes what the module does."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shiftcore.frontend.archive import read
from shiftcore.frontend.arrange import ZERO, Memory, arrange
from shiftcore.frontend.call import UnsupportedLayer
from shiftcore.frontend.coverage import survey
from shiftcore.frontend.graph import Arrange, Graph, Linear
from shiftcore.golden.compare import different_tensors
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.layout import Axis, Window, window
from shiftcore.quant.lower import lower


class Between(nn.Module):
    """A convolution, a function, and whatever fits after it."""

    def __init__(self, function: Callable, after: nn.Module) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, padding=1)
        self.function, self.after = function, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.function(self.before(x)))


def interleaved(x: torch.Tensor) -> torch.Tensor:
    return x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def scattered(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(x.shape[0], 12, *x.shape[2:])
    out[:, 3:11] = x
    return out


def swap_halves(x: torch.Tensor) -> torch.Tensor:
    first, second = x.split([3, 5], 1)
    return torch.cat((second, first), 1)


def unbound(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unflatten(1, (2, 4)).unbind(1)
    return torch.cat([b, a, b], 1)


def focus(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2]], 1)


def stacked(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, :4], x[:, 4:]], 2).flatten(1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    y = torch.relu(x.permute(0, 2, 3, 1))
    return functional.linear(y, torch.eye(8)[:5]).permute(0, 3, 1, 2)


def padded_sum(x: torch.Tensor) -> torch.Tensor:
    y = functional.pad(x[:, ::2, ::2, ::2], (0, 0, 0, 0, 2, 2))
    return sum([y, functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2)])  # pyright: ignore


SPATIAL = {
    "identity": lambda x: nn.Identity()(x.contiguous().clone().detach()),
    "shuffle": interleaved,
    "channel_shuffle": nn.ChannelShuffle(4),
    "permute": lambda x: x.reshape(-1, 4, 2, 6, 6).permute(0, 2, 1, 3, 4).flatten(1, 2),
    "slice": lambda x: x[:, 2:7],
    "negative_slice": lambda x: x[:, -3:],
    "steps": lambda x: x[:, ::3],
    "index": lambda x: x[:, [4, 0, 7]],
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([1, 1, 5])),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "select": lambda x: x.select(1, 3).unsqueeze(1),
    "split": swap_halves,
    "unbind": unbound,
    "stack": stacked,
    "channel_pad": lambda x: functional.pad(x, (0, 0, 0, 0, 3, 2)),
    "zeros": lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, 6, 6)], 1),
    "in_place": scattered,
    "subsample": lambda x: x[:, :, ::2, 1::2],
    "crop": lambda x: x[:, :, 1:-1, 2:],
    "crop_module": nn.ZeroPad2d((-1, 2, 0, -2)),
    "pad": lambda x: functional.pad(x, (0, 1, 2, 0)),
    "pad_and_pool": lambda x: functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2),
    "pad_and_average": lambda x: functional.avg_pool2d(functional.pad(x, (0, 1, 0, 1)), 2),
    "padded_clamp": lambda x: functional.pad(x, (1, 1, 1, 1, 1, 1)).clamp(0.1, 0.3),
    "pad_and_relu": lambda x: torch.relu(functional.pad(x, (1, 0, 0, 1, 1, 0))),
    "space_to_depth": nn.PixelUnshuffle(2),
    "focus": focus,
    "channels_last": channels_last,
    "option_a": padded_sum,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "self_concat": lambda x: torch.relu(torch.cat([x, x], 1)),
    "crop_then_pad": lambda x: functional.pad(functional.relu(x[:, :, 1:-1]), (0, 0, 1, 1)),
    "crop_then_pad_zeros": lambda x: functional.pad(x[:, :, 1:-1], (0, 0, 2, 1)),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "adaptive_max": nn.AdaptiveMaxPool2d((2, 3)),
    "divisor": nn.AvgPool2d(2, divisor_override=3),
    "ceil": nn.MaxPool2d(4, 3, 1, ceil_mode=True),
    "ceil_average": nn.AvgPool2d(2, 2, ceil_mode=True),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "minimum": lambda x: torch.minimum(x, torch.tensor(0.25)),
    "chunks": lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1],
    "iadd": lambda x: torch.relu_(x.clone().add_(x)),
}

FLAT = {
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "global": lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "squeeze": lambda x: functional.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "mean": lambda x: x.mean((2, 3)),
    "two_means": lambda x: x.mean(3).mean(2),
    "other_means": lambda x: x.mean(2).mean(-1),
    "flat_mean": lambda x: x.flatten(2).mean(2),
    "channels_last_mean": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "sum": lambda x: x.sum((-2, -1)),
    "amax": lambda x: x.amax((2, 3)),
    "channels_last_flatten": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "two_pools": lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1),
    "two_images": lambda x: torch.cat([x[:, :3].flatten(1), x.relu()[:, 2:].flatten(1)], 1),
    "relu_after": lambda x: torch.relu(x.flatten(1)),
    "enlarged": lambda x: functional.adaptive_avg_pool2d(
        functional.adaptive_avg_pool2d(x, 2), 4
    ).flatten(1),
    "dropped": lambda x: functional.dropout(x, training=False).flatten(1)[:, 5:],
}


def check(model: nn.Module, images: int, dynamic: bool) -> Graph:
    """Float layers compute what `model` does, and hardware mode what golden does."""
    x = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    graph = read(torch.export.export(model, (x[:images],), dynamic_shapes=shapes))
    with torch.inference_mode():
        expected = model(x)
    layers = lower(graph)
    (tensors,) = float_tensors(layers, x.numpy())
    # Folding reorders float32 operations; this compares structure, not rounding.
    result = tensors[layers[-1].name].reshape(expected.shape)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    network = quantize(graph, x.numpy())
    in_torch, golden = (n.compute(x.numpy()) for n in (HardwareNetwork(network), network))
    assert not different_tensors(in_torch, golden)
    return graph


def batch(name: str, names: dict) -> tuple[int, bool]:
    """Images, and whether their number is dynamic: all kinds, in turn."""
    return [(1, False), (2, False), (2, True)][list(names).index(name) % 3]


@pytest.mark.parametrize("name", SPATIAL)
def test_moves_between_convolutions(name: str) -> None:
    images, dynamic = batch(name, SPATIAL)
    torch.manual_seed(0)
    channels = SPATIAL[name](torch.zeros(3, 8, 6, 6)).shape[1]
    check(Between(SPATIAL[name], nn.Conv2d(channels, 4, 2)).eval(), images, dynamic)


@pytest.mark.parametrize("name", ["shuffle", "subsample", "zeros", "index_select"])
@pytest.mark.parametrize("after", ["depthwise", "grouped", "max", "average", "norm", "result"])
def test_moves_before_other_layers(name: str, after: str) -> None:
    torch.manual_seed(0)
    channels = SPATIAL[name](torch.zeros(3, 8, 6, 6)).shape[1]
    norm = nn.BatchNorm2d(channels)
    norm.running_mean, norm.running_var = torch.randn(channels), torch.rand(channels) + 0.5
    layer = {
        "depthwise": nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels),
        "grouped": nn.Conv2d(channels, channels, 1, groups=2 if channels % 2 == 0 else 1),
        "max": nn.MaxPool2d(2),
        "average": nn.AvgPool2d(2),
        "norm": norm,
        "result": nn.Identity(),
    }[after]
    check(Between(SPATIAL[name], layer).eval(), 2, True)


@pytest.mark.parametrize("name", FLAT)
def test_moves_before_a_classifier(name: str) -> None:
    images, dynamic = batch(name, FLAT)
    torch.manual_seed(0)
    features = FLAT[name](torch.zeros(3, 8, 6, 6)).shape[1]
    check(Between(FLAT[name], nn.Linear(features, 4)).eval(), images, dynamic)


def test_a_squeeze_of_everything_may_take_the_image_along() -> None:
    pool = nn.AdaptiveAvgPool2d(1)
    model = Between(lambda x: pool(x).squeeze(), nn.Linear(8, 4)).eval()
    graph = read(model, torch.zeros(1, 3, 6, 6))
    assert graph.shapes["output"] == (4,)


@pytest.mark.parametrize("after", ["images", "features"])
@pytest.mark.parametrize(
    "move",
    [
        lambda y: y.view(2, 4, 6, 6).transpose(0, 1),
        lambda y: y.squeeze().flip(0),
        lambda y: y.squeeze().flip(-1)[1:].flip(-1),
        lambda y: y[0].roll(3, 0),
        lambda y: y.squeeze(0).transpose(0, 1).transpose(1, 0),
        lambda y: functional.max_pool2d(y[0], 2),
        lambda y: torch.relu(y.flatten()).view(4, 72).t().reshape(72, 4).t(),
        lambda y: functional.linear(y[0].permute(1, 2, 0), torch.eye(8).roll(1, 0)).permute(
            2, 0, 1
        ),
    ],
)
def test_one_image_may_lose_its_axis(move: Callable, after: str) -> None:
    """Dimensions are those of torch, whether or not the image has one of its own."""

    def again(x: torch.Tensor) -> torch.Tensor:
        y = move(x).contiguous()
        return y.view(1, -1, *y.shape[-2:]) if after == "images" and y.dim() > 2 else y.view(1, -1)

    torch.manual_seed(0)
    shape = again(torch.zeros(1, 8, 6, 6)).shape
    layer = nn.Conv2d(shape[1], 4, 1) if len(shape) == 4 else nn.Linear(shape[1], 4)
    model = Between(again, layer).eval()
    x = torch.randn(1, 3, 6, 6)
    compare(read(model, x), model, x)


def compare(graph: Graph, model: nn.Module, x: torch.Tensor) -> None:
    """Float layers compute what `model` does."""
    with torch.inference_mode():
        expected = model(x.clone())
    layers = lower(graph)
    (tensors,) = float_tensors(layers, x.numpy())
    # Folding reorders float32 operations; this compares structure, not rounding.
    result = tensors[layers[-1].name].reshape(expected.shape)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "drop",
    [
        nn.Dropout().eval(),
        nn.Dropout2d().eval(),
        nn.AlphaDropout().eval(),
        nn.Sequential(nn.Dropout(), nn.FeatureAlphaDropout()).eval(),
        lambda y: functional.dropout(y, 0.0, training=True),
        lambda y: torch.ops.aten.dropout.default(y, p=0.5, train=False),
    ],
)
def test_a_dropout_that_drops_nothing_is_its_input(drop: Callable) -> None:
    """Who writes to its result in place writes to its input."""
    model = Between(lambda y: functional.relu_(drop(y)) + y, nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,))
    text = str(program.graph)
    compare(read(program), model, x)
    assert str(program.graph) == text  # what was given stays as it was


NUMBERS = {
    "images_roll": lambda y: y.roll(2, 0),
    "channels_roll": lambda y: y.roll(y.shape[0], 1),
    "clamp": lambda y: y.clamp(0, y.shape[0]),
    "pad_images": lambda y: functional.pad(y, (0, 0, 0, 0, 0, 0, 0, y.shape[0] - 2)),
    "pad": lambda y: functional.pad(y, (0, y.shape[0] - 2)),
    "first": lambda y: y[:2],
    "last": lambda y: y[y.shape[0] - 2 :],
    "stack": lambda y: torch.stack([y[0], y[1]]).mean((2, 3)),
    "ends": lambda y: torch.cat([y[:1], y[-1:]]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_depends_on_the_number_of_images_is_refused(name: str) -> None:
    """All are something else, or the identity, of the two images of the export."""
    model = Between(NUMBERS[name], nn.Identity()).eval()
    batch = torch.export.Dim("batch", min=2)
    example = torch.randn(4, 3, 6, 6)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    with pytest.raises(UnsupportedLayer):
        read(program)
    found = survey(program)
    assert found.graph is None
    assert len(found.unsupported) == 1


def test_a_batch_may_have_a_largest_size() -> None:
    model = Between(lambda y: y[:, 1:5], nn.Conv2d(4, 4, 1)).eval()
    batch = torch.export.Dim("batch", min=2, max=4)
    x = torch.randn(3, 3, 6, 6)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    compare(read(program), model, x)


@pytest.mark.parametrize("shape", [(1, 4, 4), (8, 4, 4)])
def test_pools_of_one_image_without_its_axis(shape: tuple[int, ...]) -> None:
    x = torch.randn(1, 3, 6, 6)
    for function in (
        lambda y: functional.adaptive_avg_pool2d(y[0, : shape[0]], 2)[None],
        lambda y: functional.adaptive_max_pool2d(y[0, : shape[0]], (3, 6))[None],
        lambda y: functional.max_pool2d(y[0, : shape[0]], 2)[None],
    ):
        model = Between(function, nn.Conv2d(shape[0], 2, 1)).eval()
        compare(read(model, x), model, x)


@pytest.mark.parametrize("name", ["amax", "sum", "mean"])
def test_a_reduction_of_a_number_is_refused(name: str) -> None:
    options = () if name == "amax" else (0,)
    model = Between(lambda y: getattr(y.flatten()[3], name)(*options), nn.Identity()).eval()
    with pytest.raises(UnsupportedLayer, match=name):
        read(model, torch.randn(1, 3, 6, 6))


def test_the_result_may_be_a_dropout() -> None:
    model = Between(nn.Dropout().eval(), nn.Dropout()).eval()
    graph = read(model, torch.randn(2, 3, 6, 6))
    assert [node.name for node in graph.nodes] == ["input", "before", "output"]


def test_an_input_may_be_written_to() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(2, 3, 6, 6)
    compare(read(model, x), model, x)
    compare(read(model[0], x), model[0], x)


@pytest.mark.parametrize("images", [1, 2])
def test_a_move_and_its_reader_have_names_of_their_own(images: int) -> None:
    x = torch.randn(images, 3, 6, 6)
    pool = functional.adaptive_avg_pool2d
    for function, after in (
        (lambda y: functional.linear(y[:, :, 1:-1].permute(0, 2, 3, 1), torch.eye(8)).flatten(1),
         nn.Linear(192, 4)),
        (lambda y: pool(pool(y[:, 1:5], 6), 3), nn.Conv2d(4, 4, 1)),
    ):  # fmt: skip
        model = Between(function, after).eval()
        compare(read(model, x), model, x)


def test_zeros_of_any_type_may_be_joined() -> None:
    zeros = torch.zeros(1, 1, 6, 6, dtype=torch.int64)
    model = Between(lambda y: torch.cat([zeros, y, zeros], 1), nn.Conv2d(10, 4, 1)).eval()
    x = torch.randn(1, 3, 6, 6)
    compare(read(model, x), model, x)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_bias_for_every_image(rows: int) -> None:
    bias, weight = torch.randn(1, 4).expand(rows, 4).contiguous(), torch.randn(288, 4)
    model = Between(lambda y: torch.addmm(bias, y.flatten(1), weight), nn.Identity()).eval()
    x = torch.randn(2, 3, 6, 6)
    compare(read(model, x), model, x)


def test_planes_of_zeros_and_of_their_neighbour_are_told_apart() -> None:
    """One before a channel's first address is ZERO in the first channel only."""
    memory = Memory(1)
    memory.allocate("x", (2, 2, 2))
    first = np.array([[[1, 0], [ZERO, ZERO]], [[5, 4], [ZERO, ZERO]], [[5, 4], [3, ZERO]]])
    assert arrange("y", np.array([[[ZERO, 0], [ZERO, 2]], [[3, 4], [3, 6]]]), memory) is None
    assert arrange("y", first, memory) is None


def test_what_only_moves_whole_tensors_leaves_no_node() -> None:
    model = Between(lambda x: interleaved(x).view(x.shape[0], 4, 2, 6, 6).transpose(1, 2)
                    .flatten(1, 2), nn.Conv2d(8, 4, 1)).eval()  # fmt: skip
    names = [node.name for node in read(model, torch.zeros(2, 3, 6, 6)).nodes]
    assert names == ["input", "before", "after", "output"]


def test_concatenations_are_terms_not_layers() -> None:
    model = Between(swap_halves, nn.Conv2d(8, 4, 3)).eval()
    graph = check(model, 2, False)
    (move,) = (node for node in graph.nodes if isinstance(node, Arrange))
    assert move.inputs == ("before",)
    assert move.channel.tolist() == [3, 4, 5, 6, 7, 0, 1, 2]
    layers = lower(graph)
    assert [layer.name for layer in layers] == ["before", "after"]
    weight = model.after.get_parameter("weight").detach().numpy()
    assert np.array_equal(layers[1].terms[0].weight[:, move.channel], weight)


def test_features_in_another_order_permute_the_weights() -> None:
    model = Between(FLAT["channels_last_flatten"], nn.Linear(288, 4)).eval()
    (linear,) = (n for n in check(model, 2, False).nodes if isinstance(n, Linear))
    weight = model.after.get_parameter("weight").detach().numpy()
    expected = weight.reshape(4, 6, 6, 8).transpose(0, 3, 1, 2).reshape(4, 288)
    assert np.array_equal(linear.weight, expected)


def test_windows_on_subsampled_pixels() -> None:
    """Every window that `window` finds sees the same pixels; where it finds none, there is none."""
    random = np.random.default_rng(0)
    found = 0
    for _ in range(3000):
        extent, axis = int(random.integers(1, 9)), Axis(*random.integers((-2, 1), (4, 4)).tolist())
        size = int(random.integers(1, 8))
        on = Window(*random.integers((1, 1, 0, 0, 1), (4, 4, 3, 3, 3)).tolist())
        if on.count(size) < 1:
            continue
        pixels = np.arange(1, extent + 1)

        def read(values: np.ndarray, w: Window) -> list[list[int]]:
            return [
                [
                    int(values[at]) if 0 <= at < len(values) else 0
                    for at in range(i * w.stride - w.before, 99, w.dilation)
                ][: w.kernel]
                for i in range(w.count(len(values)))
            ]

        at = axis.offset + axis.stride * np.arange(size)
        inside = (at >= 0) & (at < extent)
        seen = np.where(inside, pixels[np.clip(at, 0, extent - 1)], 0)
        moved = window(on, axis, size, extent)
        if moved is not None:
            found += 1
            assert read(pixels, moved) == read(seen, on)
    assert found > 500
