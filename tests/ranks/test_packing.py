"""Nested values become bytes, and come back as they were."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import gc
import io
import pathlib
import struct
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.private import Packed, _packing, gc_paused, pack, read, unpack, write

T = torch.tensor
Pair = namedtuple("Pair", ["a", "b"])


@dataclasses.dataclass
class Boxes:
    """What a detection library's own result looks like."""

    boxes: Any
    name: str = "image"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same(vars(self), vars(other))

    __hash__ = None  # type: ignore[assignment]


class Slotted:
    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and same(self.tensor, other.tensor)

    __hash__ = None  # type: ignore[assignment]


class Color(enum.Enum):
    RED = "red"


class Tagged(Tensor):
    """A tensor that carries something along, as MONAI's and torchvision's do."""

    tag: str


def tagged(tensor: Tensor, tag: str) -> Tagged:
    result = tensor.as_subclass(Tagged)
    result.tag = tag
    return result


def same(a: Any, b: Any) -> bool:
    """Return whether two values are alike in every bit, in types, and in order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if a.is_nested:
            return all(map(same, a.unbind(), b.unbind()))
        if (a.dtype, a.shape, a.layout, a.device) != (b.dtype, b.shape, b.layout, b.device):
            return False
        if a.is_meta:
            return True
        if a.layout is not torch.strided:
            a, b = a.to_dense(), b.to_dense()
        if a.is_quantized:
            return torch.equal(a, b)
        return torch.equal(bits(a), bits(b)) and vars(a) == vars(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a.items(), b.items()))
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    return plain.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def round_trip(value: Any) -> Any:
    packed = pack(value)
    return unpack(packed.head, packed.payload())


@contextmanager
def small_limits() -> Iterator[None]:
    """Let every tensor and array go beside the pickle."""
    with mock.patch.object(_packing, "_IN_BAND", 1):
        yield


# -- round trips ----------------------------------------------------------------------------------

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]

VALUES: dict[str, Any] = {
    "None": None,
    "numbers": [0, -1, 2**70, 0.5, float("inf"), -0.0, 1j, True],
    "nan": [float("nan")],
    "strings": ["", "text", "Zürich", "図", "\udc80", "\0"],
    "bytes": [b"", b"\0\xff", bytearray(b"x" * 10_000)],
    "empty containers": [[], (), {}, set(), frozenset(), deque()],
    "sets": [{1, 2}, frozenset("ab")],
    "deque": deque([T(1), T(2)], maxlen=3),
    "ordered dict": OrderedDict(b=T(1), a=T(2)),
    "default dict": defaultdict(list, a=[T(1)]),
    "counter": collections.Counter("abca"),
    "keys of any kind": {1: "a", (2, "b"): "c", None: T(1), Color.RED: "d"},
    "named tuple": Pair(T([1]), "b"),
    "dataclass": Boxes(torch.ones(2, 4)),
    "object with slots": Slotted(torch.ones(2)),
    "enum": Color.RED,
    "from the standard library": [pathlib.PurePosixPath("a/b"), datetime.date(2020, 1, 1), 1 + 2j],
    "functions and classes by name": [len, same, Boxes],
    "torch's own": [torch.float32, torch.device("cpu"), torch.Size([1, 2])],
    "0-d": T(1.5),
    "0-d of several dtypes": [T(1.5), T(2.5), T(True), T(3)],
    "empty": torch.empty(0),
    "empty, with dimensions": [torch.empty(0, 4), torch.empty(3, 0, 2), torch.empty(0, 0)],
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "expanded": torch.ones(1, 3).expand(4, 3),
    "every other": torch.arange(10)[::2],
    "one element, and none, of any stride": [torch.arange(4)[::4], torch.arange(4)[:0:2]],
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "several channels last": [
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last) for _ in range(5)
    ],
    "conjugate": torch.rand(3, dtype=torch.complex64).conj(),
    "negative view": torch.rand(3, dtype=torch.complex64).conj().imag,
    "negative view of one element": torch.rand(1, dtype=torch.complex64).conj().imag,
    "many alike and empty": [torch.empty(n, 0, 2) for n in range(9)],
    "many alike": [torch.full((n, 4), float(n)) for n in range(20)],
    "few of each": [torch.ones(n, n + 1) for n in range(9)],
    "larger than what is joined": [torch.rand(5000, 4), T(1), torch.rand(3), torch.rand(9000)],
    "more than is joined at a time": [torch.rand(4000) for _ in range(600)],
    "dicts of ragged tensors": [
        {"boxes": torch.rand(n, 4), "scores": torch.rand(n), "labels": torch.arange(n)}
        for n in range(20)
    ],
    "arrays": [np.arange(6).reshape(2, 3), np.array(1.5), np.array(["a", "bc"]), np.float32(0.5)],
    "large arrays": [np.arange(3001.0), np.arange(6000.0).reshape(60, 100), torch.ones(3)],
    "large arrays in other layouts": [
        np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
        np.arange(9000.0)[::2],
        np.arange(9000, dtype=">i4"),
    ],
    "array of objects": np.array([None, "a", 3], dtype=object),
    "subclass": tagged(torch.rand(3), "x"),
    "sparse": torch.eye(3).to_sparse(),
    "meta": torch.empty(2, 3, device="meta"),
}


@pytest.mark.parametrize("limits", [small_limits, gc_paused], ids=["small limits", "real limits"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_comes_back_as_it_was(value: Any, limits: Callable[[], Any]) -> None:
    with limits():
        assert same(round_trip(value), value)
        assert same(round_trip([value, {"a": (value, T(1.0))}]), [value, {"a": (value, T(1.0))}])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype) -> None:
    data = torch.randint(0, 2, (48,), dtype=torch.uint8).view(dtype)
    value = [data, data[0], data[:0], [data[i:] for i in range(3)], data.reshape(3, -1), data[1]]
    assert same(round_trip(value), value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_come_back(layout: torch.layout) -> None:
    value = torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], layout=layout)
    assert same(round_trip([value, T(1)]), [value, T(1)])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_compressed_sparse_tensors_come_back() -> None:
    value = torch.eye(3).to_sparse_csr()
    assert same(round_trip([value, T(1)]), [value, T(1)])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantized_tensors_come_back_with_no_more_than_their_own_memory() -> None:
    whole = torch.quantize_per_tensor(torch.rand(1000, 3), 0.1, 0, torch.quint8)
    assert same(round_trip([whole[1], T(1)]), [whole[1], T(1)])
    assert len(pack(whole[1]).head) < 2500


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_tensors_of_onednn_become_plain_ones() -> None:
    assert same(round_trip(torch.eye(3).to_mkldnn()), torch.eye(3))


@pytest.mark.parametrize("value", [nn.Parameter(torch.rand(3)), torch.rand(3).requires_grad_() * 2])
def test_gradients_are_dropped_and_parameters_become_tensors(value: Tensor) -> None:
    for back in (round_trip(value), *round_trip([value] * 2 + [value[:2]])):
        assert type(back) is Tensor
        assert not back.requires_grad
    assert same(round_trip(value), value.detach().clone())


def test_a_sparse_tensor_with_a_gradient_comes_back_without() -> None:
    value = torch.eye(3).requires_grad_().to_sparse()
    assert same(round_trip(value), value.detach())


def test_the_same_tensor_twice_is_sent_once_and_is_one_object_again() -> None:
    tensor = torch.rand(100)
    with small_limits():
        packed = pack([tensor, {"again": tensor}])
    assert packed.size == 400
    first, second = unpack(packed.head, packed.payload())
    assert second["again"] is first


def test_a_value_that_contains_itself_comes_back_so() -> None:
    value: list[Any] = [T(1)]
    value.append(value)
    back = round_trip(value)
    assert back[1] is back


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_device_come_to_the_cpu() -> None:
    value = [
        torch.rand(3),
        tagged(torch.rand(2), "x"),
        torch.rand(5000, 4),
        torch.eye(3).to_sparse(),
    ]
    moved = [tensor.cuda() for tensor in value]
    moved[1].tag = "x"  # type: ignore[attr-defined]
    assert same(round_trip([moved, value]), [value, value])


# -- the law --------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Draw a tensor of any dtype, shape and layout in memory, of any bits."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    step = draw(st.sampled_from([1, 1, 1, 2]))
    count = step
    for size in shape:
        count *= size
    high = 2 if dtype is torch.bool else 256
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    data = torch.randint(0, high, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    tensor = data.view(dtype)[::step].view(shape) if step == 1 else data.view(dtype)[::step]
    if step != 1:
        tensor = tensor.as_strided(shape, [step * s for s in torch.empty(shape).stride()])
    if len(shape) > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    return tensor


def arrays() -> st.SearchStrategy[Any]:
    return st.builds(
        lambda dtype, count, step: np.arange(count * step).astype(dtype)[::step],
        st.sampled_from(["f4", "i8", "?", "c16", "U3"]),
        st.integers(0, 20),
        st.integers(1, 2),
    )


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.binary(max_size=5)
    | tensors()
    | arrays()
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Boxes, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=25,
)


@given(NESTED, st.booleans())
def test_whatever_is_packed_is_unpacked_and_fills_the_payload(value: Any, small: bool) -> None:
    with small_limits() if small else gc_paused():
        packed = pack(value)
    pieces = list(packed.pieces)
    assert sum(map(len, pieces)) == packed.size
    assert all(piece.dtype is torch.uint8 and piece.ndim == 1 for piece in pieces)
    payload = packed.payload()
    assert torch.equal(payload, torch.cat([torch.empty(0, dtype=torch.uint8), *pieces]))
    back = unpack(packed.head, payload)
    assert same(back, value)
    for tensor in tensors_in(back):
        if tensor.numel():
            assert inside(tensor, payload) is small
            assert tensor.data_ptr() % tensor.dtype.itemsize == 0


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Boxes):
        yield from tensors_in(value.boxes)


def inside(tensor: Tensor, payload: Tensor) -> bool:
    begin = payload.data_ptr()
    return begin <= tensor.data_ptr() <= begin + payload.nbytes - tensor.nbytes


# -- the payload ----------------------------------------------------------------------------------


def test_pieces_begin_at_multiples_of_16_bytes() -> None:
    value = [torch.ones(n, dtype=d) for n in (1, 5, 70_001) for d in (torch.bool, torch.complex128)]
    with small_limits():
        packed = pack([*value, np.ones(5001, dtype=np.int8)])
    position, begins = 0, []
    for piece in packed.pieces:
        if piece.any():  # no padding
            begins.append(position)
        position += len(piece)
    assert len(begins) == 7
    assert all(begin % 16 == 0 for begin in begins)
    assert packed.size % 16 == 0


def test_large_tensors_and_arrays_are_sent_from_where_they_lie() -> None:
    large = [torch.rand(100, 1000), torch.rand(20_000), torch.rand(50, 2000)[10:20]]
    array = np.random.default_rng(0).random(10_000)
    packed = pack([large, array, T(1)])
    found = {piece.data_ptr() for piece in packed.pieces}
    assert found >= {tensor.data_ptr() for tensor in large}
    assert array.ctypes.data in found


def test_pieces_can_be_asked_for_again() -> None:
    packed = pack([torch.rand(3), torch.rand(9000)])
    assert all(map(torch.equal, packed.pieces, packed.pieces))


def test_a_value_without_tensors_has_no_payload() -> None:
    packed = pack({"a": [1, "b"]})
    assert packed.size == 0
    assert list(packed.pieces) == []


def test_what_comes_back_can_be_written_to_and_is_the_payload_itself() -> None:
    with small_limits():
        packed = pack([torch.zeros(2), torch.zeros(3), np.zeros(1000)])
    payload = packed.payload()
    first, _, array = unpack(packed.head, payload)
    first += 1
    array += 1
    again = unpack(packed.head, payload)
    assert again[0].tolist() == [1, 1]
    assert again[1].tolist() == [0, 0, 0]
    assert again[2].sum() == 1000


def test_a_read_only_array_comes_back_read_only() -> None:
    array = np.zeros(1000)
    array.flags.writeable = False
    assert not round_trip(array).flags.writeable


def test_what_comes_back_keeps_the_payload_alive() -> None:
    packed = pack([np.arange(1000.0), torch.arange(1000.0)])
    array, tensor = unpack(packed.head, packed.payload())
    gc.collect()
    junk = [torch.full((1000,), -1.0) for _ in range(50)]
    assert array.tolist() == tensor.tolist() == list(range(1000))
    del junk


def test_a_value_packed_in_inference_mode_is_an_ordinary_one_again() -> None:
    with torch.inference_mode():
        packed = pack([torch.ones(2), torch.ones(9000), torch.ones(3)])
        payload = packed.payload().clone()
    with torch.inference_mode(False):
        payload = payload.clone()
    with torch.inference_mode():
        back = unpack(packed.head, payload)
    assert not any(tensor.is_inference() for tensor in back)


PAYLOADS: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda p: p[:-1], "must have 32 bytes, as the head says, got 31"),
    (lambda p: torch.cat([p, p]), "must have 32 bytes, as the head says, got 64"),
    (lambda p: p.view(torch.int8), r"got torch.int8 of shape \(32,\)"),
    (lambda p: p.view(2, 16), r"got torch.uint8 of shape \(2, 16\)"),
    (lambda p: p.to("meta"), "on meta"),
    (lambda p: torch.cat([p[:1], p])[1:], r"begin at a multiple of 16 bytes.* offset 1;"),
    (lambda p: torch.stack([p, p], 1)[:, 0], "must be contiguous.* stride 2"),
]


@pytest.mark.parametrize(("spoil", "words"), PAYLOADS)
def test_a_payload_of_another_kind_is_an_error(
    spoil: Callable[[Tensor], Tensor], words: str
) -> None:
    with small_limits():
        packed = pack([torch.ones(3), torch.ones(2, dtype=torch.float64)])
    with pytest.raises(ValueError, match=words):
        unpack(packed.head, spoil(packed.payload()))


def test_a_part_of_what_was_received_will_do_if_it_is_aligned() -> None:
    with small_limits():
        packed = pack([torch.ones(3), torch.ones(2, dtype=torch.float64)])
    received = torch.cat([packed.payload(), packed.payload()])
    assert same(unpack(packed.head, received[32:]), round_trip(unpack(packed.head, received[32:])))


# -- what cannot be sent --------------------------------------------------------------------------


class Held:
    def __init__(self, value: Any) -> None:
        self.value = value


class Unwilling:
    def __reduce__(self) -> Any:
        raise RuntimeError("holds a connection")


class Full:
    def __reduce__(self) -> Any:
        raise MemoryError


def local() -> Any:
    class Local:
        pass

    return Local


NOT_SENT: list[tuple[Any, str]] = [
    (lambda: 1, r"<lambda>, defined in .*test_packing\.py:\d+ \("),
    ([{"a": 1, "f": lambda: 1}], r"<lambda>, defined in .*, under the key 'f' of a dict"),
    ((1, [T(1), lambda: 1]), r"<lambda>, .*, item 1 of a list"),
    (Held(lambda: 1), r"<lambda>, .*, attribute 'value' of a Held"),
    (local(), r"the class .*test_packing\.local\.<locals>\.Local"),
    ({"a": [local()()]}, r"an object of .*test_packing\.local\.<locals>\.Local, item 0 of a list"),
    ([iter([1]), (x for x in ())], r"an object of builtins\.generator, item 1 of a list"),
    (
        {"a": Unwilling()},
        r"an object of .*Unwilling, under the key 'a' of a dict \(holds a connection\)",
    ),
    ({1: {lambda: 1: 2}}, r"<lambda>, .*, a key of a dict"),
]


@pytest.mark.parametrize(("value", "words"), NOT_SENT)
def test_what_cannot_be_sent_is_named(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=r"^cannot be sent to other processes: " + words) as caught:
        pack(value)
    assert caught.value.__cause__ is not None
    assert "pre_eval=" in str(caught.value)


def test_running_out_of_memory_is_no_fault_of_the_value() -> None:
    with pytest.raises(MemoryError):
        pack([Full()])


def test_a_list_that_holds_itself_and_what_cannot_be_sent_is_refused_too() -> None:
    value: list[Any] = []
    value.append([value, lambda: 1])
    with pytest.raises(TypeError, match=r"<lambda>, .*, item 1 of a list"):
        pack(value)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.bin", "Zürich 図.bin"])
def test_a_value_is_written_to_a_file_and_read_back(name: str, tmp_path: Path) -> None:
    value = {"a": [torch.rand(n, 4) for n in range(9)], "b": torch.rand(9000), "c": np.ones(2000)}
    with (tmp_path / name).open("wb", buffering=0) as file:
        write(pack(value), file)
    assert same(read(tmp_path / name), value)
    assert same(read(str(tmp_path / name)), value)


@pytest.mark.parametrize("value", [None, [], torch.empty(0), "text"], ids=repr)
def test_a_value_without_a_payload_is_written_too(value: Any, tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        write(pack(value), file)
    assert same(read(tmp_path / "f"), value)


def test_what_was_read_can_be_changed_and_the_file_removed(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with file.open("wb") as opened:
        write(pack([torch.zeros(3000), np.zeros(3000)]), opened)
    before = file.read_bytes()
    tensor, array = read(file)
    tensor += 1
    array += 1
    assert file.read_bytes() == before
    file.unlink()
    assert tensor.sum() == array.sum() == 3000


class Slow(io.BytesIO):
    """A file that takes a few bytes at a time, as unbuffered ones may."""

    def write(self, data: Any) -> int:
        return super().write(data[:7])


def test_a_file_that_takes_only_a_part_is_given_the_rest() -> None:
    whole, slow = io.BytesIO(), Slow()
    packed = pack([torch.rand(10), "text"])
    write(packed, whole)
    write(packed, slow)
    assert slow.getvalue() == whole.getvalue()


SPOILED: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda b: b"", "holds no packed value"),
    (lambda b: b[:20], "holds no packed value"),
    (lambda b: b"x" + b[1:], "holds no packed value"),
    (lambda b: b[:30], "not written to its end"),
    (lambda b: b[:-1], r"must have \d+ bytes, as it says itself, and has \d+"),
    (lambda b: b + b"x", "or changed since"),
    (lambda b: b[:8] + struct.pack("<QQ", 2**40, 2**62) + b[24:], "must have 4611"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILED)
def test_a_file_that_is_incomplete_or_another_is_an_error(
    spoil: Callable[[bytes], bytes], words: str, tmp_path: Path
) -> None:
    file = io.BytesIO()
    write(pack(torch.rand(10)), file)
    (tmp_path / "f").write_bytes(spoil(file.getvalue()))
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "f")


# -- the garbage collector ------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        assert round_trip([1]) == [1]
        assert gc.isenabled() is enabled
        with pytest.raises(TypeError):
            pack(lambda: 1)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_nothing_but_the_payload_stays_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        value = [Held(T(1))]
        packed: Packed | None = pack(value)
        del packed
        assert gc.get_referrers(value[0]) == [value]
    finally:
        gc.enable()
