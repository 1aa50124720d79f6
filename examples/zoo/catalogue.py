"""Every structure, small enough for tests and at full size for benchmarks."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .densenet import DenseNet
from .googlenet import GoogLeNet
from .mobile import MobileNetV2, ShuffleNetV2
from .plain import VGG11, AlexNet
from .resnet import resnet18, resnet50

__all__ = ["CATALOGUE", "Entry"]


class Entry(NamedTuple):
    """A structure; `size` is that of the images (3, size, size) of the small one."""

    full: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    size: int


CATALOGUE = {
    "resnet18": Entry(resnet18, lambda: resnet18(1 / 8, (1, 1, 1, 1), 10), 40),
    "resnet50": Entry(resnet50, lambda: resnet50(1 / 8, (1, 2, 1, 1), 10), 40),
    "vgg11": Entry(VGG11, lambda: VGG11(1 / 16, 10), 40),
    "alexnet": Entry(AlexNet, lambda: AlexNet(1 / 8, 10), 48),
    "googlenet": Entry(GoogLeNet, lambda: GoogLeNet(1 / 8, (1, 1, 1), 10), 40),
    "densenet": Entry(DenseNet, lambda: DenseNet(3 / 8, (2, 2, 2, 2), 10), 40),
    "mobilenetv2": Entry(MobileNetV2, lambda: MobileNetV2(1 / 4, 2, 10), 40),
    "shufflenetv2": Entry(ShuffleNetV2, lambda: ShuffleNetV2(1 / 2, (3, 3, 2), 10), 40),
}
