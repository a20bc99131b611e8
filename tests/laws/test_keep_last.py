"""What ``keep_last`` takes: objects that load their state, and plain values; what else, at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from torch import nn

from helpers.ranks import on_ranks
from helpers.scripted import counter, scripted
from ignite_evalhook import BestCheckpoint, EvalHook, StateError


class Saving:
    """An object with a state of the user's own."""

    def __init__(self, state: Any = 0) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.state}


class Resuming(Saving):
    def load_state_dict(self, state: Any) -> None:
        self.state = state["value"]


def start(folder: Any, **options: Any) -> tuple[EvalHook, Engine, nn.Module]:
    """Return an attached hook, its trainer, and the model that counts its steps."""
    model = counter()
    hook, trainer = scripted([0.5] * 9, folder, model=model, **options)
    return hook.attach(trainer), trainer, model


def kept(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "last.pt", weights_only=True)
    assert isinstance(content, dict)
    return content


# -- what is refused ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no state": (lambda: {"odd": object()},
                 r"to_save\['odd'\] must be an object with state_dict\(\) and load_state_dict\(\), "
                 "or plain values, got <object"),
    "averages": (lambda: {"ema": EMAHandler(counter())},
                 r"to_save\['ema'\] is an EMAHandler; leave it out"),
    "a class": (lambda: {"model": nn.Linear}, r"to_save\['model'\] .*got the class Linear"),
    "a function": (lambda: {"f": print}, r"to_save\['f'\] .*plain values.*print"),
    "a set": (lambda: {"seen": {1, 2}}, r"to_save\['seen'\] .*sorted list"),
    "a path": (lambda: {"cfg": {"out": Path("x")}}, r"to_save\['cfg'\]\['out'\] .*as a string"),
    "deep inside": (lambda: {"a": [{"b": (1, object())}]}, r"to_save\['a'\]\[0\]\['b'\]\[1\] must"),
    "a lock among models": (lambda: {"all": {"m": counter(), "x": object()}},
                            r"to_save\['all'\]\['x'\] must be an object with"),
    "no load_state_dict": (lambda: {"odd": Saving()},
                           r"to_save\['odd'\] must have a load_state_dict\(\), to be resumed"),
    "a foreign state": (lambda: {"odd": Resuming({1, 2})},
                        r"to_save\['odd'\].*\['value'\] is a set.*weights_only"),
    "a key that is no string": (lambda: {3: counter()}, "to_save must have strings as names"),
    "a foreign key": (lambda: {"cfg": {frozenset(): 1}}, r"to_save\['cfg'\].*frozenset"),
    "nothing": (dict, "to_save must be a mapping name -> object, got {}"),
    "a model": (counter, "to_save must be a mapping name -> object, got Linear"),
}  # fmt: skip


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_at_once_by_name(
    name: str, resume: bool, tmp_path: Path
) -> None:
    make, words = REFUSED[name]
    hook, trainer, model = start(tmp_path)
    to_save = make()
    if isinstance(to_save, dict) and to_save:
        to_save = {"first": model, **to_save}
    with pytest.raises(TypeError, match=words):
        hook.keep_last(to_save, resume=resume)
    assert list(tmp_path.iterdir()) == []
    hook.keep_last({"model": model}, resume=resume)  # nothing stands in the way of a second try
    trainer.run([0], max_epochs=1)
    assert float(kept(tmp_path)["model"]["weight"]) == 1


# -- plain values ---------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "config": {"lr": 0.1, "layers": [64, 64], "name": "net", "none": None, "nested": {"a": (1, 2)}},
    "epochs": 5,
    "rate": 0.25,
    "flag": True,
    "zero": 0,
    "word": "",
    "nothing": None,
    "empty": {},
    "list": [1, "two", 3.0],
    "by number": {1: "one", 2: "two"},
    "ordered": OrderedDict(b=1, a=2),
}


@pytest.mark.parametrize("async_save", [True, False])
def test_plain_values_are_kept_and_read_back_as_they_are(async_save: bool, tmp_path: Path) -> None:
    for epochs in (1, 2):
        model = counter()
        checkpoint = BestCheckpoint({"model": model}, tmp_path, async_save=async_save)
        hook, trainer = scripted([0.5] * 2, model=model, checkpoint=checkpoint)
        hook.attach(trainer)
        resumed = hook.keep_last({"model": model, **PLAIN, "tensor": torch.arange(3)})
        assert resumed is (epochs == 2)
        trainer.run([0], max_epochs=epochs)
        found = kept(tmp_path)
        assert {name: found[name] for name in PLAIN} == PLAIN
        assert found["tensor"].tolist() == [0, 1, 2]
        assert float(found["model"]["weight"]) == epochs


def test_numpy_values_come_back_as_numbers_and_tensors(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    hook, trainer, model = start(tmp_path)
    hook.keep_last({"model": model, "cfg": {"lr": numpy.float64(0.5), "w": numpy.arange(2)}})
    trainer.run([0], max_epochs=1)
    assert kept(tmp_path)["cfg"]["lr"] == 0.5
    assert kept(tmp_path)["cfg"]["w"].tolist() == [0, 1]


def test_a_value_that_may_change_is_kept_as_it_stands_at_each_save(tmp_path: Path) -> None:
    hook, trainer, model = start(tmp_path)
    notes: dict[str, Any] = {"seen": []}
    hook.keep_last({"model": model, "notes": notes})
    for epoch in (1, 2):
        notes["seen"].append(epoch)
        trainer.run([0], max_epochs=epoch)
        assert kept(tmp_path)["notes"] == {"seen": [1, 2][:epoch]}


def test_what_a_restart_passes_is_kept_from_then_on_and_nothing_is_loaded_into_it(
    tmp_path: Path,
) -> None:
    hook, trainer, model = start(tmp_path)
    hook.keep_last({"model": model, "config": {"lr": 0.1}, "old": 1})
    trainer.run([0], max_epochs=1)
    hook, trainer, model = start(tmp_path)
    config = {"lr": 0.2, "momentum": 0.9}
    assert hook.keep_last({"model": model, "config": config, "new": [1]})
    assert config == {"lr": 0.2, "momentum": 0.9}
    assert kept(tmp_path)["config"] == {"lr": 0.1}  # until the next save
    trainer.run([0], max_epochs=2)
    found = kept(tmp_path)
    assert (found["config"], found["new"], "old" in found) == (config, [1], False)


def test_objects_among_plain_values_are_loaded(tmp_path: Path) -> None:
    def objects() -> dict[str, Any]:
        return {"a": {"odd": Resuming(), "lr": 0.1}, "b": [1, Resuming(), ()], "c": (Resuming(),)}

    def all_of(made: Any) -> list[Resuming]:
        return [made["a"]["odd"], made["b"][1], made["c"][0]]

    hook, trainer, _ = start(tmp_path)
    first, second = objects(), objects()
    hook.keep_last(first)
    for number, item in enumerate(all_of(first), 1):
        item.state = number
    trainer.run([0], max_epochs=1)
    hook, _, _ = start(tmp_path)
    second["a"]["new"] = "plain"
    assert hook.keep_last(second)
    assert [item.state for item in all_of(second)] == [1, 2, 3]
    assert (second["a"]["lr"], second["b"][0]) == (0.1, 1)


@pytest.mark.parametrize(
    ("again", "words"),
    [
        ({"all": {"b": Resuming()}}, r"'all' has no 'b', which is to be loaded"),
        ({"all": [Resuming(), Resuming()]}, r"'all' has no 0, which is to be loaded"),
        ({"all": {"a": [Resuming()]}}, r"'all'\['a'\] has no 0"),
        ({"other": Resuming()}, r"has no \['other'\]"),
    ],
)
def test_an_object_whose_state_is_not_there_is_refused(
    again: Any, words: str, tmp_path: Path
) -> None:
    hook, trainer, _ = start(tmp_path)
    hook.keep_last({"all": {"a": Resuming()}})
    trainer.run([0], max_epochs=1)
    hook, _, _ = start(tmp_path)
    with pytest.raises(StateError, match=words):
        hook.keep_last(again)


# -- several ranks --------------------------------------------------------------------------------


def keep(rank: int, folder: str) -> list[Any]:
    found: list[Any] = []
    for epochs in (1, 2):
        hook, trainer, model = start(folder)
        config = {"rank": rank, "epochs": epochs}
        for value in (object() if rank == 1 else 3, object()):
            with pytest.raises(Exception, match="must be an object with") as raised:
                hook.keep_last({"model": model, "one": value})
            found.append(str(raised.value))
        found.append(hook.keep_last({"model": model, "config": config}))
        trainer.run([0], max_epochs=epochs)
        found.append(torch.load(Path(folder) / "last.pt", weights_only=True)["config"])
    return found


def test_ranks_are_refused_together_and_rank_0s_values_are_kept(tmp_path: Path) -> None:
    for found in on_ranks(2, keep, str(tmp_path)):
        assert [item for item in found if not isinstance(item, str)] == [
            False, {"rank": 0, "epochs": 1}, True, {"rank": 0, "epochs": 2}
        ]  # fmt: skip
        assert ["rank 1 failed: TypeError: to_save['one'] must" in item for item in found[:1]] == [
            True
        ]
