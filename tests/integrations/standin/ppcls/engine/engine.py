"""The engine: makes everything that a config says, and trains."""

import os

import paddle

from ppcls.arch import build_model
from ppcls.data import build_dataloader
from ppcls.engine.train import train_epoch
from ppcls.utils.logger import init_logger


class Engine:
    def __init__(self, config, mode="train"):
        init_logger()
        self.mode, self.config = mode, config
        self.device = paddle.set_device(config["Global"]["device"])
        self.use_dali = config["Global"].get("use_dali", False)
        if mode == "train":
            self.train_dataloader = build_dataloader(
                config["DataLoader"], "Train", self.device, self.use_dali
            )
            self.iter_per_epoch = len(self.train_dataloader)
        self.eval_dataloader = build_dataloader(config["DataLoader"], "Eval", self.device)
        self.model = build_model(config, mode)
        trained = [each for each in self.model.parameters() if each.trainable]
        self.optimizer = paddle.optimizer.SGD(0.1, parameters=trained)
        self.losses, self.labels, self.accuracies, self.global_step = [], [], [], 0

    def train(self):
        done, where = 0, self.config["Global"]
        if where.get("checkpoints"):
            self.model.set_state_dict(paddle.load(where["checkpoints"] + ".pdparams"))
            done = paddle.load(where["checkpoints"] + ".pdstates")["epoch"]
            if hasattr(self.train_dataloader.batch_sampler, "set_epoch"):
                self.train_dataloader.batch_sampler.set_epoch(done)
        for epoch in range(done + 1, where["epochs"] + 1):
            train_epoch(self, epoch)
            self.accuracies.append(self.eval())
            prefix = os.path.join(where["output_dir"], f"epoch_{epoch}")
            paddle.save(self.model.state_dict(), prefix + ".pdparams")
            paddle.save({"epoch": epoch}, prefix + ".pdstates")

    @paddle.no_grad()
    def eval(self):
        self.model.eval()
        right = 0
        for batch in self.eval_dataloader:
            out = self.model(batch[0])
            if isinstance(out, dict) and "Student" in out:
                out = out["Student"]
            right += int((out.argmax(axis=1) == batch[1].flatten()).sum())
        self.model.train()
        return right / len(self.eval_dataloader.dataset)
