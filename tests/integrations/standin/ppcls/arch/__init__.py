"""Models by the names that a config says."""

import copy
import sys

import paddle
from paddle import nn

from ppcls.utils import logger


class Net(nn.Layer):
    def __init__(self, width):
        super().__init__()
        logger.warning("this net is older than others")
        self.body, self.head = nn.Linear(3, width), nn.Linear(width, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.drop(paddle.tanh(self.body(x))))


class DistillationModel(nn.Layer):
    def __init__(self, models=None, pretrained_list=None, freeze_params_list=None, **_):
        super().__init__()
        self.model_name_list = []
        for number, entry in enumerate(models):
            ((key, arguments),) = entry.items()
            made = getattr(sys.modules[__name__], arguments.pop("name"))(**arguments)
            if (freeze_params_list or [False] * len(models))[number]:
                for parameter in made.parameters():
                    parameter.trainable = False
            self.add_sublayer(key, made)
            self.model_name_list.append(key)

    def forward(self, x, label=None):
        return {name: getattr(self, name)(x) for name in self.model_name_list}


def build_model(config, mode="train"):
    arch = copy.deepcopy(config["Arch"])
    return getattr(sys.modules[__name__], arch.pop("name"))(**arch)
