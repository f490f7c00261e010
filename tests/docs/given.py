"""What the pages take for granted in their code: a loader, a student, a teacher, a loss."""

from types import SimpleNamespace

import numpy as np

from edl.serving import Description, TensorSpec

SHAPE, CLASSES, ROWS = (3, 224, 224), 10, 8


class Predictor:
    """A teacher that costs nothing. ``--python tests.docs.given:Predictor``."""

    description = Description(
        {"img": TensorSpec(SHAPE, "float32")},
        {"logits": TensorSpec((CLASSES,), "float32")},
        fingerprint="means",
    )

    def run(self, feeds, fetches):
        means = feeds["img"].reshape(len(feeds["img"]), -1).mean(axis=1)
        return {"logits": np.outer(means, np.arange(CLASSES, dtype="float32"))}


class Writer:
    """In the place of a visualdl.LogWriter, which tests/integrations have."""

    def add_scalar(self, tag, value, step):
        assert tag.startswith("edl/")
        assert isinstance(value, float)


def names():
    """New ones for each page, as the names that its code uses."""
    import paddle

    from edl.distill.losses import distillation

    class Images(paddle.io.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, index):
            return np.full(SHAPE, index, "float32"), np.int64(index)

    class Network(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = paddle.nn.Linear(3, CLASSES)

        def forward(self, img):
            return self.fc(img.mean(axis=[2, 3]))

    def soft_label_loss(out, logits, label):
        return distillation(out, logits) + paddle.nn.functional.cross_entropy(out, label)

    class LanguageModel(paddle.nn.Layer):
        base_model_prefix = "body"

        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(vocab_size=50, hidden_size=4)
            self.body = Body()
            self.lm_head = paddle.nn.Linear(4, 50)

    class Body(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.tokens = paddle.nn.Embedding(50, 4)

        def forward(self, input_ids, attention_mask=None, use_cache=False):
            return self.tokens(input_ids).cumsum(1)

    tokens = paddle.arange(2 * ROWS, dtype="int64").reshape([2, ROWS])
    student = Network()
    return {
        "train_dataset": Images(),
        "train_loader": paddle.io.DataLoader(Images(), batch_size=ROWS // 2),
        "raw_loader": [(paddle.zeros([ROWS, 224, 224, 3], "uint8"), paddle.arange(ROWS))],
        "student": student,
        "optimizer": paddle.optimizer.SGD(0.001, parameters=student.parameters()),
        "soft_label_loss": soft_label_loss,
        "teacher": Network(),
        "second_teacher": Network(),
        "language_model": LanguageModel(),
        "token_loader": [(tokens, paddle.ones_like(tokens), tokens)],
        "writer": Writer(),
    }
