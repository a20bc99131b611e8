"""What a state must be for ``torch.load(weights_only=True)``, and how it becomes that."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import importlib.util
import io
import pathlib
import sys
import types
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import _plain, to_plain

Point = namedtuple("Point", "x y")


class Phase(enum.Enum):
    WARM = "warm"


class StrPhase(str, enum.Enum):
    WARM = "warm"


class IntPhase(enum.IntEnum):
    WARM = 1


class PairPhase(tuple[int, int], enum.Enum):
    WARM = (1, 2)


class OwnDict(dict[str, Any]):
    pass


class OwnList(list[Any]):
    pass


class OwnFloat(float):
    pass


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


def function() -> None:
    pass


def reload(state: Any) -> Any:
    """Save and load as the package does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(left: Any, right: Any) -> bool:
    """Compare type by type, tensors by value."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return [*left] == [*right] and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


ACCEPTED = {
    "bool": True,
    "int": -7,
    "longest int": 2**2039 - 1,
    "most negative int": -(2**2039) + 1,
    "float": 0.5,
    "nan": float("nan"),
    "complex": 1 + 2j,
    "str": "mIoU µ",
    "empty str": "",
    "bytes": bytes(range(256)),
    "None": None,
    "Size": torch.Size([2, 3]),
    "device": torch.device("cuda", 1),
    "dtype": torch.bfloat16,
    "tensor": torch.arange(3),
    "0-d tensor": torch.tensor(1.5),
    "bool tensor": torch.tensor([True, False]),
    "half tensor": torch.zeros(2, dtype=torch.bfloat16),
    "complex tensor": torch.zeros(2, dtype=torch.complex64),
    "Parameter": torch.nn.Parameter(torch.ones(2)),
    "list": [1, [2.0, "three"]],
    "tuple": (1, (2, ()), [None]),
    "dict": {"a": 1, 2: "b", None: 0.0, (1, "x"): [], torch.float32: 1, True: False},
    "OrderedDict": OrderedDict(b=1, a=2),
    "empty containers": [{}, [], (), OrderedDict()],
    "state of Python's generator": __import__("random").Random(1).getstate(),
}


@pytest.mark.parametrize("value", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_plain_value_is_returned_as_the_same_object_and_loads(value: Any) -> None:
    state = {"deep": [value]}
    assert to_plain(state, "to_save['x']") is state
    assert same(reload(state), state)


CONVERTED = [
    (np.float64(0.1), 0.1),
    (np.float32(0.5), 0.5),
    (np.int64(-3), -3),
    (np.uint8(3), 3),
    (np.bool_(True), True),
    (np.complex128(1j), 1j),
    (np.str_("mIoU"), "mIoU"),
    (np.bytes_(b"x"), b"x"),
    (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64)),
    (np.array(3), torch.tensor(3)),
    (np.array([True]), torch.tensor([True])),
    (np.zeros((0, 3), np.float32), torch.zeros(0, 3)),
    (np.arange(6).reshape(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]])),
    (np.arange(4)[::-1], torch.tensor([3, 2, 1, 0])),
    (np.array([1, 2], ">i4"), torch.tensor([1, 2], dtype=torch.int32)),
    (np.array([1, 2], np.uint32), torch.tensor([1, 2], dtype=torch.uint32)),
    (Point(1, np.float64(2.0)), (1, 2.0)),
    (torch.ones(2, 2).max(dim=0), (torch.ones(2), torch.zeros(2, dtype=torch.int64))),
    (defaultdict(list, a=[np.int64(1)]), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (OwnDict(a=1), {"a": 1}),
    (OwnList([1]), [1]),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    ({np.int64(1): "a", np.str_("b"): 2}, {1: "a", "b": 2}),
    ({(np.int64(1), "a"): 0}, {(1, "a"): 0}),
    (OrderedDict(b=np.int64(1), a=2), OrderedDict(b=1, a=2)),
]


@pytest.mark.parametrize(("value", "plain"), CONVERTED, ids=lambda v: f"{type(v).__name__}")
def test_a_foreign_value_becomes_a_plain_one_that_loads(value: Any, plain: Any) -> None:
    state = {"deep": (value,)}
    found = to_plain(state, "to_save['x']")
    assert same(found, {"deep": (plain,)})
    assert same(reload(found), found)


def test_the_original_is_not_changed() -> None:
    state = {"a": [np.float64(1.0)], "b": Point(1, 2)}
    to_plain(state, "to_save['x']")
    assert type(state["a"][0]) is np.float64
    assert type(state["b"]) is Point


def test_a_converted_array_does_not_change_with_its_original() -> None:
    array = np.zeros(2)
    found = to_plain(array, "to_save['x']")
    array[:] = 1
    assert found.tolist() == [0.0, 0.0]


def test_a_read_only_array_and_a_memory_map_become_tensors(tmp_path: pathlib.Path) -> None:
    array = np.arange(3)
    array.setflags(write=False)
    mapped = np.memmap(tmp_path / "x", dtype=np.int64, mode="w+", shape=(3,))
    mapped[:] = array
    for value in (array, mapped):
        assert same(reload(to_plain(value, "x")), torch.arange(3))


def test_only_the_containers_around_a_change_are_made_anew() -> None:
    untouched = {"weights": [torch.ones(1)]}
    state = {"model": untouched, "best": {"score": np.float64(0.5)}}
    found = to_plain(state, "to_save['x']")
    assert found is not state
    assert found["model"] is untouched


def test_the_version_numbers_of_a_module_state_survive() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert to_plain(state, "to_save['model']") is state
    assert reload(to_plain(state, "to_save['model']"))._metadata == state._metadata

    state["extra"] = np.float64(1.0)
    found = to_plain(state, "to_save['model']")
    assert found["extra"] == 1.0
    assert type(found["extra"]) is float
    assert found._metadata is state._metadata
    assert reload(found)._metadata == state._metadata


def test_what_is_set_on_a_module_state_is_made_plain_too() -> None:
    state = OrderedDict(a=1)
    state._metadata = {"": {"version": np.int64(2)}}  # type: ignore[attr-defined]
    found = to_plain(state, "to_save['model']")
    assert type(found._metadata[""]["version"]) is int
    assert reload(found)._metadata == {"": {"version": 2}}


def test_what_was_shared_stays_shared() -> None:
    shared = [np.float64(1.0)]
    array = np.zeros(2)
    found = to_plain({"a": shared, "b": shared, "c": array, "d": array}, "x")
    assert found["a"] is found["b"]
    assert found["c"] is found["d"]


def test_sharing_without_end_takes_no_time() -> None:
    value: Any = np.float64(1.0)
    for _ in range(60):
        value = [value, value]
    found = to_plain(value, "x")
    assert found[0] is found[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    ],
)
def test_the_states_of_torch_are_plain(make: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    for item in (model, optimizer, scheduler):
        state = item.state_dict()
        assert to_plain(state, "x") is state
        reload(state)


def refused(value: Any) -> str:
    with pytest.raises(TypeError) as caught:
        to_plain({"phase": [0, value]}, "to_save['scheduler']")
    return str(caught.value)


REFUSED = [
    (Phase.WARM, "is a Phase (test_plain.Phase)", "its .value"),
    (StrPhase.WARM, "is a StrPhase (test_plain.StrPhase)", "its .value"),
    (IntPhase.WARM, "is an IntPhase (test_plain.IntPhase)", "its .value"),
    (PairPhase.WARM, "is a PairPhase (test_plain.PairPhase)", "its .value"),
    (Settings(), "is a Settings (test_plain.Settings)", "dataclasses.asdict()"),
    ({1}, "is a set", "a sorted list"),
    (frozenset(), "is a frozenset", "a sorted list"),
    (bytearray(b"x"), "is a bytearray", "numbers, strings"),
    (function, "is a function", "leave it out"),
    (functools.partial(int), "is a partial (functools.partial)", "leave it out"),
    (OwnFloat(1.0), "is an OwnFloat (test_plain.OwnFloat)", "numbers, strings"),
    (pathlib.PurePosixPath("x"), "is a PurePosixPath (pathlib", "as a string"),
    (datetime.date(2020, 1, 1), "is a date (datetime.date)", "numbers, strings"),
    (torch.Generator(), "is a Generator (torch._C.Generator)", "numbers, strings"),
    (torch.strided, "is a layout (torch.layout)", "numbers, strings"),
    (np.array(["a"]), "is an array of <U1, which no tensor can hold", "numbers, strings"),
    (np.array([object()]), "is an array of object", "numbers, strings"),
    (np.datetime64("2020-01-01"), "is a datetime64 (numpy.datetime64)", "numbers, strings"),
    (np.longdouble(1), "is a longdouble (numpy.longdouble)", "numbers, strings"),
    (np.ma.array([1]), "is a MaskedArray (numpy.ma", "numbers, strings"),
    (torch.nn.UninitializedParameter(), "is an UninitializedParameter", "run one batch"),
    (b"", "is b''", "None"),
    (2**2039, "is an integer of 2040 bits", "a string"),
]


@pytest.mark.parametrize(("value", "what", "advice"), REFUSED, ids=[what for _, what, _ in REFUSED])
def test_a_foreign_type_is_refused_by_place_and_name(value: Any, what: str, advice: str) -> None:
    words = refused(value)
    assert words.startswith(f"to_save['scheduler']: state['phase'][1] {what}")
    assert "weights_only=True" in words or "no tensor can hold" in words
    assert advice in words.rpartition(";")[2]


@pytest.mark.parametrize("value", [b"", 2**2039, Phase.WARM, torch.nn.UninitializedParameter()])
def test_what_is_refused_would_indeed_not_load(value: Any) -> None:
    with pytest.raises(Exception, match="Weights only load failed"):
        reload([value])


class OwnTensor(torch.Tensor):
    pass


def test_a_subclass_of_tensor_is_refused() -> None:
    words = refused(torch.ones(1).as_subclass(OwnTensor))
    assert "is an OwnTensor (test_plain.OwnTensor)" in words
    assert "a plain torch.Tensor" in words


def test_what_hangs_on_a_tensor_counts() -> None:
    tensor = torch.ones(1)
    tensor.tag = "x"  # type: ignore[attr-defined]
    assert to_plain(tensor, "x") is tensor
    reload(tensor)
    tensor.tag = function  # type: ignore[attr-defined]
    assert "state['phase'][1].tag is a function" in refused(tensor)
    tensor.tag = np.float64(1)  # type: ignore[attr-defined]
    assert "state['phase'][1] has attributes" in refused(tensor)


def test_a_foreign_key_and_a_foreign_root_are_named() -> None:
    with pytest.raises(TypeError, match=r"^x: state \(the key <Phase.WARM: 'warm'>\) is a Phase"):
        to_plain({Phase.WARM: 1}, "x")
    with pytest.raises(TypeError, match=r"^x: state is a set, which"):
        to_plain(set(), "x")


def test_a_state_that_contains_itself_is_an_error_in_words() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = [loop, loop]
    with pytest.raises(TypeError, match=r"state\['a'\]\[0\]\['a'\]\.\.\. is nested more than 100"):
        to_plain(loop, "x")


def test_a_deep_state_is_accepted_up_to_the_limit_and_loads() -> None:
    value: Any = 1
    for _ in range(100):
        value = [value]
    assert to_plain(value, "x") is value
    assert reload(value) == value
    with pytest.raises(TypeError, match="nested more than 100 levels"):
        to_plain([[value]], "x")


def test_complex_is_refused_where_torch_cannot_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plain, "_reads_complex", lambda: False)
    assert "is a complex number" in refused(1j)


def test_numpy_is_not_needed_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)  # importing it is an error from here on
    spec = importlib.util.spec_from_file_location(
        "ignite_evalhook._files._plain_again", _plain.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    state = {"a": (1, [2.0])}
    assert again.to_plain(state, "x") is state
    with pytest.raises(TypeError, match=r"state\[0\] is a set"):
        again.to_plain([{1}], "x")


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(min_size=1)
    | st.floats(allow_nan=False).map(np.float64)
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
    | st.lists(st.floats(allow_nan=False), max_size=3).map(np.array)
)
states = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
        | st.dictionaries(st.text(), inner, max_size=3).map(lambda d: defaultdict(int, d))
        | st.tuples(inner, inner).map(lambda pair: Point(*pair))
    ),
    max_leaves=12,
)


@given(states)
def test_every_plain_state_loads_and_is_plain_already(state: Any) -> None:
    plain = to_plain(state, "x")
    assert same(reload(plain), plain)
    assert to_plain(plain, "x") is plain
