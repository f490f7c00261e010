"""What a training run writes about itself."""

import json
import time


class Log:
    """Lines on the terminal, all losses in ``losses-RANK.jsonl``, all epochs in ``epochs.jsonl``,
    and curves for VisualDL where that is installed.
    """

    def __init__(self, directory, rank, every, samples):
        directory.mkdir(parents=True, exist_ok=True)
        self.losses = (directory / f"losses-{rank}.jsonl").open("a")
        self.epochs = (directory / "epochs.jsonl").open("a")
        self.rank, self.every, self.samples = rank, every, samples
        self.kept, self.visual = [], None
        if rank == 0:
            try:
                from visualdl import LogWriter

                self.visual = LogWriter(str(directory / "visualdl"))
            except ImportError:
                pass

    def step(self, epoch, seen, loss, lr):
        """One training step. Losses are fetched now and then, since a GPU must be waited for."""
        self.kept.append((epoch, seen, loss.detach(), time.time()))
        if len(self.kept) >= self.every:
            if self.rank == 0:
                print(
                    f"epoch {epoch}, {seen} samples: loss {float(loss):.4f}, lr {lr:.4f}",
                    flush=True,
                )
            self.flush()

    def flush(self):
        """Write what is kept."""
        for epoch, seen, loss, at in self.kept:
            line = {"epoch": epoch, "seen": seen, "loss": float(loss), "at": round(at, 4)}
            print(json.dumps(line), file=self.losses)
            if self.visual:
                self.visual.add_scalar("loss", line["loss"], epoch * self.samples + seen)
        self.losses.flush()
        self.kept.clear()

    def epoch(self, epoch, speed, top1, top5):
        """One epoch, with the speed of all ranks and the accuracy on the test set."""
        self.flush()
        if self.rank != 0:
            return
        print(
            f"epoch {epoch}: {speed:.0f} images/s, top-1 {top1:.4f}, top-5 {top5:.4f}", flush=True
        )
        line = {"epoch": epoch, "images_per_s": speed, "top1": top1, "top5": top5}
        print(json.dumps(line), file=self.epochs, flush=True)
        if self.visual:
            self.visual.add_scalar("top-1", top1, epoch)
