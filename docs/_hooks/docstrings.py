"""Docstrings as the reference shows them: an extension of griffe, by which mkdocstrings reads them.

The code's docstrings are prose with a few marks of reStructuredText. They become Markdown: roles
are code, ``::`` begins an example, and each argument that is explained has a line of its own.
"""

import inspect
import re

try:  # whoever builds the site has it; whoever tests what it makes of a docstring need not
    from griffe import Extension
except ImportError:
    Extension = object

_ROLE = re.compile(r":(?:class|meth|func|mod|data):`~?([\w.]+)`")
_NAME = r"``[\w*]+``(?: \([^)]*\))?"
_EXPLAINED = re.compile(rf"(?:^|(?<=[.;] ))(?={_NAME}(?:,? (?:and )?{_NAME})*:)")
_RAISES = re.compile(r"(?<=[.;] )(?=Raises |Returns )")


class Docstrings(Extension):
    """Gives every object the Markdown of its docstring."""

    def on_instance(self, *, obj, **_):
        """See griffe.Extension."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring):
    """A docstring's text as Markdown."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    return "\n\n".join(filter(None, map(_block, blocks)))


def _block(block):
    if block.startswith((" ", "- ", "=", "|")):  # an example, a list, a table
        return block
    text = _ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", " ".join(block.split()))
    text = re.sub(r"\s*::$", lambda end: ":" if len(text) > 2 else "", text)
    return "\n\n".join(_items(text))


def _items(text):
    """The parts of a paragraph, as paragraphs or items of a list."""
    for part in _RAISES.split(text):
        for item in filter(None, _EXPLAINED.split(part)):
            yield f"- {item.strip()}" if _EXPLAINED.match(item) else item.strip()
