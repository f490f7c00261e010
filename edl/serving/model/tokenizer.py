"""What tells one tokenizer from another: which ids it makes of a text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Optional, Union

from edl.errors import ConfigError, ModelError

_PREFIX = "tokenizer:"

#: Everything about a fast tokenizer, and what of it decides about ids.
_FAST = "tokenizer.json"
_DECISIVE = ("normalizer", "pre_tokenizer", "model", "added_tokens")

#: Files of other tokenizers that hold their vocabulary.
_VOCABULARIES = (
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "added_tokens.json"),
)


def tokenizer_of(directory: Path) -> Optional[str]:
    """The fingerprint of the tokenizer in a directory: ``tokenizer:`` and 32 hexadecimal digits;
    None if there is none.

    A ``tokenizer.json`` alone counts where there is one, and of it only what decides about ids, not
    how it is written, nor chat templates and padding. Raises ModelError if it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    fast = directory / _FAST
    try:
        if fast.is_file():
            value = json.loads(fast.read_text("utf-8"))
            decisive = {key: value.get(key) for key in _DECISIVE}
            digest.update(json.dumps(decisive, sort_keys=True).encode())
            return _PREFIX + digest.hexdigest()
        files = [directory / name for name in _VOCABULARIES if (directory / name).is_file()]
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)} ".encode())
            digest.update(content)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"cannot read the tokenizer in {directory}: {error}") from error
    return _PREFIX + digest.hexdigest() if files else None


def parse_tokenizer(said: Union[str, Path]) -> str:
    """The fingerprint that is said, or that of the tokenizer in the directory that is said.

    Raises ConfigError if there is none, ModelError if it cannot be read.
    """
    if str(said).startswith(_PREFIX):
        return str(said)
    fingerprint = tokenizer_of(Path(said))
    if fingerprint is None:
        raise ConfigError(
            f"there is no tokenizer in {str(said)!r}: expected {_FAST}, or a vocabulary such as "
            f"{_VOCABULARIES[0]}"
        )
    return fingerprint
