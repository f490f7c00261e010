"""Whoever looks finds the old directory or the new one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from edl.errors import ConfigError
from edl.serving.model import replace
from edl.serving.model.replace import replacing

#: Replaces the directory argv[1] for ever: all of its files hold one number, which grows.
WRITER = """
import itertools, pathlib, sys
from edl.serving.model.replace import replacing
target = pathlib.Path(sys.argv[1])
for number in itertools.count(int(sys.argv[2])):
    with replacing(target, "part*") as fresh:
        for part in range(5):
            (fresh / f"part{part}").write_text(str(number))
    if not number % 10:
        print(number, flush=True)
"""


def numbers(directory):
    """What the files say, all of the one directory that is there now: 5, or fewer if it has been
    replaced meanwhile and is being deleted.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    found = []
    try:
        for name in os.listdir(descriptor):
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=descriptor)) as file:
                found.append(int(file.read()))
    except FileNotFoundError:
        pass
    finally:
        os.close(descriptor)
    return found


def test_whenever_the_writer_is_killed_one_whole_directory_is_there(tmp_path):
    target, reached = tmp_path / "model", 0
    for patience in (0.0, 0.003, 0.011, 0.017):
        command = [sys.executable, "-c", WRITER, str(target), str(reached + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            writer.stdout.readline()
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline:
                assert len(set(numbers(target))) <= 1
            time.sleep(patience)
            writer.send_signal(signal.SIGKILL)
        found = numbers(target)
        assert len(found) == 5
        assert set(found) == {found[0]}
        assert found[0] > reached
        reached = found[0]


@pytest.fixture(params=["at once", "in two steps"])
def target(request, monkeypatch, tmp_path):
    """A directory with something in it, also where the file system cannot exchange two."""
    if request.param == "in two steps":
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    directory = tmp_path / "deep" / "model"
    directory.mkdir(parents=True)
    (directory / "weights").write_text("old")
    (directory / "labels").write_text("cat")
    return directory


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_what_is_not_stale_is_kept(target):
    with replacing(target, "wei*") as fresh:
        assert contents(fresh) == {"labels": "cat"}
        (fresh / "weights").write_text("new")
        assert contents(target)["weights"] == "old"
    assert contents(target) == {"weights": "new", "labels": "cat"}
    assert list(target.parent.iterdir()) == [target], "nothing is left beside it"


def test_nothing_changes_if_the_block_fails(target):
    def fail():
        with replacing(target) as fresh:
            (fresh / "weights").write_text("new")
            raise ConfigError("the names do not fit")

    with pytest.raises(ConfigError):
        fail()
    assert contents(target) == {"weights": "old", "labels": "cat"}
    assert list(target.parent.iterdir()) == [target]


def test_a_link_leads_to_the_new_one(target, tmp_path):
    (tmp_path / "link").symlink_to(target)
    with replacing(tmp_path / "link") as fresh:
        (fresh / "weights").write_text("new")
    assert contents(tmp_path / "link")["weights"] == contents(target)["weights"] == "new"
    assert (tmp_path / "link").is_symlink()


def test_a_directory_that_is_not_there_is_made(tmp_path):
    with replacing(tmp_path / "some" / "where") as fresh:
        (fresh / "weights").write_text("new")
    assert contents(tmp_path / "some" / "where") == {"weights": "new"}
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert (tmp_path / "some" / "where").stat().st_mode == ordinary.stat().st_mode


def test_what_cannot_be_replaced_stays(target):
    fresh = target.with_name("nothing")
    with pytest.raises(FileNotFoundError):
        replace._put_in_place(fresh, target)
    assert contents(target) == {"weights": "old", "labels": "cat"}


def test_where_the_system_cannot_exchange_two_directories_it_says_so(tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    assert not replace._exchange(inner.parent, inner), "the answer is that of NFS: EINVAL"
    assert inner.is_dir()
