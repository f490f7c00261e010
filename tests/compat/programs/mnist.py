"""A program in the shape of the original's MNIST example: a student learns from soft labels, with
fixed teachers (``HOST:PORT``) or those of a service (``ETCD SERVICE``).
"""

import sys

import numpy as np
import paddle
from sklearn.datasets import load_digits

from paddle_edl.distill.distill_reader import DistillReader

EPOCHS, BATCH_SIZE = 4, 64


def digits():
    """Stands for ``paddle.dataset.mnist.train``: images of 784 pixels and their labels."""
    images, labels = load_digits(return_X_y=True)
    for img, lab in zip(images[:1024], labels):
        large = np.kron(img.reshape(8, 8) / 16, np.ones((3, 3)))
        yield np.pad(large, 2).astype("float32").reshape(784), int(lab)


def train(dr):
    train_reader = dr.set_sample_list_generator(paddle.batch(digits, BATCH_SIZE))
    student = paddle.nn.Linear(784, 10)
    adam = paddle.optimizer.Adam(parameters=student.parameters(), learning_rate=0.01)
    losses, right = [], 0
    for _ in range(EPOCHS):
        right = 0
        for data in train_reader():
            img, lab, prob = (np.stack(column) for column in zip(*data))
            logits = student(paddle.to_tensor(img))
            loss = paddle.nn.functional.cross_entropy(
                logits, paddle.to_tensor(prob), soft_label=True
            )
            loss.backward()
            adam.step()
            adam.clear_grad()
            losses.append(float(loss))
            right += int((logits.numpy().argmax(axis=1) == lab).sum())
    print("accuracy:", right / 1024)
    print("steps:", len(losses))


if __name__ == "__main__":
    paddle.seed(0)
    dr = DistillReader(ins=["img", "label"], predicts=["prob"])
    dr.set_teacher_batch_size(BATCH_SIZE)
    if len(sys.argv) == 2:
        dr.set_fixed_teacher(sys.argv[1])
    else:
        dr.set_dynamic_teacher([sys.argv[1]], sys.argv[2], require_max_teacher=2)
    train(dr)
