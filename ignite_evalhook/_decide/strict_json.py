"""Write JSON that every reader takes: NaN is ``null``, infinity ``1e999``.

Python writes ``NaN`` and ``Infinity``, which are no JSON.  Its reader takes those, too, so files
of both kinds are read; that a ``null`` was NaN, only who knows the field can say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__: list[str] = []

_TOKENS = {"NaN": "null", "Infinity": "1e999", "-Infinity": "-1e999"}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|' + "|".join(_TOKENS))
_SURROGATE = re.compile("[\ud800-\udfff]")  # which UTF-8 cannot write


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return plain values as JSON; every float is read back to the same bits."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if "NaN" in text or "Infinity" in text:
        text = _TOKEN.sub(lambda found: _TOKENS.get(found[0], found[0]), text)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def nan_for_null(value: Any) -> Any:
    """Return a value read from JSON in which each ``null`` was NaN."""
    if value is None:
        return math.nan
    if isinstance(value, Mapping):
        return {key: nan_for_null(item) for key, item in value.items()}
    return [nan_for_null(item) for item in value] if isinstance(value, list) else value
