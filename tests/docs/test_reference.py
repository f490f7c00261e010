"""The reference is complete: what the code has, docs/reference has. Needs no mkdocs."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

from edl.cli.balancer import GAUGES
from edl.discovery import StudentRecord, keys
from edl.discovery.assignment import Summary
from edl.discovery.records import format_assignment, format_rate, parse_assignment, parse_rate
from edl.distill.metrics import FIGURES, LATENCY
from edl.serving.client.entry import Entry
from edl.serving.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in (DOCS / "reference").glob("*.md")}
ALL = "\n".join(PAGES.values())

#: Packages and modules of ``edl`` whose names are no reference: commands have a page of their own,
#: demonstrations are programs, and ``collective`` only says what has taken its place.
NOT_IMPORTED = {"cli", "demos", "collective"}

#: What is public inside the packages, besides what their ``__init__`` offers.
MODULES = ["edl", "edl.distill.losses"]


def hook(name):
    """A module of docs/_hooks, which are no package."""
    sys.path.insert(0, str(DOCS / "_hooks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def public_modules():
    names = [path.stem for path in (ROOT / "edl").glob("[!_]*.py")]
    names += [path.parent.name for path in (ROOT / "edl").glob("[!_]*/__init__.py")]
    integrations = [path.stem for path in (ROOT / "edl/integrations").glob("[!_]*.py")]
    return [
        *MODULES,
        *(f"edl.{name}" for name in sorted(names) if name not in NOT_IMPORTED),
        *(f"edl.integrations.{name}" for name in sorted(integrations)),
    ]


def tree_of(module):
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def public_names(tree):
    """Those in ``__all__``; of a module without one, its classes and functions. Read, not imported:
    what it needs may not be installed. A command is none of them.
    """
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [
        node.name
        for node in tree.body
        if isinstance(node, kinds) and node.name[0] != "_" and not is_command(node)
    ]


def is_command(node):
    return any(re.search(r"\.(command|group)\(", ast.unparse(item)) for item in node.decorator_list)


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_reference(module):
    names = [f"{module}.{name}" for name in public_names(tree_of(module))]
    assert not [
        name
        for name in names
        if not re.search(rf"^::: {re.escape(name)}$", ALL, re.MULTILINE) and f"`{name}`" not in ALL
    ]


def test_what_the_reference_names_exists():
    for name in re.findall(r"^::: (\S+)", ALL, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        if module == "edl.integrations":
            assert tree_of(name), name
        elif module.startswith("edl.integrations."):  # these import what may not be installed
            assert attribute in public_names(tree_of(module)), name
        else:
            assert getattr(importlib.import_module(module), attribute) is not None, name


def test_every_public_method_says_what_it_does():
    silent = []
    for name in re.findall(r"^::: (edl\.(?!integrations)\S+)", ALL, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        if not inspect.isclass(value):
            continue
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        members = {key for key in vars(value) if key[0] != "_"} - {field.name for field in fields}
        silent += [f"{name}.{key}" for key in members if not inspect.getdoc(getattr(value, key))]
    assert not silent


def test_what_a_reader_passes_on_is_in_the_reference():
    from edl.distill.stand_in import StandIn

    names = [name for name, value in vars(StandIn).items() if isinstance(value, property)]
    assert names
    assert not [name for name in names if f"| `{name}` |" not in PAGES["reader.md"]]


def test_every_limit_has_its_default_in_the_reference():
    from edl.distill import Limits

    sizes = {64 << 20: "64 MiB", 512 << 20: "512 MiB", 4 << 30: "4 GiB"}
    table = {}
    for names, values in re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", limits_section(), re.M
    ):
        table.update(zip(re.findall(r"\w+", names), values.strip().split(", ")))
    said = {item.name: table.get(item.name) for item in dataclasses.fields(Limits)}
    assert said == {
        item.name: sizes.get(item.default, str(item.default)) for item in dataclasses.fields(Limits)
    }


def limits_section():
    return PAGES["reader.md"].partition("\n## Limits")[2].partition("\n## ")[0]


# --- commands ----------------------------------------------------------------------------------


def test_the_page_of_commands_is_what_the_commands_say():
    remedy = "run python docs/_hooks/commands.py"
    assert hook("commands").page() == PAGES["commands.md"], remedy


def test_the_integrations_commands_are_in_the_reference():
    for path in (ROOT / "edl/integrations").glob("*.py"):
        tree = ast.parse(path.read_text())
        commands = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            and any("main.command(" in ast.unparse(item) for item in node.decorator_list)
        ]
        options = re.findall(r"click\.option\((.*?)help=", path.read_text(), re.DOTALL)
        options = [name for call in options for name in re.findall(r'"(--?[\w-]+)"', call)]
        page = PAGES["integrations.md"]
        assert not [name for name in commands if f"| `{name} " not in page]
        assert not [name for name in options if not re.search(rf"`[^`]*{name}\b[^`]*`", page)]


# --- the environment ---------------------------------------------------------------------------

_OURS = re.compile(r"\b_?(?:EDL|PADDLE_DISTILL|DISTILL_READER)_[A-Z0-9_]+\b")
_READ = re.compile(r'(?:environ(?:\.\w+)?[\[(]\s*|getenv\(\s*|envvar=)"(\w+)"')
_IN_SCRIPTS = re.compile(r"\$\{?(?!OPTARG)([A-Z][A-Z0-9_]{3,})")


def variables():
    """Environment variables that the source names or reads, and where."""
    found = {}
    for folder in ("edl", "paddle_edl", "benchmarks", "scripts", "demos"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".sh") or (folder == "scripts" and path.is_file()):
                text = path.read_text(errors="replace")
                names = {*_OURS.findall(text), *_READ.findall(text)}
                if folder == "scripts":
                    names.update(_IN_SCRIPTS.findall(text))
                found.update(dict.fromkeys(names, str(path.relative_to(ROOT))))
    return found


#: Of the system, or of bash.
_OF_THE_SYSTEM = {"HOME", "PATH", "BASH_SOURCE"}


def test_every_environment_variable_is_in_the_reference():
    found = variables()
    assert {"EDL_TOKEN", "EDL_ETCD_KEY", "GLOG_minloglevel", "EDL_VENV"} <= found.keys()
    page = PAGES["environment.md"]
    assert not {
        name: where
        for name, where in found.items()
        if f"| `{name}` |" not in page and name not in _OF_THE_SYSTEM
    }


def test_the_reference_names_no_environment_variable_that_nobody_reads():
    named = re.findall(r"^\| `(\w+)` \|", PAGES["environment.md"], re.MULTILINE)
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert not [name for name in named if name not in variables() and name not in tests]


# --- the registry ------------------------------------------------------------------------------


def test_every_key_is_in_the_reference():
    parts = [
        value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, str) and value != keys.ROOT
    ]
    assert len(parts) >= 6
    page = PAGES["registry.md"]
    assert not [part for part in parts if f"| `{keys.ROOT}/<service>/{part}" not in page]
    assert not [part for part in parts if f"\n## {part.rstrip('/')}\n" not in page]


def example(key):
    """The value that the page shows for a key."""
    section = PAGES["registry.md"].partition(f"\n## {key}\n")[2]
    return re.search(r"```\w+\n(.*?)\n```", section, re.DOTALL)[1]


def test_the_examples_of_values_are_what_the_code_writes():
    entry = Entry.from_json(example("nodes"))
    assert entry.description.feeds
    extra = ("pid", "hostname", "workers", "since")
    said = json.loads(example("nodes"))
    again = dataclasses.replace(entry, extra={name: said[name] for name in extra})
    assert json.loads(again.to_json()) == said

    record = json.loads(example("students"))
    extra = {name: record.pop(name) for name in ("hostname", "pid", "since")}
    assert StudentRecord.from_json(example("students")).to_json(**extra) == example("students")

    assert format_assignment(parse_assignment(example("assignments"))) == example("assignments")
    assert format_rate(parse_rate(example("rates"))) == example("rates")
    assert Summary(**json.loads(example("balance"))).students == 1
    assert re.fullmatch("[0-9a-f]{32}", example("leader"))


# --- metrics -----------------------------------------------------------------------------------


def metrics():
    """Name and kind of all that is served."""
    found = {metric.name: metric.type for metric in Metrics().registry.collect()}
    found |= {figure.name: figure.kind for figure in FIGURES}
    assert GAUGES.keys() == {field.name for field in dataclasses.fields(Summary)}
    found |= {name: "gauge" for name, _ in GAUGES.values()}
    found[LATENCY] = "histogram"
    return {(f"{name}_total" if kind == "counter" else name, kind) for name, kind in found.items()}


def test_the_table_of_figures_has_every_metric_and_no_other():
    row = r"^\| `(edl_\w+)` \| (\w+) \| [\w ]+ \| .+ \| .*\|$"
    table = re.findall(row, PAGES["figures.md"], re.MULTILINE)
    assert len(table) == len(set(table))
    assert set(table) == metrics()


# --- docstrings, measurements, drawings --------------------------------------------------------


def test_docstrings_become_markdown():
    text = """Does it.

    See :class:`~edl.distill.Limits`. ``a``: one thing,
    in two lines. ``b``, ``c``: another. Raises ConfigError if not::

        an example
    """
    assert hook("docstrings").markdown(text) == (
        "Does it.\n\n"
        "See `Limits`.\n\n"
        "- ``a``: one thing, in two lines.\n\n"
        "- ``b``, ``c``: another.\n\n"
        "Raises ConfigError if not:\n\n"
        "    an example"
    )


def test_every_benchmark_is_among_the_measurements():
    page = (DOCS / "measurements.md").read_text()
    names = [path.name for path in (ROOT / "benchmarks").glob("[!_]*.py")]
    assert not [name for name in names if f"python benchmarks/{name}" not in page]
    commands = set(re.findall(r"benchmarks/\w+\.py", page))
    assert not [name for name in commands if not (ROOT / name).is_file()]


def test_every_link_of_these_pages_leads_to_a_file():
    pages = [*DOCS.glob("reference/*.md"), *DOCS.glob("explanation/*.md"), DOCS / "measurements.md"]
    assert len(pages) > 12
    broken = [
        f"{page.relative_to(DOCS)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
