"""``edl export`` with weights of another layer. The rest is with the export itself."""

import pytest

from tests.support.processes import edl


def test_weights_that_do_not_fit_are_refused_with_their_names(tmp_path):
    paddle = pytest.importorskip("paddle")
    paddle.save(paddle.nn.Linear(2, 2).state_dict(), str(tmp_path / "w.pdparams"))
    result = edl(
        *("export", "--layer", "paddle.vision.models:LeNet", "--weights", tmp_path / "w.pdparams"),
        *("--feed", "img:float32:1,28,28", "--fetch", "logits", "--out", tmp_path / "out"),
    )
    assert result.returncode == 1
    assert "does not fit paddle.vision.models:LeNet: missing features" in result.stderr
    assert "unexpected weight, bias" in result.stderr
    assert not (tmp_path / "out").exists()
