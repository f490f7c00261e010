"""What a reader is told: limits that cannot work are refused, and the original's rules hold."""

import math

import numpy as np
import pytest

from edl.distill import DistillReader, Limits
from edl.distill.settings import fallback_description
from edl.errors import ConfigError, ReaderError
from edl.serving.wire import frame
from edl.serving.wire.messages import decode_request, encode_response
from tests.distill.test_bad_teachers import BadTeacher, right
from tests.distill.test_one_model import factors, images, teacher
from tests.serving.client.test_teacher import receive
from tests.support.processes import eventually


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "3", None, True, [1]])
@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
def test_a_limit_that_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"Limits\.{name} must be a finite number"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"min_window": 33}, "min_window.*above max_window"),
        ({"min_timeout": 61.0}, "min_timeout.*above max_timeout"),
        ({"min_timeout": 0, "max_timeout": 0}, "max_timeout must be above 0"),
        ({"high_batches": 0}, "high_batches must be at least 1"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Limits(**limits)


def test_numbers_of_numpy_are_numbers():
    assert Limits(high_batches=np.int64(3), min_timeout=np.float32(0.5)).high_batches == 3


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "3", None])
def test_a_time_out_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="no_teacher_timeout must be a finite number"):
        DistillReader(["img"], ["prob"], no_teacher_timeout=value)


def test_fixed_teachers_are_all_used_whatever_the_most_is_said_to_be():
    with (
        teacher() as one,
        teacher() as two,
        DistillReader(["img"], ["prob"], source=lambda: images(20)) as reader,
    ):
        reader.set_fixed_teacher([one.endpoint, two.endpoint]).set_require_max_teacher(1)
        assert set(factors(reader)) == {1.0}
        eventually(lambda: len(reader.stats()["teachers"]) == 2)


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({}, "but PADDLE_DISTILL_SERVICE_NAME is not"),
        ({"SERVICE_NAME": "s", "MAX_TEACHER": "0"}, "MAX_TEACHER is '0', not a positive number"),
        ({"SERVICE_NAME": "s", "MAX_TEACHER": "two"}, "MAX_TEACHER is 'two'"),
    ],
)
def test_an_environment_that_says_half_is_refused(variables, complaint, monkeypatch):
    monkeypatch.setenv("PADDLE_DISTILL_BALANCE_SERVER", "127.0.0.1:2379")
    for name, value in variables.items():
        monkeypatch.setenv(f"PADDLE_DISTILL_{name}", value)
    with pytest.raises(ConfigError, match=complaint):
        next(iter(DistillReader(["img"], ["prob"], source=lambda: images(1))))


@pytest.mark.parametrize(
    ("teachers", "complaint"),
    [
        ("smoke://h:1", "smoke:// is not one of baidu_std://, pipeline://"),
        ("h", "teacher: .*'h'"),
        ([], "the list of teachers is empty"),
    ],
)
def test_teachers_that_are_none_are_refused(teachers, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DistillReader(["img"], ["prob"]).set_fixed_teacher(teachers)


@pytest.mark.parametrize(("servers", "name"), [([], "s"), ("h:1", "")])
def test_a_service_without_a_place_or_a_name_is_refused(servers, name):
    with pytest.raises(ConfigError, match="needs etcd endpoints and a service name"):
        DistillReader(["img"], ["prob"]).set_dynamic_teacher(servers, name)


def test_teachers_of_several_models_are_for_the_constructor():
    reader = DistillReader(["img"], ["prob"], teachers={"a": "h:1", "b": "h:2"})
    with pytest.raises(ConfigError, match="pass their teachers to the constructor"):
        reader.set_fixed_teacher("h:3")


CONF = """
feed_var { name: "img" alias_name: "img" is_lod_tensor: false feed_type: 1 shape: 3 }
fetch_var { name: "prob" alias_name: "prob" is_lod_tensor: false fetch_type: 1 shape: 2 }
"""


class Silent(BadTeacher):
    """Computes, but does not say what it serves, like a Paddle Serving."""

    def __init__(self):
        super().__init__(lambda conn, meta, feeds: None)

    def _serve(self, conn):
        with conn:
            while True:
                try:
                    size, meta_size = frame.parse_header(receive(conn, frame.HEADER_SIZE))
                    body = memoryview(receive(conn, size))
                except (OSError, AssertionError):
                    return
                meta, payload = frame.parse_body(body, meta_size)
                code, answer = frame.ENOSERVICE, []
                if meta.method == "inference":
                    code = 0
                    answer = encode_response({"prob": right(decode_request(payload).feeds)})
                head = frame.ResponseMeta(meta.correlation_id, code, "unknown" if code else "")
                conn.sendall(b"".join(frame.encode_frame(head, answer)))


def test_the_file_where_the_original_looks_says_what_a_silent_teacher_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent = Silent()
    source = [(np.full((2, 3), 7, "f4"),)]
    with (
        DistillReader(["img"], ["prob"], source, silent.endpoint) as reader,
        pytest.raises(ReaderError, match="set_serving_conf_file"),
    ):
        list(reader)
    conf = tmp_path / "serving_conf" / "serving_client_conf.prototxt"
    conf.parent.mkdir()
    conf.write_text(CONF)
    with DistillReader(["img"], ["prob"], source, silent.endpoint) as reader:
        ((_, prob),) = list(reader)
    assert (prob[:, 0] == 21).all()
    silent.close()


def test_another_file_or_the_environment_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = tmp_path / "serving_conf" / "serving_client_conf.prototxt"
    other = tmp_path / "other.prototxt"
    default.parent.mkdir()
    default.write_text(CONF)
    other.write_text(CONF.replace('"prob"', '"logits"'))
    assert list(fallback_description(None).fetches) == ["prob"]
    assert list(fallback_description(str(other)).fetches) == ["logits"]
    monkeypatch.setenv("PADDLE_DISTILL_CONF_FILE", str(other))
    assert list(fallback_description(None).fetches) == ["logits"]
