"""``benchmarks/gpu.py``: on the CPU, since there is no GPU in CI."""

import pytest

from tests.benchmarks.commands import benchmark, run


@pytest.mark.slow
@pytest.mark.timeout(260)
def test_it_measures_the_service_beside_the_loop(tmp_path):
    size = ["--layers", 18, "--batch", 2, "--batches", 2, "--students", 2, "--rounds", 1]
    shown, found = benchmark("gpu", tmp_path / "json", "--device", "cpu", *size)
    assert found["device"]
    assert found["device"][:20] in shown
    assert found["framework"] == "paddle"
    assert list(found["lines"]) == [
        "loop in one process", "edl teacher, 1 student", "edl teacher, 2 students"
    ]  # fmt: skip
    assert all(line["of_the_loop"] > 0 for line in found["lines"].values())


def test_without_a_gpu_it_says_so():
    result = run("gpu", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("no GPU that can be used here (")
