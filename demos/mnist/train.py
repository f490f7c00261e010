"""Recognise handwritten digits, alone or distilled: the original's MNIST demo in today's Paddle.

    python train.py --network cnn --save-model mnist_cnn           # a teacher
    edl teacher --model mnist_cnn --port 9292 &
    python train.py --network softmax --teachers 127.0.0.1:9292    # a student
    python train.py --network softmax                              # the same without a teacher

With ``--data DIRECTORY`` it reads MNIST's four files there (train-images-idx3-ubyte.gz, ...),
without it scikit-learn's digits, enlarged. What distillation takes is marked <-- distillation.
"""

import argparse
import random

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional

from edl.distill import DistillReader  # <-- distillation
from edl.distill.losses import soft_cross_entropy  # <-- distillation
from edl.serving import export_model

BATCH = 64
NETWORKS = {
    "softmax": lambda: [nn.Flatten(), nn.Linear(784, 10)],
    "mlp": lambda: [
        *(nn.Flatten(), nn.Linear(784, 200), nn.Tanh()),
        *(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 10)),
    ],
    "cnn": lambda: [
        *(nn.Conv2D(1, 20, 5), nn.MaxPool2D(2), nn.ReLU(), nn.BatchNorm2D(20)),
        *(nn.Conv2D(20, 50, 5), nn.MaxPool2D(2), nn.ReLU(), nn.BatchNorm2D(50)),
        *(nn.Flatten(), nn.Linear(800, 10)),
    ],
}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="softmax")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="the directory with MNIST's files")
    parser.add_argument("--teachers", help="HOST:PORT[,...] or etcd://HOST:PORT/SERVICE")
    parser.add_argument("--save-model", help="write the network here, for edl teacher")
    return parser.parse_args()


def main():
    """Train, test, save."""
    args = parse()
    paddle.seed(args.seed)
    random.seed(args.seed)
    train_set, test_set = mnist(args.data) if args.data else digits()
    network = nn.Sequential(*NETWORKS[args.network]())
    optimizer = paddle.optimizer.Momentum(args.learning_rate, 0.9, network.parameters())

    reader = paddle.batch(paddle.reader.shuffle(lambda: iter(train_set), 500), BATCH)
    if args.teachers:  # <-- distillation: wrap the reader, and batches bring soft labels
        distill_reader = DistillReader(["img", "label"], ["prediction"], teachers=args.teachers)
        reader = distill_reader.set_sample_list_generator(reader)

    for epoch in range(args.epochs):
        network.train()
        for samples in reader():
            img, label, *soft_label = (paddle.to_tensor(np.stack(slot)) for slot in zip(*samples))
            logits = network(img)
            if soft_label:
                loss = soft_cross_entropy(logits, soft_label[0])  # <-- distillation
            else:
                loss = functional.cross_entropy(logits, label)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
        network.eval()
        print(f"epoch {epoch}: loss {float(loss):.4f}, accuracy {accuracy(network, test_set):.4f}")

    if args.teachers:
        stats = distill_reader.stats()
        print(f"{stats['batches']} batches with soft labels, {stats['resent']} tasks sent again")
    if args.save_model:
        teacher = nn.Sequential(network, nn.Softmax())
        export_model(teacher, args.save_model, {"img": ((1, 28, 28), "float32")}, ["prediction"])
        print(f"wrote {args.save_model}")


def accuracy(network, samples):
    """Share of the samples that are recognised."""
    img, label = (np.stack(slot) for slot in zip(*samples))
    with paddle.no_grad():
        guesses = [
            network(paddle.to_tensor(img[first : first + 512])).numpy().argmax(1)
            for first in range(0, len(img), 512)
        ]
    return float((np.concatenate(guesses) == label[:, 0]).mean())


def mnist(directory):
    """Training and test samples: (img float32 (1, 28, 28) from -1 to 1, label int64 (1,))."""
    return tuple(
        [
            ((image / 127.5 - 1).astype("float32")[None], label)
            for image, label in paddle.vision.datasets.MNIST(
                f"{directory}/{prefix}-images-idx3-ubyte.gz",
                f"{directory}/{prefix}-labels-idx1-ubyte.gz",
                mode=mode, download=False, backend="cv2",
            )
        ]
        for prefix, mode in (("train", "train"), ("t10k", "test"))
    )  # fmt: skip


def digits():
    """The same of scikit-learn's 1,797 digits: three times as large, with a margin."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 1, 8, 8), np.ones((3, 3))) / 8 - 1
    images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1).astype("float32")
    samples = list(zip(images, labels.astype("int64")[:, None]))
    random.Random(0).shuffle(samples)
    return samples[:1200], samples[1200:]


if __name__ == "__main__":
    main()
