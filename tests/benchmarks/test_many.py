"""``benchmarks/many.py`` at a small size."""

import pytest

from tests.benchmarks.commands import benchmark, run


@pytest.mark.slow
@pytest.mark.timeout(260)
def test_it_measures_each_part(tmp_path):
    size = ["--students", 4, "--connections", 50, "--teachers", 2, "--seconds", 0.4]
    shown, found = benchmark("many", tmp_path / "json", *size)
    assert all(f"many {part}" in shown for part in found)
    students, connections, teachers = (found[part] for part in found)
    assert [(line["students"], line["pause"]) for line in students] == [
        (1, 0.5), (1, 0.0), (4, 0.5), (4, 0.0),
    ]  # fmt: skip
    assert all(line["requests_per_second"] > 0 for line in [*students, *connections])
    assert all(0 < line["median"] <= line["p99"] for line in [*students, *connections])
    assert students[2]["files"] - students[0]["files"] == 3
    assert [line["connections"] for line in connections] == [0, 50]
    assert [line["teachers"] for line in teachers] == [1, 2]
    assert teachers[1]["threads"] >= teachers[0]["threads"] > 0


def test_a_part_that_is_not_there_is_refused():
    result = run("many", "nobody")
    assert result.returncode == 2
    assert "no such part: nobody; there are students, connections, teachers" in result.stderr
