"""One epoch, as PaddleClas goes through it."""

import paddle.nn.functional as F


def train_epoch(engine, epoch_id):
    if not hasattr(engine, "train_dataloader_iter"):
        engine.train_dataloader_iter = iter(engine.train_dataloader)
    for _ in range(engine.iter_per_epoch):
        try:
            batch = next(engine.train_dataloader_iter)
        except Exception:
            engine.train_dataloader_iter = iter(engine.train_dataloader)
            batch = next(engine.train_dataloader_iter)
        size = batch[0].shape[0]
        batch[1] = batch[1].reshape([size, -1])
        engine.global_step += 1
        out = forward(engine, batch)
        student, teacher = out["Student"], out["Teacher"]
        loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), "batchmean")
        loss.backward()
        engine.optimizer.step()
        engine.optimizer.clear_grad()
        engine.losses.append(float(loss))
        engine.labels += batch[-1].flatten().tolist()  # what its metrics look at


def forward(engine, batch):
    return engine.model(batch[0])
