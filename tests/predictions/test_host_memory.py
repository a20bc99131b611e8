"""Copies of many batches stand in few pieces of memory, and open as what they were."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import JOINABLE, HostMemory, _host_memory, length_of, opened


@pytest.mark.parametrize("dtype", sorted(JOINABLE, key=str))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 2), (2, 0), (3, 2), (2, 3, 4)])
def test_a_copied_tensor_opens_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape).mul(9).to(dtype)
    found = opened(HostMemory().tensor(tensor))
    assert found.dtype is dtype
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3).T,
        torch.ones(1).expand(4, 3),
        torch.view_as_complex(torch.rand(3, 2)).conj(),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.ones(3, requires_grad=True) * 2,
        torch.eye(2).to_sparse(),
        torch.ones(2).to(torch.float8_e4m3fn),
    ],
)
def test_tensors_of_any_stride_layout_and_dtype_are_copied(tensor: torch.Tensor) -> None:
    found = opened(HostMemory().tensor(tensor))
    assert found.dtype is tensor.dtype
    assert not found.requires_grad
    assert found.to_dense().to(tensor.dtype).tolist() == tensor.to_dense().tolist()


def test_copies_do_not_touch_one_another() -> None:
    memory = HostMemory()
    copies = [memory.tensor(torch.full((i,), i % 256, dtype=torch.uint8)) for i in range(2000)]
    for i, copy in enumerate(copies):
        opened(copy).add_(1)
        assert opened(copy).tolist() == [(i + 1) % 256] * i


def test_a_tensor_that_is_saved_takes_no_other_batch_with_it() -> None:
    memory = HostMemory()
    first, _ = memory.tensor(torch.ones(10)), memory.tensor(torch.ones(10_000))
    file = io.BytesIO()
    torch.save(opened(first), file)
    assert opened(first).untyped_storage().nbytes() == 40
    assert len(file.getvalue()) < 10_000


def test_many_batches_share_few_pieces_and_large_ones_have_their_own() -> None:
    memory = HostMemory()
    copies = [memory.tensor(torch.ones(8000)) for _ in range(1000)]
    pieces = {id(copy[0]): len(copy[0]) for copy in copies}
    assert len(pieces) < 20
    assert max(pieces.values()) <= _host_memory._PIECE
    large = memory.tensor(torch.ones(1_000_000))
    assert len(large[0]) == 4_000_000


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6).reshape(2, 3)[::-1, ::-1],
        np.array(5.5),
        np.zeros((0, 3)),
        np.array(["a", "bc"]),
        np.array([{}, None], dtype=object),
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        np.ma.masked_array([1, 2], mask=[True, False]),
    ],
)
def test_a_copied_array_opens_as_it_was(value: np.ndarray) -> None:
    found = opened(HostMemory().array(value))
    assert type(found) is type(value)
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert repr(found.tolist()) == repr(value.tolist())
    assert not np.shares_memory(found, value) or not value.size


@given(
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
        st.lists(st.integers(), max_size=40),
        st.builds(lambda a, n: list(range(a, a + n)), st.integers(-9, 9), st.integers(0, 40)),
        st.lists(st.text(max_size=2), max_size=3),
    )
)
def test_copied_numbers_open_as_they_were(values: Sequence[int]) -> None:
    assert list(opened(HostMemory().numbers(values))) == values


def test_numbers_in_a_row_are_kept_as_a_range() -> None:
    assert HostMemory().numbers(list(range(500, 600))) == range(500, 600)


def test_objects_of_several_batches_stand_in_one_list() -> None:
    memory = HostMemory()
    first = memory.objects(["a", memory.tensor(torch.ones(2))])
    second = memory.objects(("b",))
    assert first.everything is second.everything
    assert str(opened(first)) == "['a', tensor([1., 1.])]"
    assert opened(second) == ["b"]


def test_the_same_numbers_again_share_a_copy() -> None:
    memory = HostMemory()
    sizes = [(i * i) % 7 for i in range(40)]
    first, again = memory.numbers(sizes), memory.numbers(sizes)
    other = memory.numbers(sizes[::-1])
    assert first is again
    assert list(opened(other)) == sizes[::-1]
    assert list(opened(first)) == sizes


def test_how_many_there_are_is_told_without_opening() -> None:
    memory = HostMemory()
    memory.objects(["x"])
    for kept in (
        memory.tensor(torch.ones(5, 2)),
        memory.array(np.ones((5, 2))),
        memory.numbers([3, 1, 4, 1, 5]),
        memory.objects("abcde"),
        torch.ones(5),
        list("abcde"),
    ):
        assert length_of(kept) == 5
    assert length_of(memory.numbers([9, 1] * 10)) == 20
