"""What happens inside quiet() leaves no trace in training."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from helpers.private import _rng, quiet


class BodyError(Exception):
    pass


def flags(*models: nn.Module) -> list[bool]:
    return [module.training for model in models for module in model.modules()]


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def bits(tensor: torch.Tensor | None) -> bytes | None:
    """Every bit of the values, so that NaN equals itself and -0.0 is not 0.0."""
    if tensor is None:
        return None
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy())


def same_bits(one: Any, two: Any) -> bool:
    """Whether two nested states are equal, their order and every bit of their tensors too."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and bits(one) == bits(two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same_bits(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same_bits, one, two))
    return bool(one == two)


# Training flags ---------------------------------------------------------------------------------


def all_in_train(model: nn.Module) -> None:
    model.train()


def all_in_eval(model: nn.Module) -> None:
    model.eval()


def frozen_batch_norm(model: nn.Sequential) -> None:
    model[1].eval()


def only_the_root_in_eval(model: nn.Sequential) -> None:
    model.training = False


@pytest.mark.parametrize(
    "stand", [all_in_train, all_in_eval, frozen_batch_norm, only_the_root_in_eval]
)
@pytest.mark.parametrize(
    "body",
    [lambda m: None, lambda m: m.train(), lambda m: m.eval(), lambda m: m[3].train()],
    ids=["nothing", "train()", "eval()", "one layer in train()"],
)
@pytest.mark.parametrize("eval_mode", [True, False])
def test_each_module_gets_its_own_flag_back(
    stand: Callable[[nn.Module], None], body: Callable[[nn.Module], None], eval_mode: bool
) -> None:
    model = small_model()
    stand(model)
    before = flags(model)
    with quiet([model], eval_mode=eval_mode):
        assert flags(model) == ([False] * len(before) if eval_mode else before)
        body(model)
    assert flags(model) == before


class NormEval(nn.Sequential):
    """Keeps its BatchNorm in eval mode whenever it is told to train, as backbones do."""

    def train(self, mode: bool = True) -> NormEval:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.training = False
        return self


def test_an_overridden_train_is_called_for_eval_and_back() -> None:
    calls: list[bool] = []

    class Recorded(NormEval):
        def train(self, mode: bool = True) -> NormEval:
            calls.append(mode)
            return super().train(mode)

    model = Recorded(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model.train()
    model[2].eval()
    before = flags(model)
    assert before == [True, True, False, False]
    calls.clear()
    with quiet([model]):
        assert flags(model) == [False] * 4
    assert calls == [False, True]
    assert flags(model) == before


def test_an_overridden_train_is_not_called_when_its_flag_did_not_change() -> None:
    class Recorded(nn.Linear):
        calls = 0

        def train(self, mode: bool = True) -> Recorded:
            Recorded.calls += 1
            return super().train(mode)

    model = Recorded(2, 2)
    model.eval()
    Recorded.calls = 0
    with quiet([model], eval_mode=False):
        pass
    assert Recorded.calls == 0


def test_an_overridden_eval_is_called() -> None:
    class Mode(nn.Linear):
        fused = False

        def eval(self) -> Mode:
            self.fused = True
            return super().eval()

    model = nn.Sequential(Mode(2, 2))
    root = Mode(2, 2)
    with quiet([model, root]):
        assert root.fused
        assert flags(model, root) == [False] * 3
    assert flags(model, root) == [True] * 3


def test_a_train_replaced_on_the_object_is_respected() -> None:
    model = small_model()
    model[2].train = lambda mode=True: model[2]  # the usual trick against train() and eval()
    with quiet([model]):
        assert flags(model) == [False, False, False, True, False]
    assert flags(model) == [True] * 5


def test_children_hidden_from_eval_stay_as_they_are() -> None:
    class Hiding(nn.Sequential):
        def children(self) -> Iterator[nn.Module]:
            return iter(())

    model = Hiding(nn.Dropout())
    with quiet([model]):
        assert flags(model) == [False, True]
    assert flags(model) == [True, True]


class MergingLinear(nn.Linear):
    """Adds its low-rank part to the weight in eval mode and takes it off in train mode."""

    def __init__(self, log: list[str] | None = None, name: str = "") -> None:
        super().__init__(2, 2)
        self.merged = False
        self.log = ([] if log is None else log).append  # a list would be put back
        self.name = name
        with torch.no_grad():
            self.weight.fill_(1.0)

    def train(self, mode: bool = True) -> MergingLinear:
        super().train(mode)
        if self.merged == mode:
            self.log(f"{self.name}{'takes off' if mode else 'adds'}")
            self.weight.data += -0.5 if mode else 0.5  # exact, unlike a real low-rank part
            self.merged = not mode
        return self


@pytest.mark.parametrize("outer", [nn.Sequential, NormEval])
def test_layers_that_merge_in_eval_mode_end_as_they_began(outer: type[nn.Sequential]) -> None:
    model = outer(MergingLinear(), MergingLinear())
    model[1].eval()
    assert [layer.merged for layer in model] == [False, True]
    with quiet([model]):
        assert [layer.merged for layer in model] == [True, True]
        assert model[0].weight.tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert [layer.merged for layer in model] == [False, True]
    assert [layer.weight[0, 0].item() for layer in model] == [1.0, 1.5]
    assert flags(model) == [True, True, False]


def test_overridden_trains_are_called_outer_before_inner() -> None:
    log: list[str] = []

    class Outer(MergingLinear):
        def __init__(self) -> None:
            super().__init__(log, "outer ")
            self.inner = MergingLinear(log, "inner ")

        def train(self, mode: bool = True) -> Outer:
            self.training = mode  # does not tell its children
            if mode:
                log.append("outer")
            return self

    model = Outer()
    with quiet([model, model.inner]):
        assert model.inner.merged
        log.clear()
    assert log == ["outer", "inner takes off"]
    assert not model.inner.merged


def test_what_a_train_does_on_the_way_back_leaves_no_trace_either() -> None:
    class Restless(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Restless:
            if self.running_mean is not None:
                self.running_mean += torch.rand(2)
            return super().train(mode)

    model = Restless(2)
    before, state = model.running_mean.tolist(), torch.get_rng_state()
    with quiet([model]):
        assert model.running_mean.tolist() != before
    assert model.running_mean.tolist() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_shared_by_roots_is_handled_once() -> None:
    log: list[str] = []
    shared = MergingLinear(log)
    one, two = nn.Sequential(shared), nn.Sequential(nn.Dropout(), shared)
    two.eval()
    shared.train()
    log.clear()
    with quiet([one, two, one]):
        assert flags(one, two) == [False] * 5
    assert log == ["adds", "takes off"]
    assert flags(one, two) == [True, True, False, False, True]


def test_a_module_that_contains_itself_ends_the_walk() -> None:
    model = nn.Sequential(nn.Dropout())
    model[0].add_module("parent", model)
    model[0].add_module("nothing", None)
    model.training = False
    with quiet([model], eval_mode=False):
        model.training, model[0].training = True, False
    assert (model.training, model[0].training) == (False, True)


def test_a_training_property_is_set_through_its_setter() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._wrapped = [module]
            self.training = True

        @property
        def training(self) -> bool:
            return self._wrapped[0].training

        @training.setter
        def training(self, flag: bool) -> None:
            if "_wrapped" in vars(self):
                self._wrapped[0].training = flag

    inner = nn.Dropout()
    model = nn.Sequential(Wrapper(inner))
    with quiet([model]):
        assert not inner.training
    assert inner.training


# Buffers ----------------------------------------------------------------------------------------


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("hidden", torch.tensor([4, 5]), persistent=False)
        self.register_buffer("none", None)
        self.register_buffer("z", torch.tensor(7))
        self.bn = nn.BatchNorm1d(2)
        self.bare = nn.Linear(2, 2)


def train_the_batch_norm(m: Buffered) -> None:
    m.bn.train()
    m.bn(torch.randn(5, 2))


def mutate_and_replace(m: Buffered) -> None:
    m.a.mul_(3)
    m.a = torch.zeros(3)


def delete_and_register_persistent(m: Buffered) -> None:
    del m.hidden
    m.register_buffer("hidden", torch.zeros(1))


def flip_to_hidden(m: Buffered) -> None:
    del m.a
    m.register_buffer("a", torch.zeros(3), persistent=False)


def put_at_the_end(m: Buffered) -> None:
    m._buffers["a"] = m._buffers.pop("a")


def write_in_inference_mode(m: Buffered) -> None:
    with torch.inference_mode():
        m.a.add_(1)
        m.z = m.z + 1


def assign_data(m: Buffered) -> None:
    m.a.data = torch.zeros(7, dtype=torch.float16)


def swap(m: Buffered) -> None:
    m.a, m.bn.running_mean = m.bn.running_mean, m.a


@pytest.mark.parametrize(
    "body",
    [
        lambda m: None,
        lambda m: m.a.add_(1),
        lambda m: m.a.data.add_(1),
        assign_data,
        lambda m: m.a.resize_(2).zero_(),
        lambda m: setattr(m, "a", torch.zeros(3)),
        mutate_and_replace,
        lambda m: setattr(m, "a", None),
        lambda m: setattr(m, "none", torch.ones(2)),
        lambda m: delattr(m, "a"),
        lambda m: delattr(m, "hidden"),
        delete_and_register_persistent,
        flip_to_hidden,
        put_at_the_end,
        lambda m: m.register_buffer("new", torch.ones(1)),
        lambda m: m.bare.register_buffer("new", torch.ones(1)),
        lambda m: m.bare.register_buffer("new", torch.ones(1), persistent=False),
        train_the_batch_norm,
        lambda m: m.bn.reset_running_stats(),
        lambda m: m.z.add_(1),
        swap,
        write_in_inference_mode,
    ],
    ids=[
        "nothing", "in place", "through .data", "assigned to .data", "shrunk",
        "replaced", "written and replaced", "set to None", "None set", "deleted",
        "hidden deleted", "hidden registered as persistent", "registered as hidden",
        "another order", "registered", "registered where none was", "hidden where none was",
        "batch norm trained", "statistics reset", "0-d", "swapped", "inference mode",
    ],
)  # fmt: skip
def test_buffers_come_back_bit_for_bit(body: Callable[[Buffered], Any]) -> None:
    model = Buffered()
    objects = dict(model.named_buffers())
    places = {name: tensor.data_ptr() for name, tensor in objects.items()}
    values = {name: tensor.clone() for name, tensor in objects.items()}
    saved = list(model.state_dict())
    with quiet([model]):
        body(model)
    after = dict(model.named_buffers())
    assert all(after[name] is objects[name] for name in objects)
    assert same_bits(after, values)
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == places
    assert list(model.state_dict()) == saved
    assert model._non_persistent_buffers_set == {"hidden"}
    assert model.bare._non_persistent_buffers_set == set()
    assert model.none is None


def test_a_buffer_that_was_grown_comes_back() -> None:
    model = Buffered()
    with quiet([model]):
        model.a.resize_(5000).zero_()
    assert model.a.tolist() == [1.0, 2.0, 3.0]


def inference_tensor(dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode():
        return torch.tensor([1.0, 2.0]).to(dtype)


class Tagged(torch.Tensor):
    """A subclass, as distributed and quantised tensors are."""


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "NaN and -0.0": lambda: torch.tensor([float("nan"), -0.0, float("inf")]),
    "NaN with a payload": lambda: torch.tensor([0x7FC01234]).int().view(torch.float32),
    "float64": lambda: torch.tensor([1.0, 2.0], dtype=torch.float64),
    "bfloat16": lambda: torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "float8": lambda: torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "bool": lambda: torch.tensor([True, False]),
    "uint8": lambda: torch.tensor([1, 255], dtype=torch.uint8),
    "complex": lambda: torch.tensor([1 + 2j]),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "0-d": lambda: torch.tensor(3),
    "empty": lambda: torch.zeros(0, 3),
    "matrix": lambda: torch.arange(6.0).view(2, 3),
    "transposed": lambda: torch.arange(6.0).view(2, 3).t(),
    "channels last": lambda: torch.randn(1, 2, 3, 3).contiguous(memory_format=torch.channels_last),
    "large": lambda: torch.arange(100_000.0),
    "requires grad": lambda: torch.ones(2, requires_grad=True),
    "parameter": lambda: nn.Parameter(torch.ones(2)),
    "subclass": lambda: torch.ones(2).as_subclass(Tagged),
    "inference": lambda: inference_tensor(torch.float32),
    "inference, complex": lambda: inference_tensor(torch.complex64),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_every_kind_of_buffer_comes_back(kind: str) -> None:
    model = nn.Module()
    model.register_buffer("kept", KINDS[kind]())
    kept = model.kept
    before = bits(kept)
    with quiet([model]), torch.inference_mode():
        if kept.layout is not torch.strided:
            kept.copy_(kept + kept)
        elif kept.dtype is torch.bool:
            kept.logical_not_()
        else:
            kept.copy_(torch.full(kept.shape, 9.0))
        assert bits(kept) != before or kept.numel() == 0
    assert model.kept is kept
    assert bits(kept) == before
    assert kept.is_inference() == kind.startswith("inference")


def test_expanded_buffers_are_put_back_through_what_they_expand() -> None:
    base = torch.arange(3.0)
    model = nn.Module()
    model.register_buffer("positions", base.expand(2, 3))
    with quiet([model]):
        base.zero_()
    assert model.positions.tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]


def test_buffers_without_a_value_are_left_alone() -> None:
    lazy = nn.LazyBatchNorm1d()
    meta = nn.BatchNorm1d(2, device="meta")
    with quiet([lazy, meta]):
        lazy(torch.randn(3, 2))  # decides on its shape
        assert lazy.running_mean.tolist() == [0.0, 0.0]
    assert is_lazy(lazy.running_mean)
    assert meta.running_mean.is_meta


def test_a_buffer_shared_by_modules_is_one_buffer() -> None:
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two.running_mean = one.running_mean
    two.running_var = one.running_var[:]  # a view of the same memory
    with quiet([one, two]):
        one.running_mean.add_(1)
        two.running_var.add_(1)
        two.running_mean = torch.full((2,), 9.0)
    assert two.running_mean is one.running_mean
    assert one.running_mean.tolist() == [0.0, 0.0]
    assert one.running_var.tolist() == two.running_var.tolist() == [1.0, 1.0]
    assert one.running_var.data_ptr() == two.running_var.data_ptr()


def test_a_graph_that_training_still_holds_stays_valid() -> None:
    model = Buffered()
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * model.a).sum()  # keeps the buffer for its backward
    with quiet([model]):
        model.a.data.mul_(2)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]


def test_parameters_come_back_and_gradients_are_not_its_business() -> None:
    model = small_model()
    model(torch.randn(4, 4)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    with quiet([model]):
        model(torch.randn(4, 4)).sum().backward()
        assert torch.is_grad_enabled()
        with torch.no_grad():
            model[0].bias.fill_(5.0)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert same_bits(model.state_dict(), before)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_scripted_models_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + 1
            return self.bn(x)

    model = torch.jit.script(Counting())
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    with quiet([model]):
        assert flags(model) == [False, False]
        model(torch.randn(4, 2))
        assert model.bn.num_batches_tracked == 0  # the scripted code sees the flag as well
        model.bn.train()
        model(torch.randn(4, 2))
        assert model.bn.num_batches_tracked == 1
        model.train()
    assert same_bits(model.state_dict(), before)
    assert flags(model) == [True, False]
    model(torch.randn(4, 2))
    assert model.bn.num_batches_tracked == 0


# Random generators ------------------------------------------------------------------------------


class Noisy(Dataset[torch.Tensor]):
    """A dataset of eight samples that may hold a generator of its own."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


class SharedByClass:
    """As MONAI's random transforms, which draw from an attribute of their base class."""

    rng = np.random.RandomState(3)


class Inheriting(SharedByClass):
    pass


class Compose:
    def __init__(self, *transforms: object) -> None:
        self.transforms = transforms


def torch_generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


DRAWS: dict[type, Callable[[Any], float]] = {
    torch.Generator: lambda g: torch.rand((), generator=g).item(),
    random.Random: lambda g: g.random(),
    np.random.Generator: lambda g: g.random(),
    np.random.RandomState: lambda g: g.normal(),
    np.random.PCG64: lambda g: float(g.random_raw()),
}


def draw(generator: object) -> float:
    return next(draw(generator) for kind, draw in DRAWS.items() if isinstance(generator, kind))


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": torch_generator,
    "python": lambda: random.Random(3),
    "numpy": lambda: np.random.default_rng(3),
    "numpy Philox": lambda: np.random.Generator(np.random.Philox(3)),
    "numpy legacy": lambda: np.random.RandomState(3),
    "numpy bits": lambda: np.random.PCG64(3),
}

HOLDERS: dict[str, Callable[[Any], object]] = {
    "itself": lambda g: g,
    "dataset": lambda g: Noisy(rng=g),
    "private attribute": lambda g: DataLoader(Noisy(_rng=g)),
    "Subset": lambda g: DataLoader(Subset(Noisy(rng=g), [0, 1])),
    "ConcatDataset": lambda g: DataLoader(ConcatDataset([Noisy(), Noisy(rng=g)])),
    "many datasets": lambda g: ConcatDataset([*(Noisy() for _ in range(100)), Noisy(rng=g)]),
    "wrapped twice": lambda g: DataLoader(Noisy(_inner=Subset(Noisy(rng=g), [0]))),
    "transforms": lambda g: DataLoader(Noisy(transform=Compose(Compose(), Noisy(rng=g)))),
    "mapping": lambda g: DataLoader(Noisy(transforms={"image": Noisy(rng=g)})),
    "collate": lambda g: DataLoader(Noisy(), collate_fn=SimpleNamespace(rng=g)),
    "list of loaders": lambda g: [DataLoader(Noisy()), DataLoader(Noisy(rng=g))],
    "mapping of loaders": lambda g: {"a": DataLoader(Noisy()), "b": DataLoader(Noisy(rng=g))},
    "wrapped loader": lambda g: SimpleNamespace(loader=DataLoader(Noisy(rng=g))),
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("where", HOLDERS)
def test_a_generator_in_the_data_does_not_move(kind: str, where: str) -> None:
    generator, twin = GENERATORS[kind](), GENERATORS[kind]()
    data = HOLDERS[where](generator)
    draw(generator), draw(twin)
    with quiet([], data):
        inside = [draw(generator) for _ in range(3)]
    after = [draw(generator) for _ in range(3)]
    assert inside == after == [draw(twin) for _ in range(3)]


TORCH_HOLDERS: dict[str, Callable[[torch.Generator], object]] = {
    "loader": lambda g: DataLoader(Noisy(), generator=g),
    "shuffling loader": lambda g: DataLoader(Noisy(), shuffle=True, generator=g),
    "RandomSampler": lambda g: DataLoader(Noisy(), sampler=RandomSampler(Noisy(), generator=g)),
    "WeightedRandomSampler": lambda g: DataLoader(
        Noisy(), sampler=WeightedRandomSampler([0.5] * 8, 8, generator=g)
    ),
    "batch sampler": lambda g: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy(), generator=g), 2, False)
    ),
}


@pytest.mark.parametrize("where", TORCH_HOLDERS)
def test_a_loader_that_is_iterated_inside_does_not_move_its_generator(where: str) -> None:
    generator = torch_generator()
    loader: Any = TORCH_HOLDERS[where](generator)
    before, everywhere = generator.get_state(), torch.get_rng_state()
    with quiet([], loader):
        assert len(list(loader)) > 0
        assert not torch.equal(generator.get_state(), before)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everywhere)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_without_a_generator_does_not_move_the_global_one(shuffle: bool) -> None:
    loader = DataLoader(Noisy(), shuffle=shuffle)
    before = torch.get_rng_state()
    with quiet([], loader):
        list(loader)
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_loaders_that_share_a_generator_shuffle_as_if_one_were_alone() -> None:
    def epochs(evaluate: bool) -> list[list[float]]:
        generator = torch_generator()
        train = DataLoader(Noisy(), shuffle=True, generator=generator)
        val = DataLoader(Noisy(), shuffle=True, generator=generator)
        seen = []
        for _ in range(3):
            seen.append([batch.item() for batch in train])
            with quiet([], val) if evaluate else nullcontext():
                assert not evaluate or len(list(val)) == 8
        return seen

    assert epochs(evaluate=True) == epochs(evaluate=False)


def test_worker_processes_leave_no_trace() -> None:
    torch.manual_seed(0)
    generator = torch_generator()
    loader = DataLoader(Noisy(rng=np.random.default_rng(0)), num_workers=2, generator=generator)
    other = DataLoader(Noisy(), num_workers=2, shuffle=True)
    states = generator.get_state(), torch.get_rng_state(), random.getstate()
    with quiet([], loader, other):
        assert len(list(loader)) == len(list(other)) == 8
    after = generator.get_state(), torch.get_rng_state(), random.getstate()
    assert same_bits(after, states)


def test_an_iterable_dataset_may_draw_from_a_generator_of_its_own() -> None:
    class Stream(IterableDataset[float]):
        def __init__(self) -> None:
            self.rng = np.random.default_rng(3)

        def __iter__(self) -> Iterator[float]:
            return iter(self.rng.random(4).tolist())

    loader = DataLoader(Stream(), batch_size=None)
    with quiet([], loader):
        inside = list(loader)
    assert list(loader) == inside


def test_a_generator_that_belongs_to_a_class_does_not_move() -> None:
    twin = copy.deepcopy(SharedByClass.rng)
    with quiet([], DataLoader(Noisy(transform=Inheriting()))):
        SharedByClass.rng.normal()
    assert SharedByClass.rng.normal() == twin.normal()


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_that_a_model_holds_does_not_move(kind: str) -> None:
    class Sampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rng = GENERATORS[kind]()

    model, twin = nn.Sequential(Sampling()), GENERATORS[kind]()
    with quiet([model]):
        draw(model[0].rng)
    assert draw(model[0].rng) == draw(twin)


def test_generators_that_share_their_bits_are_both_put_back() -> None:
    shared = np.random.PCG64(3)
    one, two = np.random.Generator(shared), np.random.Generator(shared)
    twin = np.random.default_rng(3)
    with quiet([], Noisy(one=one), Noisy(two=two)):
        one.random(), two.random()
    assert [one.random(), two.random()] == [twin.random(), twin.random()]


def test_data_that_refers_to_itself_ends_the_search() -> None:
    generator = random.Random(3)
    data = Noisy()
    data.self, data.items = data, [data, {"again": data}]
    data.rng = generator
    assert _rng.find_generators([data, data]) == [generator]


def test_the_search_ends_after_a_thousand_objects() -> None:
    chain = last = SimpleNamespace()
    for _ in range(5000):
        last.next = SimpleNamespace()
        last = last.next
    last.rng = random.Random()
    near = chain.near = random.Random()
    assert _rng.find_generators([chain]) == [near]


def test_lists_of_samples_are_not_looked_through() -> None:
    class Untouchable:
        @property
        def __dict__(self) -> dict[str, object]:  # type: ignore[override]
            raise AssertionError("a sample was looked into")

    samples = [Untouchable() for _ in range(100)]
    data = Noisy(samples=samples, index=dict(enumerate(samples)), rng=random.Random())
    assert _rng.find_generators([data]) == [data.rng]


def test_no_property_of_the_data_runs() -> None:
    class Lazy(Noisy):
        @property
        def images(self) -> object:
            raise AssertionError("a property ran")

    assert _rng.find_generators([DataLoader(Lazy())]) == []


@pytest.mark.parametrize(
    "data", [None, 3, "text", [torch.zeros(2)], range(3), iter([1]), len, Noisy, random, np]
)
def test_data_without_generators_is_fine(data: object) -> None:
    assert _rng.find_generators([data]) == []


def test_the_systems_noise_has_no_state_to_keep() -> None:
    with quiet([], Noisy(rng=random.SystemRandom())):
        pass


def test_all_global_generators_are_put_back() -> None:
    def numbers() -> list[float]:
        return [torch.rand(()).item(), random.random(), np.random.rand(), np.random.randn()]

    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    numbers()
    with quiet([]):
        inside = numbers()
        torch.manual_seed(9), random.seed(9), np.random.seed(9)
    assert numbers() == inside


class FakeBackend:
    """A device module in the manner of torch.cuda, with two devices."""

    def __init__(self, used: bool) -> None:
        self.used = used
        self.default_generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    def is_initialized(self) -> bool:
        return self.used

    def get_rng_state_all(self) -> list[torch.Tensor]:
        assert self.used, "asking for the state would start the device"
        return [generator.get_state() for generator in self.default_generators]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.default_generators, states, strict=True):
            generator.set_state(state)

    def numbers(self) -> list[float]:
        self.used = True
        return [torch.rand((), generator=g).item() for g in self.default_generators]


@pytest.mark.parametrize("name", ["cuda", "xpu", "npu"])
def test_the_generators_of_every_device_are_put_back(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(used=True)
    monkeypatch.setattr(torch, name, backend, raising=False)
    backend.numbers()
    with quiet([]):
        inside = backend.numbers()
    assert backend.numbers() == inside


def test_a_device_first_used_inside_starts_afresh_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FakeBackend(used=False)
    monkeypatch.setattr(torch, "cuda", backend)
    with quiet([]):
        pass
    assert not backend.used
    with quiet([]):
        inside = backend.numbers()
    assert backend.numbers() == inside


def test_the_generator_of_mps_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch_generator()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", generator.set_state)
    with quiet([]):
        inside = draw(generator)
    assert draw(generator) == inside


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_everything_comes_back_and_nothing_waits_for_it() -> None:
    model = small_model().cuda()
    x = torch.randn(8, 4, device="cuda")
    generator = torch.Generator("cuda")
    before = copy.deepcopy(model.state_dict())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with quiet([model], Noisy(rng=generator)):
            model.train()
            model(x)
            inside = torch.rand(3, device="cuda"), torch.rand(3, device="cuda", generator=generator)
        after = torch.rand(3, device="cuda"), torch.rand(3, device="cuda", generator=generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same_bits([t.cpu() for t in after], [t.cpu() for t in inside])
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor.cpu(), before[name].cpu()), name


def numpy_state() -> tuple[Any, ...]:
    kind, key, *rest = np.random.get_state()
    return (kind, key.tobytes(), *rest)


NUMPY_BEFORE: dict[str, Callable[[], object]] = {
    "nothing drawn": lambda: None,
    "one of a pair of normals drawn": lambda: np.random.randn(),
    "both drawn": lambda: np.random.randn(2),
    "at the end of its words": lambda: np.random.random_sample(312),
}
NUMPY_INSIDE: dict[str, Callable[[], object]] = {
    **NUMPY_BEFORE,
    "seeded": lambda: np.random.seed(4),
    "another generator": lambda: np.random.set_bit_generator(np.random.MT19937(5)),
}


@pytest.mark.parametrize("inside", NUMPY_INSIDE)
@pytest.mark.parametrize("before", NUMPY_BEFORE)
def test_numpys_global_generator_does_not_move_by_a_single_bit(before: str, inside: str) -> None:
    np.random.seed(3)
    NUMPY_BEFORE[before]()
    stood = numpy_state()
    own = np.random.get_bit_generator()
    try:
        with quiet([]):
            assert numpy_state() == stood
            NUMPY_INSIDE[inside]()
        assert numpy_state() == stood
    finally:
        np.random.set_bit_generator(own)


def test_a_global_generator_of_another_kind_does_not_move() -> None:
    own = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        with quiet([]):
            inside = [np.random.random_sample() for _ in range(3)]
        assert [np.random.random_sample() for _ in range(3)] == inside
    finally:
        np.random.set_bit_generator(own)


def test_numpy_is_never_imported(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["numpy"] = None  # torch would import it
import random, torch
from torch.utils.data import DataLoader
from helpers.private import quiet
before = torch.get_rng_state(), random.getstate()
model = torch.nn.BatchNorm1d(2)
with quiet([model], DataLoader(torch.arange(4), shuffle=True)):
    torch.rand(3), random.random()
assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
assert not [name for name in sys.modules if name.startswith("numpy.")]
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


# Errors and nesting -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BodyError("boom"), KeyboardInterrupt(), StopIteration()])
def test_a_body_that_raises_leaves_no_trace_either(error: BaseException) -> None:
    model = small_model()
    model[1].eval()
    before, standing = copy.deepcopy(model.state_dict()), flags(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def disturb() -> None:
        model.train()
        model(torch.randn(3, 4))
        random.random(), np.random.rand()
        raise error

    with pytest.raises(type(error)) as caught, quiet([model]):
        disturb()
    assert caught.value is error
    assert same_bits(model.state_dict(), before)
    assert flags(model) == standing
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert same_bits(after, states)


class Stubborn(nn.Linear):
    """Refuses to go back to train mode."""

    def __init__(self, words: str = "no way back") -> None:
        super().__init__(2, 2)
        self.words = words

    def train(self, mode: bool = True) -> Stubborn:
        if mode:
            raise RuntimeError(self.words)
        return super().train(mode)


def test_everything_else_is_put_back_when_one_thing_cannot_be() -> None:
    merging = MergingLinear()
    model = nn.Sequential(Stubborn("first"), Stubborn("second"), merging, nn.BatchNorm1d(2))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="second") as caught, quiet([model]):
        model[3].train()(torch.randn(3, 2))
    assert str(caught.value.__context__) == "first"
    assert flags(model) == [True] * 5
    assert not merging.merged
    assert same_bits(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bodys_error_wins_over_an_error_of_putting_back() -> None:
    with pytest.raises(BodyError, match="boom") as caught, quiet([Stubborn()]):
        raise BodyError("boom")
    assert str(caught.value.__context__) == "no way back"


def test_a_model_that_cannot_go_into_eval_mode_is_put_back() -> None:
    class Exported(nn.Module):
        def train(self, mode: bool = True) -> Exported:
            raise NotImplementedError("eval() is not supported yet")

    model = small_model()
    with pytest.raises(NotImplementedError, match="not supported"), quiet([model, Exported()]):
        pytest.fail("the body must not run")
    assert flags(model) == [True] * 5


def test_nested_blocks_each_put_back_what_they_found() -> None:
    model = small_model()
    generator = torch_generator()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with quiet([model], generator):
        model[2].train()
        model[1].running_mean.fill_(5.0)
        outer = generator.get_state(), torch.get_rng_state()
        with quiet([model], generator):
            assert flags(model) == [False] * 5
            draw(generator)
            torch.rand(3)
            model[1].running_mean.fill_(6.0)
        assert flags(model) == [False, False, False, True, False]
        assert model[1].running_mean.tolist() == [5.0] * 4
        assert same_bits((generator.get_state(), torch.get_rng_state()), outer)
    assert flags(model) == [True] * 5
    assert same_bits(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


# Laws -------------------------------------------------------------------------------------------


class Streams:
    """Everything that training may draw from."""

    def __init__(self) -> None:
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        held = {name: make() for name, make in GENERATORS.items()}
        self.data = DataLoader(Noisy(**held), shuffle=True, generator=torch_generator())
        self.sources: list[Callable[[], float]] = [
            lambda: torch.rand(()).item(),
            lambda: torch.randn(()).item(),
            random.random,
            lambda: random.gauss(0, 1),
            np.random.rand,
            np.random.randn,
            lambda: next(iter(self.data)).item(),
            *(lambda g=generator: draw(g) for generator in held.values()),
        ]

    def draw(self, index: int) -> float:
        return self.sources[index % len(self.sources)]()


bodies = st.recursive(
    st.lists(st.integers(0, 12), max_size=5),
    lambda inner: st.lists(st.one_of(st.integers(0, 12), inner), max_size=5),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 12), st.tuples(bodies, st.booleans())), max_size=15))
def test_training_draws_the_same_numbers_whatever_is_drawn_in_between(
    story: list[int | tuple[list[Any], bool]],
) -> None:
    def evaluate(streams: Streams, body: list[Any], fails: bool) -> None:
        with suppress(BodyError), quiet([], streams.data):
            for step in body:
                if isinstance(step, list):
                    evaluate(streams, step, fails)
                else:
                    streams.draw(step)
            if fails:
                raise BodyError

    def train(with_evaluations: bool) -> list[float]:
        streams = Streams()
        numbers = []
        for step in story:
            if isinstance(step, int):
                numbers.append(streams.draw(step))
            elif with_evaluations:
                evaluate(streams, *step)
        return numbers + [streams.draw(index) for index in range(13)]

    assert train(with_evaluations=True) == train(with_evaluations=False)


class Augmented(TensorDataset):
    """Adds noise from three generators to every sample."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__(*tensors)
        self.rng = np.random.default_rng(5)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + self.rng.normal() + random.random() + np.random.rand(), y


def train(evaluate: bool, own_generator: bool) -> dict[str, Any]:
    """Train by hand for three epochs; if asked, evaluate after each step, once failing."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = small_model()
    model.append(nn.BatchNorm1d(2))
    model[4].eval()  # frozen
    data = Augmented(torch.randn(24, 4), torch.randint(0, 2, (24,)))
    generator = torch_generator() if own_generator else None
    loader = DataLoader(data, batch_size=6, shuffle=True, generator=generator)
    val_loader = DataLoader(data, batch_size=7, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steps = 0
    for _ in range(3):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            steps += 1
            if steps % 2 == 0:  # gradients of two steps are accumulated
                optimizer.step()
                optimizer.zero_grad()
            if not evaluate:
                continue
            with suppress(BodyError), quiet([model], val_loader), torch.no_grad():
                if steps % 3 == 0:
                    model.train()
                for x_val, _ in val_loader:
                    F.dropout(model(x_val))
                    if steps == 5:
                        raise BodyError
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "gradients": [parameter.grad for parameter in model.parameters()],
        "flags": flags(model),
        "random": [torch.rand(3), random.random(), np.random.rand(), data.rng.random()],
    }


@pytest.mark.parametrize("own_generator", [True, False])
def test_training_with_evaluations_is_bit_identical_to_training_without(
    own_generator: bool,
) -> None:
    with_them = train(evaluate=True, own_generator=own_generator)
    without = train(evaluate=False, own_generator=own_generator)
    assert with_them["flags"] == [True] * 5 + [False]
    for part, value in without.items():
        assert same_bits(with_them[part], value), part
