"""ResNets with random weights in whichever framework is there, for gpu.py.

``edl teacher --python _networks:torch_gpu_50`` hosts the one with 50 layers of PyTorch on the first
GPU; ``paddle`` and ``torch``, ``gpu`` and ``cpu``, 18 and 50 go together in every way.

    python _networks.py torch gpu

prints the name of the device, if the framework is there and can use one.
"""

from __future__ import annotations

import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np

from edl.serving import Description, TensorSpec

FRAMEWORKS = ("paddle", "torch")

#: Blocks of each width by the number of layers.
_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Network:
    """A predictor: img (n, 3, 224, 224) float32 from numpy, to the device and back."""

    description = Description(
        {"img": TensorSpec((3, 224, 224), "float32")}, {"logits": TensorSpec((1000,), "float32")}
    )

    def __init__(self, framework: str, device: str, layers: str) -> None:
        make = {"paddle": _paddle_network, "torch": _torch_network}[framework]
        self._infer = make(device, int(layers))

    def run(self, feeds: dict[str, np.ndarray], fetches: list[str]) -> dict[str, np.ndarray]:
        return {"logits": self._infer(feeds["img"])}


def __getattr__(name: str) -> Any:
    """The factory of that name."""
    parts = name.split("_")
    if len(parts) == 3 and parts[0] in FRAMEWORKS:
        return partial(Network, *parts)
    raise AttributeError(f"no network {name!r}")


def _paddle_network(device: str, layers: int) -> Callable[[np.ndarray], np.ndarray]:
    import paddle

    paddle.set_device("gpu:0" if device == "gpu" else "cpu")
    paddle.seed(0)
    network = getattr(paddle.vision.models, f"resnet{layers}")()
    network.eval()

    def infer(batch: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return network(paddle.to_tensor(batch)).numpy()

    return infer


def _torch_network(device: str, layers: int) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    torch.manual_seed(0)
    where = "cuda:0" if device == "gpu" else "cpu"
    network = _torch_resnet(layers).eval().to(where)

    def infer(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # A teacher's feeds are read-only, of which PyTorch would warn; it does not write there.
            there = torch.frombuffer(memoryview(batch).cast("B"), dtype=torch.float32)
            return network(there.reshape(batch.shape).to(where)).cpu().numpy()

    return infer


def _torch_resnet(layers: int) -> Any:
    """As He et al., "Deep Residual Learning for Image Recognition", 2015, has it (table 1)."""
    from torch import nn

    def convolution(come: int, go: int, size: int, stride: int = 1) -> Any:
        convolve = nn.Conv2d(come, go, size, stride, size // 2, bias=False)
        return nn.Sequential(convolve, nn.BatchNorm2d(go))

    class Block(nn.Module):
        def __init__(self, come: int, width: int, stride: int) -> None:
            super().__init__()
            relu = nn.ReLU()
            if layers == 18:
                self.go = width
                steps = [convolution(come, width, 3, stride), relu, convolution(width, width, 3)]
            else:
                self.go = 4 * width
                steps = [convolution(come, width, 1), relu, convolution(width, width, 3, stride),
                         relu, convolution(width, self.go, 1)]  # fmt: skip
            self.steps = nn.Sequential(*steps)
            same = stride == 1 and come == self.go
            self.past = nn.Identity() if same else convolution(come, self.go, 1, stride)

        def forward(self, images: Any) -> Any:
            return (self.steps(images) + self.past(images)).relu()

    parts: list[Any] = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    come = 64
    for stage, count in enumerate(_BLOCKS[layers]):
        for number in range(count):
            parts.append(Block(come, 64 << stage, 2 if stage and not number else 1))
            come = parts[-1].go
    head = nn.Linear(come, 1000)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def device_name(framework: str, device: str) -> str:
    """The card's name. Raises ImportError without the framework, RuntimeError without a GPU."""
    if framework == "paddle":
        import paddle

        count, name = paddle.device.cuda.device_count, paddle.device.cuda.get_device_name
    else:
        import torch

        count, name = torch.cuda.device_count, torch.cuda.get_device_name
    if device == "cpu":
        return cpu_name()
    if not count():
        raise RuntimeError(f"{framework} finds no GPU")
    return name(0)


def cpu_name() -> str:
    """The processor's, as it calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    print(device_name(*sys.argv[1:]))
