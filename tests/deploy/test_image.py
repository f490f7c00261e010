"""deploy/Dockerfile, as far as it can be shown without building it: what it copies is enough, and
what it says exists.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n", "", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()


def all_of(name):
    return [line.partition(" ")[2] for line in INSTRUCTIONS if line.startswith(f"{name} ")]


@pytest.fixture
def context(tmp_path):
    """What .dockerignore leaves of the repository, as ``COPY .`` puts it."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*", "everything but what follows"
    for name in (line[1:] for line in lines if line.startswith("!")):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup(source, *command):
    """What pip does with a source, without its environment for that."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--quiet", *map(str, command)]
    subprocess.run(command, cwd=source, check=True, timeout=100)


def test_the_image_has_all_of_edl(context, tmp_path):
    target = tmp_path / "installed"
    setup(context, "build", "--build-lib", target)
    listed = subprocess.run(
        ["git", "ls-files", "edl", "paddle_edl"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=20,
    ).stdout.split()  # fmt: skip
    assert not [name for name in listed if not (target / name).is_file()]
    command = [sys.executable, "-m", "edl.cli.main", "teacher", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    subprocess.run(command, cwd=target, env=environment, check=True, timeout=60)


def test_what_is_copied_first_is_enough_to_know_what_edl_needs(context, tmp_path):
    first = tmp_path / "first"
    for sources in all_of("COPY")[:2]:
        *names, target = sources.split()
        folder = first / os.path.relpath(target, "/opt/edl")
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(context / name, folder)
    setup(first, "egg_info")
    (requirements,) = first.glob("*.egg-info/requires.txt")
    extras = re.findall(r"^\[(\w+)\]$", requirements.read_text(), re.M)
    used = ",".join(re.findall(r'"/opt/edl\[(\S+)\]"', DOCKERFILE)).split(",")
    assert set(used) == {"dashboard", "demo", "store"}
    assert set(used) <= set(extras)


def test_nobody_is_root_at_the_end_of_a_stage():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    assert [stage.split()[-1] if stage else "" for stage in all_of("FROM")] == ["edl", "trial"]
    for stage in stages:
        (*_, user) = re.findall(r"^USER (\S+)", stage, re.M)
        assert user.isdigit(), "Kubernetes can tell that a number is not root"
        assert user != "0"
