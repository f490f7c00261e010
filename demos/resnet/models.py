"""Networks by name: those of paddle.vision.models, and the pair of the original's table.

ResNet50_vd: He et al., "Bag of Tricks for Image Classification with CNNs" (arXiv 1812.01187): a
stem of three 3x3 convolutions, and average pooling before the shortcut's 1x1 convolution.
ResNeXt101_32x16d_wsl: Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining"
(arXiv 1805.00932): ResNeXt-101 with 32 groups of width 16.
"""

import paddle
from paddle import nn
from paddle.vision.models import ResNet
from paddle.vision.models.resnet import BottleneckBlock


def build(name, classes):
    """The network ``name`` for so many classes."""
    if name == "ResNet50_vd":
        return ResNetVd((3, 4, 6, 3), classes)
    if name == "ResNeXt101_32x16d_wsl":
        return ResNet(BottleneckBlock, 101, width=16, groups=32, num_classes=classes)
    if not hasattr(paddle.vision.models, name):
        raise SystemExit(f"{name} is neither ResNet50_vd, ResNeXt101_32x16d_wsl, nor one of "
                         "paddle.vision.models")  # fmt: skip
    return getattr(paddle.vision.models, name)(num_classes=classes)


def load(name, classes, weights):
    """The same, with the parameters that paddle.save wrote to the file ``weights``, if any."""
    network = build(name, classes)
    if weights:
        network.set_state_dict(paddle.load(weights))
    return network


class ConvBn(nn.Sequential):
    """Convolution, batch normalisation, and ReLU unless it comes after an addition."""

    def __init__(self, inputs, outputs, size, stride=1, relu=True):
        layers = [
            nn.Conv2D(inputs, outputs, size, stride, padding=size // 2, bias_attr=False),
            nn.BatchNorm2D(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


class BottleneckVd(nn.Layer):
    """1x1, 3x3 (with the stride), 1x1; the shortcut is pooled before it is projected."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        outputs = 4 * planes
        self.body = nn.Sequential(
            ConvBn(inputs, planes, 1),
            ConvBn(planes, planes, 3, stride),
            ConvBn(planes, outputs, 1, relu=False),
        )
        shortcut = []
        if stride != 1:
            shortcut.append(nn.AvgPool2D(2, 2, ceil_mode=True))
        if inputs != outputs:
            shortcut.append(ConvBn(inputs, outputs, 1, relu=False))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        """Add and rectify."""
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class ResNetVd(nn.Layer):
    """ResNet-D with so many blocks in each of four stages."""

    def __init__(self, blocks, classes):
        super().__init__()
        layers = [ConvBn(3, 32, 3, 2), ConvBn(32, 32, 3), ConvBn(32, 64, 3), nn.MaxPool2D(3, 2, 1)]
        inputs = 64
        for stage, count in enumerate(blocks):
            planes = 64 << stage
            for index in range(count):
                layers.append(BottleneckVd(inputs, planes, 2 if stage and not index else 1))
                inputs = 4 * planes
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2D(1), nn.Flatten())
        self.classify = nn.Linear(inputs, classes)

    def forward(self, x):
        """Logits."""
        return self.classify(self.features(x))
