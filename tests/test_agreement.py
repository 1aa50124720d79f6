"""A network that is misread is refused: what was read must compute what the network computes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shiftcore.frontend.archive import read
from shiftcore.frontend.call import UnsupportedLayer
from shiftcore.frontend.graph import Conv2d, Graph, MaxPool, Node
from shiftcore.quant import convert
from shiftcore.quant.convert import as_graph, quantize

IMAGES = np.random.default_rng(0).normal(size=(3, 2, 8, 8)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).eval()


def wrong_weight(node: Node) -> Node:
    if not isinstance(node, Conv2d):
        return node
    weight = node.weight.copy()
    weight[0] *= 1.01
    return replace(node, weight=weight)


def wrong_bias(node: Node) -> Node:
    return replace(node, bias=node.bias[::-1]) if isinstance(node, Conv2d) else node


def wrong_stride(node: Node) -> Node:
    # 6x6 in strides of 2 by windows of 2 is 3x3, of 1 by windows of 4 as well
    return replace(node, kernel=(4, 4), stride=(1, 1)) if isinstance(node, MaxPool) else node


@pytest.mark.parametrize("wrong", [wrong_weight, wrong_bias, wrong_stride])
def test_what_was_read_wrong_is_refused(
    wrong: Callable[[Node], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(*model: Any) -> Graph:
        return Graph(tuple(map(wrong, read(*model).nodes)))

    model = network()
    monkeypatch.setattr(convert, "read", misread)
    with pytest.raises(UnsupportedLayer, match=r"^the network is misread: .* off by \S+ where"):
        quantize(model, IMAGES)


def test_any_number_of_images_is_compared(tmp_path) -> None:
    """Programs of a fixed batch, larger than there are images, and of a dynamic one."""
    model = network()
    dynamic = ({0: torch.export.Dim("batch")},)
    for batch, shapes in ((1, None), (7, None), (4, dynamic)):
        program = torch.export.export(model, (torch.zeros(batch, 2, 8, 8),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "model.pt2")
        for each in (program, tmp_path / "model.pt2"):
            assert as_graph(each, IMAGES).nodes


def test_torchs_own_errors_are_one_line(tmp_path) -> None:
    """torch 2.13 asserts where an archive's batch is a multiple."""
    shapes = ({0: 2 * torch.export.Dim("half")},)
    program = torch.export.export(network(), (torch.zeros(4, 2, 8, 8),), dynamic_shapes=shapes)
    assert as_graph(program, IMAGES).nodes
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"^torch cannot make the network functional: [^\n]+$"):
        read(tmp_path / "model.pt2")


class Named(nn.Module):
    """Takes its image by name, in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, *, images: tuple[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"scores": self.inner(images[0])}


def test_inputs_by_any_name() -> None:
    program = torch.export.export(Named().eval(), (), kwargs={"images": (torch.zeros(1, 2, 8, 8),)})
    assert as_graph(program, IMAGES).nodes


@pytest.mark.parametrize("images", [IMAGES * 0, np.ones_like(IMAGES)])
def test_images_that_show_nothing(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black ones, and ones without contrast: an honest network is read; and where only some image
    has contrast, it is that which is compared."""
    assert as_graph(network(), images).nodes
    some = images.copy()
    some[2] = IMAGES[2]

    def misread(*model: Any) -> Graph:
        return Graph(tuple(map(wrong_flip, read(*model).nodes)))

    monkeypatch.setattr(convert, "read", misread)
    with pytest.raises(UnsupportedLayer, match=r"^the network is misread: "):
        as_graph(network(), some)


def wrong_flip(node: Node) -> Node:
    return replace(node, weight=node.weight[..., ::-1]) if isinstance(node, Conv2d) else node


def test_results_that_are_not_finite() -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1000
    with pytest.raises(ValueError, match=r"^the network's results are not finite on the images$"):
        as_graph(model, np.full_like(IMAGES, 3e38))


@pytest.mark.parametrize("form", [list, torch.tensor, lambda x: x.astype(np.float64)])
def test_images_in_other_forms(form: Callable[[np.ndarray], Any]) -> None:
    assert as_graph(network(), form(IMAGES)).nodes
