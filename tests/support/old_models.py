"""Models as Paddle 1 wrote them: ``__model__``, with a file for each parameter or one for all."""

import contextlib

import numpy as np


@contextlib.contextmanager
def _static():
    import paddle

    was_dynamic = paddle.in_dynamic_mode()
    paddle.enable_static()
    try:
        with (
            paddle.pir_utils.OldIrGuard(),
            paddle.static.scope_guard(paddle.static.Scope()),
            paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()),
        ):
            yield paddle
    finally:
        if was_dynamic:
            paddle.disable_static()


def save_old_model(directory, params=None):
    """A layer of 3 to 4 (``img`` to a softmax). Its weight, bias and fetch's name."""
    with _static() as paddle:
        img = paddle.static.data("img", [None, 3], "float32")
        prob = paddle.nn.functional.softmax(paddle.static.nn.fc(img, 4))
        executor = paddle.static.Executor(paddle.CPUPlace())
        executor.run(paddle.static.default_startup_program())
        program = paddle.static.default_main_program()
        weights = {
            each.name: np.random.default_rng(7).random(each.shape, dtype=np.float32)
            for each in program.all_parameters()
        }
        paddle.static.set_program_state(program, weights)
        directory.mkdir(exist_ok=True)
        served = paddle.static.serialize_program([img], [prob], program=program)
        (directory / "__model__").write_bytes(served)
        paddle.static.io.save_vars(
            executor, str(directory), program, predicate=lambda v: v.persistable, filename=params
        )
        weight, bias = sorted(weights.values(), key=lambda value: -value.ndim)
        return weight, bias, prob.name


def save_lod_model(directory):
    """A program whose input is a LoD tensor, and that has no parameters."""
    with _static() as paddle:
        words = paddle.static.data("words", [None, 1], "int64", lod_level=1)
        program = paddle.static.serialize_program([words], [words + 1])
        directory.mkdir(exist_ok=True)
        (directory / "__model__").write_bytes(program)


def save_program_without_parameters(directory):
    """Twice its input ``img``."""
    with _static() as paddle:
        img = paddle.static.data("img", [None, 3], "float32")
        program = paddle.static.serialize_program([img], [img * 2.0])
        directory.mkdir(exist_ok=True)
        (directory / "__model__").write_bytes(program)
