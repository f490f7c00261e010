"""What tells one model from another: its content, not where it lies.

That is the program's and the parameters' bytes, and the names of feeds and fetches in their order.
How it is computed is no part of it, nor is the precision: what makes teachers elastic is that any
device will do, in fp16 here and with TensorRT there, and their labels differ by rounding only. Who
wants one precision sees it in each teacher's description, beside the device.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from edl.serving.model.files import ModelFiles
from edl.serving.model.prototxt import ModelConfig

_CHUNK = 1 << 20


def fingerprint_of(files: ModelFiles, model: ModelConfig) -> str:
    """``model:`` and 32 hexadecimal digits. Reads the files once, a piece at a time."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (files.program, files.params):
        size = add_file(digest, path) if path is not None else 0
        digest.update(size.to_bytes(8, "little"))  # where one part ends and the next begins
    for path in files.separate:
        digest.update(add_file(digest, path).to_bytes(8, "little"))
    names = [[(v.name, v.alias) for v in kind] for kind in (model.feeds, model.fetches)]
    digest.update(json.dumps(names).encode())
    return f"model:{digest.hexdigest()}"


def add_file(digest: hashlib.blake2b, path: Path) -> int:
    """Add a file's content to ``digest``; how many bytes that were."""
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size
