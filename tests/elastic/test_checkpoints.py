"""Checkpoints that several ranks write, each its part, and may be killed while they do."""

import random
import signal
import subprocess
import sys
import time

import pytest

from edl.elastic.checkpoints import Checkpoints, Place
from edl.errors import ConfigError
from tests.support.processes import ROOT

pytest.importorskip("paddle")


def write(checkpoints, place, ranks):
    for rank in ranks:
        checkpoints.save(place, rank, {"rank": rank}, {"at": str(place)} if rank == 0 else None)


def test_a_checkpoint_counts_once_all_ranks_have_written_their_part(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.newest() is None
    first, second = Place(0, 64, 2), Place(0, 128, 2)
    write(checkpoints, first, (1, 0))
    write(checkpoints, second, (0,))
    assert checkpoints.newest() == first
    assert checkpoints.load(first, "shared") == {"at": str(first)}
    assert checkpoints.load(first, "rank-1") == {"rank": 1}
    write(checkpoints, second, (1,))
    assert checkpoints.newest() == second


def test_the_newest_are_kept_and_what_never_became_whole_goes_with_the_others(tmp_path):
    checkpoints = Checkpoints(tmp_path, kept=2)
    write(checkpoints, Place(0, 32, 2), (1,))  # of ranks that were killed
    for seen in range(64, 321, 64):
        write(checkpoints, Place(0, seen, 1), (0,))
    write(checkpoints, Place(1, 0, 3), (0, 1, 2))
    (tmp_path / "notes.txt").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000-000000256-of-1",  # kept while the last one was not whole
        "0000-000000320-of-1",
        "0001-000000000-of-3",
        "notes.txt",
    ]


def test_ranks_that_write_to_different_directories_are_told(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, Place(0, 64, 2), (0,))  # rank 1 is on another machine, and so is its disk
    assert checkpoints.newest() is None
    assert "0000-000000064-of-2 lacks rank-1" in caplog.text
    assert "not the same for all" in caplog.text


def test_none_kept_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="kept is 0"):
        Checkpoints(tmp_path, kept=0)


def test_a_checkpoint_is_kept_beside_those_of_another_training_and_that_is_said(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, kept=2)
    for place in (Place(7, 0, 1), Place(8, 0, 1)):
        write(checkpoints, place, (0,))
    assert not caplog.text
    write(checkpoints, Place(0, 64, 1), (0,))
    assert checkpoints.load(Place(0, 64, 1), "rank-0") == {"rank": 0}
    assert "0008-000000000-of-1, which is beyond 0000-000000064-of-1" in caplog.text


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04cnowhere\nno_class\n."])
def test_a_part_that_is_none_is_named_with_the_remedy(tmp_path, content):
    checkpoints, place = Checkpoints(tmp_path), Place(0, 64, 1)
    write(checkpoints, place, (0,))
    (tmp_path / str(place) / "shared").write_bytes(content)
    with pytest.raises(ConfigError, match=r"of-1/shared cannot be read .*remove .*-of-1, and"):
        checkpoints.load(place, "shared")


def test_what_is_no_directory_is_refused_or_left_alone(tmp_path):
    file = tmp_path / str(Place(0, 1, 1))
    file.touch()
    with pytest.raises(ConfigError, match="is a file, and no directory"):
        Checkpoints(file)
    checkpoints = Checkpoints(tmp_path, kept=1)
    for seen in (2, 3):
        write(checkpoints, Place(0, seen, 1), (0,))
    assert checkpoints.newest() == Place(0, 3, 1)
    assert file.exists()


WRITER = """
import itertools, sys
import numpy as np
from edl.elastic.checkpoints import Checkpoints, Place
checkpoints = Checkpoints(sys.argv[1])
begin = checkpoints.newest()
for step in itertools.count(begin.seen + 1 if begin else 1):
    parameters = {"w": np.full(300_000, step)}
    checkpoints.save(Place(0, step, 1), 0, {"step": step}, parameters)
"""


def test_a_rank_that_is_killed_while_it_saves_leaves_whole_checkpoints_only(tmp_path):
    checkpoints, generator = Checkpoints(tmp_path), random.Random(0)
    for saved in (3, 6, 9):
        process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT)
        while (place := checkpoints.newest()) is None or place.seen < saved:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        place = checkpoints.newest()
        assert checkpoints.load(place, "rank-0") == {"step": place.seen}
        parameters = checkpoints.load(place, "shared")["w"]
        assert (parameters == place.seen).all()
