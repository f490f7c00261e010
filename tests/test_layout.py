"""Which folder may know which: imports run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: A room, and the rooms that it may import, besides itself and the small modules in edl itself.
MAY_IMPORT = {
    "edl.discovery": set(),
    "edl.elastic": set(),
    "edl.store": set(),
    "edl.serving.wire": set(),
    "edl.serving.client": {"edl.serving.wire"},
    "edl.serving.model": {"edl.serving.wire"},
    "edl.serving.worker": {"edl.serving.wire", "edl.serving.model"},
    "edl.serving.server": {"edl.serving.wire", "edl.serving.model", "edl.serving.worker"},
    "edl.distill": {
        "edl.discovery",
        "edl.store",
        "edl.serving.wire",
        "edl.serving.client",
        "edl.serving.model",
    },
    "edl.integrations": {"edl.distill"},
    "edl.view": {"edl.discovery", "edl.serving.client"},
}


def imports(path):
    """Modules that a file imports anywhere, as full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module, room):
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_is_below_it(room):
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / room.replace(".", "/")).rglob("*.py")
        for module in imports(path)
        for other in [*MAY_IMPORT, "edl.cli", "edl.demos"]
        if is_in(module, other) and other != room and other not in MAY_IMPORT[room]
    }
    assert not wrong


@pytest.mark.parametrize("module", ["wire", "server", "client", "worker"])
def test_no_room_but_the_models_imports_paddle(module):
    files = (ROOT / "edl/serving" / module).rglob("*.py")
    assert not [path for path in files if "paddle" in set(imports(path))]


def test_the_wire_touches_no_socket():
    files = list((ROOT / "edl/serving/wire").rglob("*.py"))
    assert not [path for path in files if {"socket", "asyncio", "grpc"} & set(imports(path))]


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import edl.cli.main", ["paddle", "grpc", "numpy"]),
        ("import edl.cli.ls, edl.cli.top, edl.cli.dashboard", ["grpc", "rich", "starlette"]),
        ("import edl.cli.register, edl.serving.client.health", ["paddle", "asyncio"]),
        ("import edl.serving.client.teacher", ["paddle", "grpc", "asyncio", "edl.serving.server"]),
    ],
)
def test_importing_stays_light(statement, unwanted):
    code = f"import sys; {statement}; print([m for m in {unwanted!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_packages_at_the_top_are_the_same_classes():
    import discovery
    import distill
    import edl.discovery
    import edl.distill

    assert distill.DistillReader is edl.distill.DistillReader
    assert set(distill.__all__) == set(edl.distill.__all__)
    assert discovery.Registration is edl.discovery.Registration
    assert set(discovery.__all__) == set(edl.discovery.__all__)
