"""Exported programs to graphs: what is carried over, and how the rest is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shiftcore.frontend.archive import read
from shiftcore.frontend.call import UnsupportedLayer
from shiftcore.frontend.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Output,
    ReLU,
)

# Torch says once that an even kernel with padding="same" is slow.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

EXAMPLE = torch.zeros(2, 4, 8, 8)


class Calling(nn.Module):
    """A module whose forward is a function of itself and x."""

    def __init__(self, forward, **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def everything() -> nn.Module:
    def forward(self, x):
        x = self.norm(self.conv(x)).relu_()
        x = self.block(x)
        x = self.drop(self.average(self.pool(x)))
        return self.linear(torch.flatten(x, 1))

    def block(self, x):
        y = self.conv(x)
        y += x
        return self.act(y)

    torch.manual_seed(0)
    residual = Calling(
        block, conv=nn.Conv2d(6, 6, (3, 2), padding="same", groups=2), act=nn.ReLU(inplace=True)
    )
    return Calling(
        forward,
        conv=nn.Conv2d(4, 6, 3, (2, 1), (1, 2), bias=False),
        norm=nn.BatchNorm2d(6),
        block=residual,
        pool=nn.MaxPool2d((2, 3), 2, (0, 1), dilation=(1, 2)),
        average=nn.AvgPool2d(2, 1, 1),
        drop=nn.Dropout(),
        linear=nn.Linear(6 * 3 * 5, 5),
    ).eval()


def assert_same_graphs(a: Graph, b: Graph) -> None:
    assert [type(node) for node in a.nodes] == [type(node) for node in b.nodes]
    for left, right in zip(a.nodes, b.nodes, strict=True):
        for name, value in vars(left).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(right, name))
            else:
                assert value == getattr(right, name)


def test_everything_supported_is_carried_over() -> None:
    model = everything()
    graph = read(model, EXAMPLE)
    nodes = {node.name: node for node in graph.nodes}
    assert [(name, type(node)) for name, node in nodes.items()] == [
        ("input", Input),
        ("conv", Conv2d),
        ("norm", BatchNorm),
        ("relu", ReLU),
        ("block.conv", Conv2d),
        ("block.add", Add),
        ("block.act", ReLU),
        ("pool", MaxPool),
        ("average", AvgPool),
        ("view", Flatten),
        ("linear", Linear),
        ("output", Output),
    ]
    conv, inner = nodes["conv"], nodes["block.conv"]
    assert isinstance(conv, Conv2d)
    assert isinstance(inner, Conv2d)
    assert np.array_equal(conv.weight, model.get_parameter("conv.weight").detach())
    assert np.array_equal(conv.bias, np.zeros(6))
    assert (conv.stride, conv.padding, conv.groups) == ((2, 1), (1, 1, 2, 2), 1)
    assert (inner.padding, inner.groups) == ((1, 1, 0, 1), 2)
    assert np.array_equal(inner.bias, model.get_parameter("block.conv.bias").detach())
    pool, average = nodes["pool"], nodes["average"]
    assert isinstance(pool, MaxPool)
    assert isinstance(average, AvgPool)
    assert (pool.kernel, pool.stride, pool.padding, pool.dilation) == (
        (2, 3), (2, 2), (0, 0, 1, 1), (1, 2),
    )  # fmt: skip
    assert (average.kernel, average.stride, average.padding) == ((2, 2), (1, 1), (1, 1, 1, 1))
    assert nodes["block.add"].inputs == ("block.conv", "relu")
    assert graph.shapes["average"] == (6, 3, 5)
    assert graph.shapes["output"] == (5,)


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_archive_reads_like_the_module(tmp_path: Path, dynamic: bool) -> None:
    model = everything()
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (EXAMPLE,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    graph = read(model, EXAMPLE)
    assert_same_graphs(read(program), graph)
    assert_same_graphs(read(tmp_path / "model.pt2"), graph)


def test_in_place_operators_change_what_others_read() -> None:
    def forward(self, x):
        y = self.conv(x)
        z = y.relu_()  # y and z are now the same
        return self.last(y + z)

    model = Calling(forward, conv=nn.Conv2d(4, 4, 1), last=nn.Conv2d(4, 2, 1)).eval()
    add = next(node for node in read(model, EXAMPLE).nodes if isinstance(node, Add))
    assert add.inputs == ("relu", "relu")


def test_names_are_unique_and_leave_input_free() -> None:
    def forward(self, x):
        x = torch.relu(self.input(x))
        return self.input(torch.relu(self.input(x)))

    model = Calling(forward, input=nn.Conv2d(4, 4, 1)).eval()
    assert [node.name for node in read(model, EXAMPLE).nodes] == [
        "input", "input_1", "relu", "input_2", "relu_1", "input_3", "output",
    ]  # fmt: skip


def test_mean_is_a_global_average_pool() -> None:
    model = Calling(lambda self, x: self.linear(x.mean((-1, -2))), linear=nn.Linear(4, 3)).eval()
    _, pool, flatten, linear, _ = read(model, EXAMPLE).nodes
    assert isinstance(pool, AvgPool)
    assert pool.kernel == (8, 8)
    assert isinstance(flatten, Flatten)
    assert linear.inputs == (flatten.name,)
    kept = Calling(lambda self, x: self.conv(x.mean((2, 3), True)), conv=nn.Conv2d(4, 3, 1)).eval()
    assert [type(node) for node in read(kept, EXAMPLE).nodes] == [Input, AvgPool, Conv2d, Output]


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(conv(padding=1, padding_mode="circular")),
            r"layer '0' \(aten.pad.default\): mode='circular' is not supported; pad with zeros",
        ),
        (
            nn.Sequential(nn.ConstantPad2d(1, 0.5), conv()),
            r"layer '0' \(aten.pad.default\): value=0.5 is not supported; pad with zeros",
        ),
        (
            nn.Sequential(conv(), nn.Hardswish()),
            r"layer '1' \(aten.hardswish.default\): not supported; use ReLU or ReLU6",
        ),
        (
            nn.Sequential(nn.ConvTranspose2d(4, 4, 2)),
            r"layer '0' \(aten.conv_transpose2d.input\): not supported; use Conv2d; nothing that",
        ),
        (
            nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3)),
            r"layer '1' \(aten.conv1d.default\): not supported; use Conv2d with a height of 1",
        ),
        (
            nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True)),
            r"layer '0' \(aten.avg_pool2d.default\): ceil_mode=True",
        ),
        (
            nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
            r"layer '0' \(.*\): count_include_pad=False is not supported; use "
            "count_include_pad=True",
        ),
        (
            nn.Sequential(nn.AvgPool2d(2, divisor_override=-3)),
            r"layer '0' \(.*\): divisor_override=-3 is not supported; use a positive one",
        ),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(3)),
            r"layer '0' \(aten.adaptive_avg_pool2d.default\): output_size=\[3, 3\] of an input of "
            r"\(8, 8\) is not supported; use sizes of which one divides the other",
        ),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(16), conv()),
            r"layer '0' \(aten.adaptive_avg_pool2d.default\): moving data like this is not support",
        ),
        (
            Calling(lambda self, x: x.mean(1)),
            r"layer 'mean' \(aten.mean.dim\): dim=\[1\] is not supported; take the mean over",
        ),
        (
            Calling(lambda self, x: torch.add(x, x, alpha=2)),
            r"layer 'add' \(aten.add.Tensor\): alpha=2 is not supported; use alpha=1",
        ),
        (
            Calling(lambda self, x: x + 1),
            r"layer 'add' \(aten.add.Tensor\): other is a constant; only activations",
        ),
        (
            Calling(lambda self, x: x + x.mean((2, 3), keepdim=True)),
            r"layer 'add' \(.*\): adds \(4, 8, 8\) and \(4, 1, 1\); broadcasting is not supported",
        ),
        (
            Calling(lambda self, x: torch.conv2d(x, x[:, :, :3, :3])),
            r"layer 'conv2d' \(aten.conv2d.default\): weight is computed by the network; it must",
        ),
        (
            Calling(lambda self, x: x.view(2, 16, 4, 4)),
            r"layer 'view' \(aten.view.default\): this reshape is not supported; use "
            r"torch.flatten\(x, 1\)",
        ),
        (
            Calling(lambda self, x: x.view(4, 128)),
            r"layer 'view' \(aten.view.default\): this reshape is not supported",
        ),
        (
            nn.Sequential(nn.Linear(8, 3)),
            r"layer '0' \(aten.linear.default\): its input is \(4, 8, 8\); flatten its input",
        ),
        (
            nn.Sequential(conv(), nn.Softmax(1)),
            r"layer '1' \(aten.softmax.int\): not supported; leave it out",
        ),
        (
            nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
            r"layer '1' \(aten._native_batch_norm_legit.no_stats\): not supported",
        ),
        (
            Calling(lambda self, x: (x, x)),
            "the network must have one output, not 2",
        ),
        (
            Calling(lambda self, x: torch.ones(2, 3)),
            "the network's result does not depend on its input",
        ),
        (
            Calling(lambda self, x: x.view(2, 4, 2, 4, 8)[:, :, 0] * 2),
            r"layer 'mul' \(aten.mul.Tensor\): not supported; fold factors into the weights of a",
        ),
        (
            Calling(lambda self, x: x.flip(3)),
            r"layer 'flip' \(aten.flip.default\): moving data like this is not supported; use conc",
        ),
        (
            Calling(lambda self, x: torch.cat([x, torch.ones(2, 1, 8, 8)], 1)),
            r"layer 'cat' \(aten.cat.default\): it moves a constant; only zeros are supported",
        ),
        (
            Calling(lambda self, x: torch.cat([x[:1], x[:1]])),
            r"layer 'cat' \(aten.cat.default\): moving data like this is not supported",
        ),
        (
            Calling(lambda self, x: torch.cat([x, torch.arange(128).view(2, 1, 8, 8)], 1)),
            r"layer 'cat' \(aten.cat.default\): it moves a constant; only zeros are supported",
        ),
        (
            Calling(lambda self, x: torch.cat([x, torch.ones(2, 1, 8, 8) > 0], 1)),
            r"layer 'cat' \(aten.cat.default\): it moves a constant; only zeros are supported",
        ),
        (
            Calling(lambda self, x: torch.zeros_like(x, dtype=torch.int32).copy_(x).float()),
            r"layer 'zeros_like' \(.*\): its result is torch.int32; only float32 is supported",
        ),
        (
            Calling(lambda self, x: torch.cat([x, torch.zeros(2, 1, 8, 8).double()], 1)),
            r"layer 'cat' \(aten.cat.default\): its result is torch.float64; only float32",
        ),
        (
            Calling(lambda self, x: torch.conv2d(x, torch.rand(3, 4, 1, 1))),
            r"layer 'rand' \(aten.rand.default\): it is random; export the network in evaluation",
        ),
        (
            Calling(lambda self, x: self.last(torch.zeros_like(x).flatten(1)),
                    last=nn.Linear(256, 3)),
            r"layer 'last' \(aten.linear.default\): its input is zero; leave it out",
        ),
        (
            Calling(lambda self, x: torch.maximum(x[:, :, :1, :1], torch.zeros(8, 8))),
            r"layer 'maximum' \(.*\): its result is \(4, 8, 8\), made of \(4, 1, 1\); broadcasting",
        ),
        (
            Calling(lambda self, x: torch.maximum(x[:, :0], torch.zeros(0, 8, 8))),
            r"layer 'maximum' \(aten.maximum.default\): other is computed by the network; it must",
        ),
        (
            Calling(lambda self, x: torch.addmm(torch.arange(6.0).view(2, 3), x.flatten(1),
                                                torch.ones(256, 3))),
            r"layer 'addmm' \(aten.addmm.default\): its bias differs from image to image; use one",
        ),
        (
            nn.Sequential(nn.AdaptiveMaxPool2d((0, 1))),
            r"layer '0' \(aten.adaptive_max_pool2d.default\): its result is empty; use output",
        ),
        (
            Calling(lambda self, x: torch.batch_norm(x.flatten(2), None, None, torch.zeros(4),
                                                     torch.ones(4), False, 0.1, 1e-5, False)),
            r"layer '\w+' \(.*\): its input is \(4, 64\); it must be \(features,\) or \(C, H, W\)",
        ),
        (
            Calling(lambda self, x: torch.nn.functional.max_pool2d(x, 2, return_indices=True)[1]),
            r"layer 'getitem_1': only the first result of aten.max_pool2d_with_indices.default is",
        ),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_one_line(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        read(model.eval(), EXAMPLE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.reshape(-1, 2, 8, 8).mean((2, 3)).reshape(-1, 4),
        lambda y: y[:1].expand_as(y).mean((2, 3)),
        lambda y: functional.linear(y[:1].expand_as(y).permute(0, 2, 3, 1), torch.eye(4)).flatten(
            1
        ),
        lambda y: y.flip(0).amax((2, 3)),
        lambda y: y.transpose(0, 1).sum((2, 3)).t(),
    ],
)
def test_images_are_not_mixed_with_a_dynamic_batch(function: Callable) -> None:
    model = Calling(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(4, 4, 1)).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (EXAMPLE,), dynamic_shapes=({0: batch},))
    with pytest.raises(UnsupportedLayer):
        read(program)


@pytest.mark.parametrize("least", [1, 3, 70])
def test_a_dynamic_batch_may_have_a_least_size(least: int) -> None:
    """And be a multiple; sizes are those of images that the program takes."""
    half = torch.export.Dim("half", min=least)
    model = Calling(
        lambda self, x: self.conv(x).reshape(x.shape[0] // 2, -1).reshape(-1, 4, 8, 8)[:, 1:3],
        conv=nn.Conv2d(4, 4, 1),
    ).eval()
    images = torch.zeros(2 * least + 2, 4, 8, 8)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: 2 * half},))
    assert read(program).shapes["output"] == (2, 8, 8)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training mode; call eval\(\)"):
        read(nn.Sequential(conv(), nn.BatchNorm2d(4)), EXAMPLE)
    program = torch.export.export(nn.Sequential(conv(), nn.BatchNorm2d(4)).train(), (EXAMPLE,))
    with pytest.raises(ValueError, match=r"^layer '1': it updates its \w+; export .* model.eval"):
        read(program)
    program = torch.export.export(nn.Sequential(conv(), nn.Dropout()).train(), (EXAMPLE,))
    with pytest.raises(ValueError, match=r"^layer '1' .*native_dropout.* model.eval"):
        read(program)


def test_a_network_that_changes_itself_is_refused() -> None:
    def forward(self, x):
        with torch.no_grad():
            self.conv.weight.add_(1)
        return self.conv(x)

    with pytest.raises(ValueError, match=r"^layer 'conv': it updates its weight; export"):
        read(Calling(forward, conv=nn.Conv2d(4, 4, 1)).eval(), EXAMPLE)

    drop = torch.ops.aten.native_dropout
    for train in (None, True):
        model = Calling(lambda self, x, train=train: drop(x, 0.5, train)[0])
        with pytest.raises(ValueError, match=r"native_dropout.*: it drops; export"):
            read(model.eval(), EXAMPLE)


def test_a_network_that_cannot_be_exported_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^the network cannot be exported: ") as error:
        read(nn.Conv2d(4, 4, 1).eval(), torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(error.value)


def test_bad_inputs_are_refused() -> None:
    model = nn.Sequential(conv()).eval()
    with pytest.raises(ValueError, match="a module needs an example input"):
        read(model)
    with pytest.raises(ValueError, match=r"input must be float32, not torch\.float64"):
        read(model.double(), EXAMPLE.double())
    with pytest.raises(ValueError, match="input must be one tensor"):
        read(nn.Sequential(nn.Linear(4, 4)).eval(), torch.zeros(2, 4))
    size = torch.export.Dim("size", min=4)
    program = torch.export.export(model.float(), (EXAMPLE,), dynamic_shapes=({2: size},))
    with pytest.raises(ValueError, match="must have fixed channels, height and width"):
        read(program)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.pt2"
    if content is not None:
        path.write_bytes(content)
    reason = "no model file at" if content is None else "is no torch.export archive"
    with pytest.raises(ValueError, match=reason) as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layer", "field", "value"), [("0", "weight", np.nan), ("1", "bias", np.inf)]
)
def test_weights_that_are_not_finite_are_refused(layer: str, field: str, value: float) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        model.get_parameter(f"{layer}.{field}").view(-1)[1] = value
    with pytest.raises(ValueError, match=f"^layer '{layer}': its {field} has NaN or infinities$"):
        read(model, EXAMPLE)


def test_a_graph_checks_itself() -> None:
    image, result = Input("input", (), (4, 8, 8)), Output("output", ("conv",))
    weight, bias = np.zeros((4, 4, 3, 3), np.float32), np.zeros(4, np.float32)
    layer = Conv2d("conv", ("input",), weight, bias)

    def refuse(message: str, *nodes: Node) -> None:
        with pytest.raises(ValueError, match=message):
            Graph(nodes)

    Graph((image, layer, result))
    refuse("one input, and one output at its end", image, layer)
    refuse("one input, and one output at its end", image, result, layer)
    refuse("layer 'output' reads 'conv', which no node before it gives", image, result)
    refuse("node names must be unique", image, layer, layer, result)
    refuse("layer 'conv' takes 4 channels, not 3", Input("input", (), (3, 8, 8)), layer, result)
    refuse(
        r"layer 'conv' a \(3, 3\) window does not fit \(4, 2, 9\)",
        Input("input", (), (4, 2, 9)), layer, result,
    )  # fmt: skip
    ones = np.ones(4, np.float32)
    norm = BatchNorm("conv", ("input",), ones, ones, ones, -ones, 1e-5)
    refuse("layer 'conv' has a variance that is not positive", image, norm, result)
    norm = BatchNorm("conv", ("input",), ones, ones, ones, ones, 1e-5)
    refuse("takes 4 channels, not 5", Input("input", (), (5, 8, 8)), norm, result)


def test_a_module_with_an_operator_of_this_package_is_one_layer(tmp_path: Path) -> None:
    """Its name is that of the module, here and in another process: the archive holds no class."""

    def stored(self, x):
        return torch.ops.shiftcore.block_float(x.relu(), 4, 8, False, "nearest")

    model = nn.Sequential(Calling(stored), Calling(lambda self, x: x.relu()))
    program = torch.export.export(model, (EXAMPLE,))
    torch.export.save(program, tmp_path / "model.pt2")
    for source in (program, tmp_path / "model.pt2"):
        names = [node.name for node in read(source).nodes]
        assert names == ["input", "0", "0_1", "1.relu", "output"]
