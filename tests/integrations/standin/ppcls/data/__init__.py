"""Data as a config says; a batch is a list: images, labels."""

import numpy as np
import paddle


class Rows(paddle.io.Dataset):
    def __init__(self, count):
        self.images = np.random.RandomState(0).rand(count, 3).astype("f4")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 4


def build_dataloader(config, mode, device, use_dali=False):
    dataset = Rows(**config[mode]["dataset"])
    sampler = paddle.io.DistributedBatchSampler(dataset, **config[mode]["sampler"])
    return paddle.io.DataLoader(
        dataset, batch_sampler=sampler, places=device, return_list=True, **config[mode]["loader"]
    )
