"""Remember a ``numpy.random.RandomState``, as ``numpy.random`` itself is one, in 2 µs.

Asking NumPy for the state makes a dict out of 624 words one by one, and putting it back takes
them out again: 100 µs, a third of what a short evaluation costs.  The words lie in one piece of
memory whose address NumPy tells (``bit_generator.ctypes``), so they are copied from there.
NumPy is never imported here.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

__all__: list[str] = []

_KEY_BYTES = 624 * 4
_Memory = ctypes.c_char * (_KEY_BYTES + 4)  # struct { uint32_t key[624]; int pos; }


def remember_numpy(generator: Any) -> Callable[[], object]:
    """Remember a ``RandomState``, and return a function that puts it back."""
    bits = getattr(generator, "_bit_generator", None)
    memory = _memory_of(generator, bits)
    if memory is None:
        return partial(generator.set_state, generator.get_state(legacy=False))
    words = memory.raw
    # Normal numbers are made in pairs, and the second may be waiting outside of that memory.
    waiting = generator.standard_normal()
    if memory.raw == words:
        restore = partial(generator.set_state, _state(words, waiting))
        restore()
        return restore
    generator.standard_normal()
    memory.raw = words
    return partial(_put_back, generator, bits, memory, words)


def _put_back(generator: Any, bits: Any, memory: Any, words: bytes) -> None:
    if generator._bit_generator is not bits:  # replaced by numpy.random.set_bit_generator()
        generator.set_state(_state(words, None))
        return
    now = memory.raw
    generator.standard_normal()
    if memory.raw != now:  # a pair was made: none must be left waiting
        generator.standard_normal()
    memory.raw = words


def _memory_of(generator: Any, bits: Any) -> Any:
    """Return the memory of a Mersenne Twister; ``None`` for what is none, or made otherwise."""
    numpy_random = sys.modules["numpy.random"]
    if type(generator) is not numpy_random.RandomState or type(bits) is not numpy_random.MT19937:
        return None
    return _Memory.from_address(bits.ctypes.state_address) if _is_layout_known() else None


@lru_cache(maxsize=1)
def _is_layout_known() -> bool:
    """Return whether a generator's memory holds what this NumPy says of its state."""
    twister = sys.modules["numpy.random"].MT19937(1)
    state = twister.state["state"]
    expected = state["key"].astype("uint32").tobytes() + state["pos"].to_bytes(4, sys.byteorder)
    return bool(_Memory.from_address(twister.ctypes.state_address).raw == expected)


def _state(words: bytes, waiting: float | None) -> dict[str, Any]:
    """Return the state in NumPy's own form, with the normal number that is waiting."""
    key = sys.modules["numpy"].frombuffer(words, dtype="uint32", count=624)
    position = int.from_bytes(words[_KEY_BYTES:], sys.byteorder)
    return {
        "bit_generator": "MT19937",
        "state": {"key": key, "pos": position},
        "has_gauss": int(waiting is not None),
        "gauss": 0.0 if waiting is None else waiting,
    }
