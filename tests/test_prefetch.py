"""Copies to a GPU beside its computation: order, values, errors.  No GPU is needed but where said.

``Machine`` stands in for a GPU: what its two streams are told is queued, and done at the end in any
order that events allow; memory that is given back is handed out again at once, as torch does.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook import _prefetch as module
from ignite_evalhook._loading import Batches, plan_batches
from ignite_evalhook._prefetch import CudaStreams, Prefetch, look_ahead, streams_of

GPU = torch.device("cuda")


def loader(**options: Any) -> DataLoader[Any]:
    """Return a loader with the settings that prefetching asks for; nobody goes through it."""
    settings: dict[str, Any] = {"num_workers": 1, "pin_memory": True}
    return DataLoader(TensorDataset(torch.zeros(4)), 2, **(settings | options))


# -- looking ahead --------------------------------------------------------------------------------


def told(log: list[str], fails_at: int, error: BaseException, count: int = 3) -> Iterator[int]:
    for number in range(count + 1):
        if number == fails_at:
            raise error
        if number < count:
            log.append(f"fetch {number}")
            yield number


def note(log: list[str], number: int) -> str:
    log.append(f"begin {number}")
    return f"copy {number}"


def take_all(pairs: Iterator[tuple[int, str]], log: list[str]) -> None:
    for number, begun in pairs:
        assert begun == f"copy {number}"
        log.append(f"take {number}")


def test_each_item_comes_when_the_next_one_has_begun() -> None:
    log: list[str] = []
    take_all(look_ahead(told(log, -1, ValueError()), partial(note, log)), log)
    assert log == ["fetch 0", "begin 0", "fetch 1", "begin 1", "take 0", "fetch 2", "begin 2",
                   "take 1", "take 2"]  # fmt: skip


@given(st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_what_an_item_raises_comes_in_its_turn(count: int, at: int, beginning: bool) -> None:
    log: list[str] = []
    error = RuntimeError("breaks")

    def begin(number: int) -> str:
        if beginning and number == at:
            raise error
        return note(log, number)

    items = told(log, -1 if beginning else at, error, count)
    if at < count or (at == count and not beginning):
        with pytest.raises(RuntimeError) as caught:
            take_all(look_ahead(items, begin), log)
        assert caught.value is error
    else:
        take_all(look_ahead(items, begin), log)
    good = min(at, count)
    assert [entry for entry in log if "take" in entry] == [f"take {n}" for n in range(good)]


def test_an_interrupt_comes_at_once() -> None:
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        take_all(look_ahead(told(log, 1, KeyboardInterrupt()), partial(note, log)), log)
    assert "take 0" not in log


def test_after_an_error_nothing_holds_the_loader() -> None:
    class Source:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            raise RuntimeError("breaks")

    source = Source()
    gone = weakref.ref(source)
    pairs = look_ahead(source, id)
    with pytest.raises(RuntimeError, match="breaks"):
        next(pairs)
    del source, pairs
    assert gone() is None


# -- the order of events --------------------------------------------------------------------------


class Machine(TorchFunctionMode):
    """A GPU with two streams, which do what they are told later."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.queues: dict[str, list[Callable[[], bool]]] = {"compute": [], "copies": []}
        self.memory: dict[int, Tensor] = {}
        self.free: list[Tensor] = []
        self.now = "compute"
        self.peak = 0
        self.cuda = SimpleNamespace(
            Stream=lambda device: MachineStream(self, "copies"),
            current_stream=lambda device: MachineStream(self, "compute"),
            stream=self.switched,
        )

    @contextmanager
    def switched(self, stream: MachineStream) -> Iterator[None]:
        self.now = stream.name
        yield
        self.now = "compute"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty_like and kwargs.get("device") == GPU:
            self.log.append(f"memory of {self.now}")
            return self.allocate(args[0])
        if func is Tensor.copy_:
            self.log.append(f"{self.now}: copy")
            assert kwargs == {"non_blocking": True}
            to, source = self.memory[args[0].data_ptr()], args[1]
            self.tell(lambda: bool(to.copy_(source).ndim))
            return args[0]
        return func(*args, **kwargs)

    def allocate(self, like: Tensor) -> Tensor:
        latest = reversed(range(len(self.free)))
        found = next((i for i in latest if self.free[i].shape == like.shape), None)
        memory = torch.full_like(like, -1.0) if found is None else self.free.pop(found)
        self.memory[memory.data_ptr()] = memory
        self.peak = max(self.peak, len(self.memory) - len(self.free))
        tensor = memory.view(memory.shape)
        weakref.finalize(tensor, self.free.append, memory)
        return tensor

    def tell(self, work: Callable[[], bool]) -> None:
        self.queues[self.now].append(work)

    def compute(self, tensor: Tensor, work: Callable[[Tensor], object]) -> None:
        """Tell the stream of computation to do something with a tensor's memory."""
        memory = self.memory[tensor.data_ptr()]
        self.queues["compute"].append(lambda: work(memory) is not self)

    def work_off(self, choose: Callable[[], str]) -> None:
        """Do all that the streams were told, now this one, now that one."""
        while any(self.queues.values()):
            for name in sorted(self.queues, key=choose().__ne__):
                if self.queues[name] and self.queues[name][0]():
                    del self.queues[name][0]
                    break
            else:
                raise AssertionError("each stream waits for the other")


class MachineStream:
    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def record_event(self) -> list[str]:
        event: list[str] = []
        self.machine.log.append(f"{self.name}: record")
        self.machine.queues[self.name].append(lambda: event.append("done") is None)
        return event

    def wait_event(self, event: list[str]) -> None:
        self.machine.log.append(f"{self.name}: wait")
        self.machine.queues[self.name].append(lambda: bool(event))


@contextmanager
def standing_in(make: Callable[[torch.device], Any]) -> Iterator[None]:
    """Let prefetching use other streams, and take host memory for pinned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "streams_of", make)
        patch.setattr(module, "_pinned", lambda tensor: True)
        yield


def host_batches(sizes: Sequence[int]) -> list[tuple[Tensor, str, dict[str, Tensor]]]:
    return [
        (torch.full((size,), float(k)), "text", {"y": torch.full((1,), 100.0 + k)})
        for k, size in enumerate(sizes, start=1)
    ]


def evaluate(machine: Machine, sizes: Sequence[int], skipped: set[int], stop: int) -> list[Any]:
    """Evaluate as an engine does; return what was computed: pairs of what is and what should be."""
    source, results = host_batches(sizes), []
    prefetch = Prefetch(lambda: GPU)
    batches = Batches(source, len(source), None, None, data=loader())

    def scratch(value: float) -> None:
        """Use memory for a moment, as a layer does."""
        room = torch.empty_like(torch.zeros(2), device=GPU)
        machine.compute(room, lambda memory: memory.fill_(value))
        expected = torch.full((2,), value)
        for _ in range(3):
            machine.compute(room, lambda memory: results.append((memory.clone(), expected)))

    with standing_in(lambda device: CudaStreams(device, machine.cuda)), machine:
        with prefetch.over(batches):
            for k, batch in enumerate(batches):
                batches.seen += 1
                assert batch is source[k]
                if k == stop:
                    break
                scratch(-10.0 - k)
                if k not in skipped:
                    machine.log.append(f"take {k}")
                    x, text, more = prefetch.take(batch)
                    assert text == "text"
                    for moved, own in ((x, batch[0]), (more["y"], batch[2]["y"])):
                        machine.compute(
                            moved, lambda memory, own=own: results.append((memory.clone(), own))
                        )
                    machine.log.append(f"compute {k}")
                    del x, more, moved
                scratch(-20.0 - k)
        batches.close()
        del batch
        scratch(-30.0)
        scratch(-40.0)
    return results


def test_memory_event_wait_copy_event_wait() -> None:
    machine = Machine()
    evaluate(machine, [3, 3], set(), 9)
    begun = ["memory of compute", "memory of compute", "compute: record", "copies: wait",
             "copies: copy", "copies: copy", "copies: record"]  # fmt: skip
    assert machine.log[:14] == [*begun, *begun]  # two batches, before the first is computed
    rest = [entry for entry in machine.log[14:] if entry != "memory of compute"]  # of layers
    assert rest == ["take 0", "compute: wait", "compute 0", "take 1", "compute: wait", "compute 1",
                    "compute: wait"]  # fmt: skip


def test_two_batches_are_on_the_device_at_the_most() -> None:
    machine = Machine()
    evaluate(machine, [3] * 6, set(), 9)
    assert machine.peak == 2 * 2 + 1  # two tensors each, and that of a layer


def draw(chance: random.Random, haste: float) -> str:
    return "compute" if chance.random() < haste else "copies"


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=6),
    st.sets(st.integers(0, 5), max_size=3),
    st.sampled_from([9, 9, 0, 1, 2]),
)
def test_values_are_right_in_every_order_that_the_events_allow(
    sizes: list[int], skipped: set[int], stop: int
) -> None:
    for seed, haste in product(range(8), [0.05, 0.5, 0.95, 0.97]):
        machine, chance = Machine(), random.Random(seed)
        results = evaluate(machine, sizes, skipped, stop)
        machine.work_off(partial(draw, chance, haste))
        assert all(torch.equal(found, expected) for found, expected in results)


# -- where it is used -----------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(4))


class OwnLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return super().__iter__()


@pytest.mark.parametrize(
    ("data", "device", "used"),
    [
        (loader(), "cuda", True),
        (loader(), "cpu", False),
        (loader(num_workers=0), "cuda", False),
        (loader(pin_memory=False), "cuda", False),
        (OwnLoader(torch.zeros(4), 2, num_workers=1, pin_memory=True), "cuda", False),
        (DataLoader(Stream(), 2, num_workers=1, pin_memory=True), "cuda", False),
        ([torch.zeros(2)] * 2, "cuda", False),
    ],
    ids=["pinned", "to cpu", "no workers", "not pinned", "own class", "stream", "list"],
)
def test_it_is_used_for_pinned_batches_of_workers_on_their_way_to_a_gpu(
    data: Any, device: str, used: bool
) -> None:
    def streams(device: torch.device) -> Any:
        return Clones() if device.type == "cuda" else streams_of(device)

    batches = plan_batches(data)
    with standing_in(streams), Prefetch(lambda: torch.device(device)).over(batches):
        assert (batches.through is not None) is used


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, True),
        ({"loss_fn": nn.MSELoss(), "amp_dtype": torch.bfloat16}, True),
        ({"non_blocking": False}, False),
        ({"prepare_batch": lambda batch, device, non_blocking: batch}, False),
        ({"step": lambda engine, batch: batch}, False),
    ],
)
def test_it_is_for_evaluators_that_move_their_batches_themselves(
    options: dict[str, Any], made: bool
) -> None:
    class Stepping(nn.Linear):
        def val_step(self, batch: Any) -> Any:
            return batch

    made_for = create_evaluator(nn.Linear(1, 1), **options)
    assert (made_for.prefetch is not None) is made  # type: ignore[attr-defined]
    if not options:
        assert create_evaluator(Stepping(1, 1)).prefetch is None  # type: ignore[attr-defined]


# -- a whole evaluation ---------------------------------------------------------------------------


class Clones:
    """Streams to the host's own memory, which do at once what they are told."""

    def __init__(self, room: int = 99) -> None:
        self.copied: set[int] = set()
        self.kept: list[Tensor] = []
        self.waited: list[int] = []
        self.marks = self.refused = 0
        self.room = room

    def empty_for(self, tensor: Tensor) -> Tensor | None:
        if self.marks >= self.room:
            self.refused += 1
            raise torch.cuda.OutOfMemoryError("no room")
        return torch.empty_like(tensor)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> int:
        for to, source in pairs:
            to.copy_(source)
            self.kept.append(to)  # so that no other tensor gets its place
            self.copied.add(to.data_ptr())
        self.marks += 1
        return self.marks

    def wait(self, mark: int) -> None:
        self.waited.append(mark)


class Data(Dataset[Any]):
    """Twelve samples, in batches of two; counts what was read."""

    def __init__(self, fails_at: int = 99) -> None:
        self.x = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
        self.fails_at, self.read = fails_at, 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index >= self.fails_at:
            raise LookupError(f"sample {index} is broken")
        self.read += 1
        return self.x[index], index % 2


class Model(nn.Module):
    """Notes where its input is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(3, 2)
        self.inputs: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.data_ptr())
        return self.layer(x)


@contextmanager
def prefetching(streams: Any) -> Iterator[None]:
    """Prefetch whatever is evaluated, with these streams; ``None``: do not."""
    with pytest.MonkeyPatch.context() as patch, standing_in(lambda device: streams):
        patch.setattr(module, "_comes_pinned", lambda data: True)
        yield


def evaluator_of(model: Model, **options: Any) -> Engine:
    metrics = {"accuracy": Accuracy()}
    return create_evaluator(model, metrics, loss_fn=nn.CrossEntropyLoss(), **options)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("limit", [None, 1, 4])
def test_metrics_are_the_same_and_the_model_gets_the_copies(
    limit: int | None, amp: torch.dtype | None
) -> None:
    found = []
    for streams in (None, Clones()):
        model, data = Model(), Data()
        hook = EvalHook(
            DataLoader(data, 2), evaluator_of(model, amp_dtype=amp), limit_batches=limit
        )
        with prefetching(streams):
            for _ in range(2):
                found.append(dict(hook.evaluate().metrics))
        assert data.read == 2 * 2 * (limit or 6)
    assert all(one == found[0] for one in found)
    assert streams is not None
    assert model.inputs
    assert streams.copied.issuperset(model.inputs)
    assert streams.waited[-1] == streams.marks


def test_run_by_hand_handlers_and_metrics_see_the_batch_of_the_host() -> None:
    streams, seen = Clones(), []
    evaluator = evaluator_of(Model())

    @evaluator.on(Events.GET_BATCH_COMPLETED | Events.ITERATION_COMPLETED)
    def look(engine: Engine) -> None:
        seen.extend(tensor.data_ptr() for tensor in engine.state.batch)

    with prefetching(streams):
        evaluator.run(DataLoader(Data(), 2))
    assert len(seen) == 2 * 2 * 6
    assert streams.copied.isdisjoint(seen)


@pytest.mark.parametrize("streams", [None, Clones()])
def test_a_broken_sample_is_found_when_its_batch_is_due(streams: Any) -> None:
    done: list[int] = []
    evaluator = evaluator_of(Model())
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: done.append(1))
    with prefetching(streams), pytest.raises(LookupError, match="sample 7 is broken"):
        EvalHook(DataLoader(Data(fails_at=7), 2), evaluator).evaluate()
    assert len(done) == 3
    if streams is not None:
        assert streams.waited[-1] == streams.marks


def test_after_an_evaluation_that_was_cut_short_no_copy_is_kept() -> None:
    rooms: list[weakref.ref[Tensor]] = []

    class Fleeting(Clones):
        def empty_for(self, tensor: Tensor) -> Tensor:
            room = torch.empty_like(tensor)
            rooms.append(weakref.ref(room))
            return room

        def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> int:
            for to, source in pairs:
                to.copy_(source)
            return 0

    evaluator = evaluator_of(Model())
    evaluator.add_event_handler(Events.ITERATION_STARTED(once=2), lambda engine: 1 / 0)
    with prefetching(Fleeting()), pytest.raises(ZeroDivisionError):
        evaluator.run(DataLoader(Data(), 2))
    gc.collect()
    assert len(rooms) == 2 * 3
    assert [room() is None for room in rooms[2:]] == [True] * 4  # the first is in the last output


def change_in_place(engine: Engine) -> None:
    engine.state.batch[0].mul_(-1.0)


def put_another(engine: Engine) -> None:
    engine.state.batch[0] = engine.state.batch[0] * -1.0


def replace(engine: Engine) -> None:
    x, y = engine.state.batch
    engine.state.batch = (x * -1.0, y)


@pytest.mark.parametrize("change", [change_in_place, put_another, replace])
def test_what_a_handler_makes_of_a_batch_is_evaluated(change: Callable[[Engine], None]) -> None:
    found = []
    for streams in (None, Clones()):
        evaluator = evaluator_of(Model())
        plain = evaluator.run(DataLoader(Data(), 2)).metrics["val_loss"]
        evaluator.add_event_handler(Events.ITERATION_STARTED(every=2), change)
        with prefetching(streams):
            found.append(EvalHook(DataLoader(Data(), 2), evaluator).evaluate().metrics)
    assert found[0] == found[1]
    assert found[0]["val_loss"] != plain


def test_without_room_for_a_second_batch_batches_are_moved_in_their_turn() -> None:
    model = Model()
    evaluator = evaluator_of(model)
    loss = evaluator.run(DataLoader(Data(), 2)).metrics["val_loss"]
    for _ in range(2):  # the second evaluation tries again
        model.inputs.clear()
        streams = Clones(room=2)
        with prefetching(streams):
            assert evaluator.run(DataLoader(Data(), 2)).metrics["val_loss"] == loss
        assert [place in streams.copied for place in model.inputs] == [True] * 2 + [False] * 4
        assert streams.refused == 1


def test_batches_without_tensors_to_copy_are_passed_on() -> None:
    data, streams = [(1.0, 2.0)] * 3, Clones()
    seen: list[Any] = []
    evaluator = create_evaluator(nn.Identity())
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output)
    )
    with prefetching(streams):
        evaluator.run(data)
    assert seen == data
    assert streams.marks == 0


def on_a_rank(rank: int, prefetches: bool) -> tuple[dict[str, float], bool]:
    model, streams = Model(), Clones() if prefetches else None
    with prefetching(streams):
        record = EvalHook(DataLoader(Data(), 2), evaluator_of(model), limit_batches=5).evaluate()
    copied = streams is not None and streams.copied.issuperset(model.inputs)
    return dict(record.metrics), copied


def test_on_two_ranks_it_is_the_same() -> None:
    (alone, _), *_ = on_ranks(1, on_a_rank, False)
    assert on_ranks(2, on_a_rank, True) == [(alone, True)] * 2


# -- on a GPU -------------------------------------------------------------------------------------


def gpu_loader() -> DataLoader[Any]:
    x = torch.randn(96, 64, 32, 32, generator=torch.Generator().manual_seed(5))
    data = TensorDataset(x, torch.arange(96) % 2)
    return DataLoader(data, 16, num_workers=2, pin_memory=True, persistent_workers=True)


def gpu_model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(
        *(nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    ).cuda()  # fmt: skip


class Summing(nn.Module):
    """Gives the sums of what arrives."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double().flatten(1).sum(dim=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_every_batch_arrives_whole() -> None:
    data, model = gpu_loader(), nn.Sequential(gpu_model(), Summing())
    found: list[list[Any]] = []
    for non_blocking in (False, True, True):
        evaluator = create_evaluator(model[1], device="cuda", non_blocking=non_blocking)
        arrived: list[Any] = []

        @evaluator.on(Events.ITERATION_COMPLETED)
        def keep(engine: Engine, arrived: list[Any] = arrived) -> None:
            arrived.extend(engine.state.output)
            model[0](torch.ones(16, 64, 32, 32, device="cuda"))  # while the next one is copied

        EvalHook(data, evaluator, interval=None).evaluate()
        found.append([tensor.tolist() for tensor in arrived])
    assert found[0] == found[1] == found[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_go_through_a_second_stream_and_the_host_never_waits() -> None:
    model = gpu_model()
    evaluator = create_evaluator(model, loss_fn=nn.CrossEntropyLoss())
    used: list[bool] = []

    @evaluator.on(Events.EPOCH_STARTED)
    def begin(engine: Engine) -> None:
        torch.cuda.set_sync_debug_mode("error")

    @evaluator.on(Events.ITERATION_STARTED)
    def look(engine: Engine) -> None:
        used.append(evaluator.prefetch._due is not None)  # type: ignore[attr-defined]

    @evaluator.on(Events.ITERATION_COMPLETED)
    def end(engine: Engine) -> None:
        if engine.state.iteration == 6:
            torch.cuda.set_sync_debug_mode("default")

    try:
        EvalHook(gpu_loader(), evaluator).evaluate()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert used == [True] * 6
