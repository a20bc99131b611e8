"""What happens after a restart: in the run's own folder, a used one, a moved one, a broken one."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from helpers.resume_runs import EPOCH_LENGTH, Bomb, Killed, Run, Setup, outcome, plain, seed_all
from ignite_evalhook import (
    BestCheckpoint,
    CheckpointError,
    EvalEvents,
    EvalHook,
    History,
    StateError,
    find_best,
    load_best,
)

LAST = Setup()
BEFORE = Setup("before", seeded="epoch")
# By epoch: 0.5, 0.9, 0.6, 0.7, 0.8, 0.2, 0.1, 0.95, 0.3, 0.95
LONG = (0.0, 0.0, 0.5, 0.0, 0.9, 0.0, 0.6, 0.0, 0.7, 0.0, 0.8, 0.0, 0.2, 0.0, 0.1, 0.0, 0.95, 0.0,
        0.3, 0.0, 0.95)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def killed_at(folder: Path, setup: Setup, moment: str, count: int = 1, data: Any = None) -> Run:
    """Run until the ``count``-th ``moment``, as :class:`Bomb` calls it."""
    seen = 0

    class Counting(Bomb):
        def _tick(self, engine: Engine, found: str) -> None:
            nonlocal seen
            seen += found == moment
            if seen == count:
                raise Killed(found)

    run = Run(folder, setup, Counting())
    if data is not None:
        run.loader = data
    with pytest.raises(Killed):
        run.go()
    return run


def listed(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def weights(run: Run) -> dict[str, Any]:
    return plain(run.model.state_dict())


def copy_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


# A due evaluation that the state does not know --------------------------------------------------


def test_a_due_evaluation_that_the_state_does_not_know_is_made_up_before_training_goes_on(
    tmp_path: Path,
) -> None:
    killed_at(tmp_path, BEFORE, "eval_completed (after)", 2)
    run = Run(tmp_path, BEFORE).go()
    assert run.known == [2]
    assert run.log[:4] == [
        ("eval_started", 4), ("eval_completed", 4), ("train", 5), ("train", 6),
    ]  # fmt: skip


def test_a_made_up_evaluation_can_be_the_best_and_says_so(tmp_path: Path) -> None:
    killed_at(tmp_path, BEFORE, "eval_started (after)")
    run = Run(tmp_path, BEFORE).go()
    assert run.log[:4] == [
        ("eval_started", 2), ("eval_completed", 2), ("new_best", 2), ("train", 3),
    ]  # fmt: skip
    assert run.hook.best is not None
    assert run.hook.history[0].is_best


def test_a_made_up_evaluation_names_the_epoch_that_was_completed(tmp_path: Path) -> None:
    killed_at(tmp_path, BEFORE, "eval_started (after)", 2)
    run = Run(tmp_path, BEFORE)
    steps = []
    run.hook.on(EvalEvents.EVAL_COMPLETED, lambda record: steps.append(run.hook.global_step()))
    run.go()
    assert steps == [2, 3]
    assert [record.epoch for record in run.hook.history] == [1, 2, 3]


@pytest.mark.parametrize(
    ("setup", "moment", "count"),
    [
        (replace(BEFORE, hook={"interval": 2}), "epoch_started (before)", 2),
        (Setup("iteration before", seeded="iteration"), "iteration_completed (after)", 3),
        (Setup("after", seeded="epoch"), "epoch_started (before)", 3),
        (LAST, "epoch_started (before)", 3),
        (replace(LAST, every=2), "epoch_started (before)", 4),
    ],
    ids=["epoch that is not due", "mid-epoch", "known", "keep_last", "keep_last every 2"],
)
def test_nothing_else_is_evaluated_before_training_goes_on(
    setup: Setup, moment: str, count: int, tmp_path: Path
) -> None:
    setup = replace(setup, epochs=4)
    killed_at(tmp_path, setup, moment, count)
    run = Run(tmp_path, setup).go()
    assert run.resumed_at > 0
    assert run.log[0] == ("train", run.resumed_at + 1)


def test_an_evaluation_made_up_by_iteration_is_saved_with_the_random_state_of_training(
    tmp_path: Path,
) -> None:
    by_2 = Setup(hook={"by_epoch": False, "interval": 2}, seed=1)
    killed_at(tmp_path, by_2, "epoch_completed (after)", 2)
    # Now epoch 2 lacks the evaluation of another metric's schedule: it is made up and saved.
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    state["eval_hook"]["history"].pop()
    torch.save(state, tmp_path / "last.pt")
    whole = Run(tmp_path, by_2).go()
    shutil.rmtree(tmp_path)

    killed_at(tmp_path, by_2, "epoch_completed (after)", 2)
    torch.save(state, tmp_path / "last.pt")
    other_seed = replace(by_2, seed=2)
    killed_at(tmp_path, other_seed, "epoch_started (before)")
    assert len(torch.load(tmp_path / "last.pt", weights_only=True)["eval_hook"]["history"]) == 2
    assert weights(Run(tmp_path, replace(by_2, seed=3)).go()) == weights(whole)


TEN = list(range(10))


def own() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS: dict[str, Callable[[], Any]] = {
    "global generator": lambda: DataLoader(TEN, batch_size=2, shuffle=True),
    "own generator": lambda: DataLoader(TEN, batch_size=2, shuffle=True, generator=own()),
    "partial last batch": lambda: DataLoader(TEN, batch_size=3, shuffle=True, generator=own()),
    "last batch dropped": lambda: DataLoader(
        TEN, batch_size=3, shuffle=True, generator=own(), drop_last=True
    ),
    "sampler": lambda: DataLoader(TEN, batch_size=5, sampler=RandomSampler(TEN, generator=own())),
    "replacement": lambda: DataLoader(
        TEN, batch_size=5, sampler=RandomSampler(TEN, replacement=True, generator=own())
    ),
    "weights": lambda: DataLoader(
        TEN, batch_size=5, sampler=WeightedRandomSampler([0.1] * 10, 10, generator=own())
    ),
    "workers": lambda: DataLoader(
        TEN, batch_size=2, shuffle=True, generator=own(), num_workers=1, prefetch_factor=2
    ),
    "no loader of torch": lambda: [torch.tensor([1, 2]), torch.tensor([3, 4])],
}


def go_on_as_they_would_have(make: Callable[[], Any], tmp_path: Path, *, share: bool) -> bool:
    """Compare two epochs more after a restart, with three in one go."""

    def run(folder: Path, epochs: int) -> list[Any]:
        seed_all(5)
        seen: list[Any] = []
        loader = make()

        def step(engine: Engine, batch: torch.Tensor) -> None:
            numbers = [torch.rand(1).item(), random.random(), numpy.random.rand()]
            if share:  # training draws from the loader's generator as well
                numbers.append(torch.rand(1, generator=loader.sampler.generator).item())
            seen.append((engine.state.iteration, batch.tolist(), numbers))

        trainer, model = Engine(step), nn.Linear(1, 1)
        hook = EvalHook(None, lambda engine: {"acc": 1.0}, model=model, out_dir=folder)
        hook.attach(trainer)
        hook.keep_last({"model": model})
        trainer.run(loader, max_epochs=epochs)
        return seen

    parts = [run(tmp_path / "run", epochs) for epochs in (1, 3)]
    assert parts[1][0][0] == parts[0][-1][0] + 1
    return [*parts[0], *parts[1]] == run(tmp_path / "whole", 3)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_shuffling_and_drawing_go_on_as_they_would_have(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    assert go_on_as_they_would_have(make, tmp_path, share=False)


@pytest.mark.parametrize("kind", ["weights", "partial last batch"])
def test_a_generator_shared_with_training_goes_on_from_where_it_was_saved(
    kind: str, tmp_path: Path
) -> None:
    assert go_on_as_they_would_have(LOADERS[kind], tmp_path, share=True)


def test_detach_leaves_nothing_of_keep_last_behind(tmp_path: Path) -> None:
    run = Run(tmp_path, Setup("nothing"))
    run.hook.detach()
    before = sum(map(len, run.trainer._event_handlers.values()))
    run.hook.attach(run.trainer)
    run.hook.keep_last({"model": run.model})
    run.hook.detach()
    assert sum(map(len, run.trainer._event_handlers.values())) == before
    run.go()
    assert listed(tmp_path) == []


# A run that somebody ended ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "end"),
    [
        (Events.ITERATION_COMPLETED(once=3), Engine.interrupt),
        (Events.EPOCH_STARTED(once=2), Engine.interrupt),
        (Events.ITERATION_COMPLETED(once=3), Engine.terminate),
        (Events.ITERATION_COMPLETED(once=4), Engine.terminate),
        (Events.EPOCH_COMPLETED(once=2), Engine.terminate),
        (Events.STARTED, Engine.terminate),
        (
            Events.ITERATION_COMPLETED(once=3),
            lambda engine: engine.terminate(skip_completed=True),
        ),
    ],
)
def test_a_run_that_was_stopped_by_hand_goes_on_from_there(
    event: Any, end: Callable[[Engine], None], tmp_path: Path
) -> None:
    setup = Setup(seeded="iteration")
    whole = outcome(Run(tmp_path / "whole", setup).go())
    stopped = Run(tmp_path / "run", setup)
    stopped.trainer.add_event_handler(event, end)
    stopped.go().hook.detach()
    run = Run(tmp_path / "run", setup)
    assert run.resumed_at == stopped.trainer.state.iteration
    assert outcome(run.go()) == whole


class Unsized:
    def __iter__(self) -> Iterator[Any]:
        yield from [(torch.ones(2, 2), torch.ones(2, 2))] * EPOCH_LENGTH


@pytest.mark.parametrize("moment", ["epoch_started (before)", "epoch_completed (before)"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_on_data_of_unknown_length_is_resumed(
    moment: str, count: int, tmp_path: Path
) -> None:
    setup = Setup("before", seeded="iteration")

    def new(folder: Path) -> Run:
        run = Run(folder, setup)
        run.loader = Unsized()
        return run

    whole = outcome(new(tmp_path / "whole").go())
    killed_at(tmp_path / "run", setup, moment, count, Unsized())
    assert outcome(new(tmp_path / "run").go()) == whole


def test_a_scheduler_stepped_on_a_plateau_goes_on_from_its_state(tmp_path: Path) -> None:
    setup = replace(LAST, epochs=5, scores=[0.5] * 8)

    def new(folder: Path) -> tuple[Run, ReduceLROnPlateau]:
        run = Run(folder, replace(setup, saves="nothing"))
        scheduler = ReduceLROnPlateau(run.optimizer, mode="max", factor=0.5, patience=1)
        run.hook.step_on_plateau(scheduler)
        run.hook.keep_last({"model": run.model, "optimizer": run.optimizer})
        return run, scheduler

    whole, scheduler = new(tmp_path / "whole")
    whole.go()
    assert scheduler.get_last_lr() == [0.3 * 0.25]
    new(tmp_path / "run")[0].go(max_epochs=2)
    run, again = new(tmp_path / "run")
    run.go()
    assert run.at("train") == [5, 6, 7, 8, 9, 10]
    assert again.state_dict() == scheduler.state_dict()
    assert outcome(run) == outcome(whole)


# A run that had ended ---------------------------------------------------------------------------

ENDED = {
    "keep_last": LAST,
    "before": BEFORE,
    "after": Setup("after", seeded="epoch"),
    "by iteration": Setup("iteration before", seeded="iteration"),
    "iterations": Setup("iteration before", seeded="iteration", hook={"by_epoch": False}),
    "max_iters": Setup(hook={"at_end": True}, max_iters=5),
    "two hooks": Setup(second={"save_best": "loss", "rule": "less"}),
}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("setup", ENDED.values(), ids=ENDED)
def test_a_finished_run_that_is_loaded_ends_again_at_once(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = outcome(Run(tmp_path, setup).go())
    for _ in range(2):
        caplog.clear()
        run = Run(tmp_path, setup).go()
        assert run.resumed
        assert run.at("train") == []
        assert outcome(run) == whole
        [warning] = warnings_in(caplog)
        end = run.trainer.state.iteration
        assert warning == f"val: the loaded run had ended at iteration {end}; it ends again at once"
        assert load_best(tmp_path, {"model": run.model}, name="val") == run.hook.best


def test_a_finished_run_without_its_last_evaluation_makes_it_up_and_ends(tmp_path: Path) -> None:
    whole = outcome(Run(tmp_path / "whole", BEFORE).go())
    killed_at(tmp_path / "run", BEFORE, "eval_started (after)", 3)
    run = Run(tmp_path / "run", BEFORE).go()
    assert run.log == [("eval_started", 6), ("eval_completed", 6), ("new_best", 6)]
    assert outcome(run) == whole


@pytest.mark.parametrize("saves", ["last", "before", "after"])
def test_a_run_that_early_stopping_had_ended_ends_again_at_once(
    saves: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(saves, seeded="epoch", patience=1, epochs=4)
    whole = outcome(Run(tmp_path, setup).go())
    assert whole["counters"] == (2, 4)
    for _ in range(2):
        run = Run(tmp_path, setup).go()
        assert run.at("train") == []
        assert outcome(run) == whole
    assert "val: early stopping had ended this run; it ends again" in caplog.text


def test_a_run_that_early_stopping_had_ended_in_mid_epoch_counts_that_epoch(
    tmp_path: Path,
) -> None:
    setup = Setup("iteration after", seeded="iteration", patience=1, scores=[0.5] * 8,
                  hook={"by_epoch": False, "interval": 2, "start": 1})  # fmt: skip
    whole = outcome(Run(tmp_path, setup).go())
    assert whole["counters"] == (2, 3)
    assert outcome(Run(tmp_path, setup).go()) == whole


@pytest.mark.parametrize("saves", ["last", "before", "after"])
def test_raised_patience_goes_on_as_if_it_had_been_so_from_the_start(
    saves: str, tmp_path: Path
) -> None:
    patient = Setup(saves, seeded="epoch", patience=2, epochs=4)
    whole = outcome(Run(tmp_path / "whole", patient).go())
    Run(tmp_path / "run", replace(patient, patience=1)).go()
    run = Run(tmp_path / "run", patient).go()
    assert run.at("train")[0] == 5
    assert outcome(run) == whole


@pytest.mark.parametrize("setup", ENDED.values(), ids=ENDED)
def test_a_finished_run_with_more_epochs_goes_on_as_if_it_had_been_longer(
    setup: Setup, tmp_path: Path
) -> None:
    if setup.max_iters is None:
        longer = replace(setup, epochs=5)
    else:  # ends in mid-epoch
        longer = replace(setup, seeded="iteration", max_iters=9)
        setup = replace(setup, seeded="iteration")
    whole = outcome(Run(tmp_path / "whole", longer).go())
    Run(tmp_path / "run", setup).go()
    run = Run(tmp_path / "run", longer).go()
    assert run.at("train")[0] == run.resumed_at + 1
    if setup.max_iters is None:
        assert outcome(run) == whole
    else:
        # The end of the shorter run was evaluated too, as at_end=True asks.
        assert [r.iteration for r in run.hook.history] == [2, 4, 5, 6, 8, 9]
        assert outcome(run)["weights"] == whole["weights"]


# Other arguments than before --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "evaluated"),
    [
        ({"interval": 2}, [2, 4, 8]),
        ({"interval": 3, "at_end": True}, [2, 4, 6, 8]),
        ({"interval": [4]}, [2, 4, 8]),
        ({"by_epoch": False, "interval": 3}, [2, 4, 6]),
        ({"by_epoch": False}, [2, 4, 5, 6, 7, 8]),
        ({"interval": 0.5}, [2, 4, 5, 6, 7, 8]),
    ],
)
def test_another_interval_is_obeyed_from_the_restart_on(
    options: dict[str, Any], evaluated: list[int], tmp_path: Path
) -> None:
    setup = replace(LAST, epochs=4)
    killed_at(tmp_path, setup, "epoch_started (before)", 3)
    run = Run(tmp_path, replace(setup, hook=options)).go()
    assert [record.iteration for record in run.hook.history] == evaluated


def test_another_interval_that_makes_the_present_epoch_due_evaluates_it(tmp_path: Path) -> None:
    setup = replace(LAST, hook={"interval": 3}, epochs=4)
    killed_at(tmp_path, setup, "epoch_started (before)", 3)
    run = Run(tmp_path, replace(setup, hook={"interval": 2})).go()
    assert run.log[:2] == [("eval_started", 4), ("eval_completed", 4)]
    assert [record.iteration for record in run.hook.history] == [4, 8]


def test_fewer_files_to_keep_are_obeyed(tmp_path: Path) -> None:
    many = replace(LAST, hook={"n_saved": 3}, epochs=3)
    Run(tmp_path, many).go()
    assert len([f for f in listed(tmp_path) if f.startswith("best_")]) == 3
    run = Run(tmp_path, replace(many, hook={"n_saved": 1})).go()
    assert [f for f in listed(tmp_path) if f.startswith("best_")] == ["best_model_3_score=0.6.pt"]
    assert [best.epoch for best in run.hook.bests["score"]] == [3]


OTHER = {
    "metric": ({"save_best": "loss", "rule": "less"}, "followed score .greater., this hook follows"
               " loss .less."),
    "rule": ({"rule": "less"}, "this hook follows score .less."),
    "more metrics": ({"save_best": ["score", "loss"]}, "this hook follows score .greater., loss"),
    "no metric": ({"save_best": None, "rule": None}, "this hook follows nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("saves", ["last", "after"])
def test_another_metric_or_rule_is_refused_and_nothing_is_loaded(
    saves: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    setup = Setup(saves, seeded="epoch")
    Run(tmp_path, setup).go()
    before = {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)}
    fresh = Run(tmp_path / "else", Setup("nothing", hook=options))
    state = fresh.hook.state_dict()
    if saves == "last":
        with pytest.raises(StateError, match=rf"{words}.*hook.reset\(\)"):
            Run(tmp_path, replace(setup, hook=options))
    other = torch.load(
        tmp_path / "last.pt" if saves == "last" else next((tmp_path / "by hand").iterdir()),
        weights_only=True,
    )
    with pytest.raises(StateError, match=words):
        fresh.hook.load_state_dict(other["eval_hook"])
    assert fresh.hook.state_dict() == state
    assert {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)} == before


def test_reset_lets_another_metric_follow_on_a_trained_model(tmp_path: Path) -> None:
    Run(tmp_path, LAST).go()
    old = find_best(tmp_path)
    other = Setup("nothing", epochs=5, hook={"save_best": "loss", "rule": "less"})
    run = Run(tmp_path, other)
    run.hook.reset()
    assert run.hook.keep_last({"model": run.model, "optimizer": run.optimizer})
    run.go()
    assert run.at("train") == [7, 8, 9, 10]
    assert [record.iteration for record in run.hook.history] == [8, 10]
    assert find_best(tmp_path).metric == "loss"
    [earlier] = (tmp_path / "earlier").iterdir()
    assert (find_best(earlier).metric, find_best(earlier).score) == ("score", old.score)


def test_a_metric_can_be_followed_from_now_on_if_none_was(tmp_path: Path) -> None:
    setup = replace(LAST, hook={"save_best": None, "rule": None}, epochs=4)
    killed_at(tmp_path, setup, "epoch_started (before)", 3)
    run = Run(tmp_path, replace(LAST, epochs=4)).go()
    assert [record.iteration for record in run.hook.history] == [2, 4, 6, 8]
    assert find_best(tmp_path).epoch == 3


def test_an_auto_choice_travels_in_the_state(tmp_path: Path) -> None:
    setup = replace(LAST, hook={"save_best": "auto", "rule": "less"}, epochs=4)
    killed_at(tmp_path, setup, "epoch_started (before)", 3)
    run = Run(tmp_path, setup)
    assert run.hook.best is not None
    assert (run.hook.best.metric, run.hook.best.epoch) == ("val_loss", 1)


# A second run in one process --------------------------------------------------------------------


def test_a_second_run_without_a_load_is_a_fresh_run(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(LAST, patience=5)).go()
    first, files = run.hook.state_dict(), listed(tmp_path)
    bests = [record.is_best for record in run.hook.history]
    run.go()
    second = run.hook.state_dict()
    assert second["run_id"] != first["run_id"]
    assert run.at("train") == [1, 2, 3, 4, 5, 6] * 2
    assert [record.iteration for record in run.hook.history] == [2, 4, 6]
    assert [record.is_best for record in run.hook.history] == bests
    assert run.stopper is not None
    assert second["watchers"] == first["watchers"]
    earlier = [f"earlier/{first['run_id']}/{name}" for name in files]
    assert listed(tmp_path) == sorted([*earlier, *files])
    assert find_best(tmp_path / "earlier" / first["run_id"]).epoch == 3


def test_a_second_run_that_is_longer_goes_on(tmp_path: Path) -> None:
    whole = outcome(Run(tmp_path / "whole", replace(LAST, epochs=5)).go())
    run = Run(tmp_path / "run", LAST).go()
    run.go(max_epochs=5)
    got = outcome(run)
    assert run.at("train") == list(range(1, 11))
    assert got == whole
    assert not (tmp_path / "run" / "earlier").exists()


def test_a_second_run_after_a_load_is_resumed(tmp_path: Path) -> None:
    setup = Setup("nothing", seeded="epoch")
    run = Run(tmp_path, setup).go()
    objects = {name: plain_copy(item.state_dict()) for name, item in run.objects.items()}
    for name, item in run.objects.items():
        item.load_state_dict(objects[name])
    run.go(max_epochs=4)
    assert [record.iteration for record in run.hook.history] == [2, 4, 6, 8]
    assert not (tmp_path / "earlier").exists()


def plain_copy(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: plain_copy(value) for key, value in state.items()}
    return [plain_copy(item) for item in state] if isinstance(state, list) else state


# The abandoned stretch --------------------------------------------------------------------------


def abandoned(folder: Path, setup: Setup, *, reach: int, back_to: int) -> None:
    """Run to the end of epoch ``reach``, and put back the last checkpoint of an earlier epoch."""
    run = Run(folder, setup)
    kept = folder.with_name("kept")
    kept.mkdir()

    @run.trainer.on(Events.EPOCH_STARTED)
    def _keep(engine: Engine) -> None:
        if engine.state.epoch > 1:
            shutil.copy(folder / "last.pt", kept / f"{engine.state.epoch - 1}.pt")
        if engine.state.epoch > reach:
            raise Killed

    with pytest.raises(Killed):
        run.go()
    shutil.copy(kept / f"{back_to}.pt", folder / "last.pt")


def follow(run: Run, folder: Path) -> dict[int, tuple[Any, ...]]:
    """Note after each evaluation what the disk and what the hook call the best."""
    seen: dict[int, tuple[Any, ...]] = {}
    model = nn.Linear(2, 2)  # here, since it draws from the random generator of training

    @run.hook.on(EvalEvents.EVAL_COMPLETED)
    def _note(record: Any) -> None:
        loaded = load_best(folder, {"model": model})
        assert loaded == find_best(folder) == run.hook.load_best(to_load={"model": model})
        account = json.loads((folder / "best.json").read_text())
        assert (account["epoch"], account["score"]) == (loaded.epoch, loaded.score)
        assert account["file"] == Path(str(loaded.path)).name
        seen[record.epoch] = (loaded.epoch, run.hook.best and run.hook.best.epoch)

    return seen


NINE = Setup(scores=LONG, epochs=10)


def test_the_better_file_of_an_abandoned_stretch_stays_the_best_until_it_is_written_again(
    tmp_path: Path,
) -> None:
    whole = outcome(Run(tmp_path / "whole", NINE).go())
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    run = Run(folder, NINE)
    seen = follow(run, folder)
    assert run.resumed_at == 5 * EPOCH_LENGTH
    run.go()
    assert seen == {6: (8, 2), 7: (8, 2), 8: (8, 8), 9: (8, 8), 10: (8, 8)}
    assert outcome(run) == whole


def test_the_better_file_of_an_abandoned_stretch_stays_if_its_score_is_never_reached_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    lost = (folder / "best_model_8_score=0.95.pt").read_bytes()
    worse = replace(NINE, scores=[min(score, 0.93) for score in LONG], seed=8)
    run = Run(folder, worse)
    seen = follow(run, folder)
    run.go()
    assert seen == {6: (8, 2), 7: (8, 2), 8: (8, 8), 9: (8, 8), 10: (8, 8)}
    assert run.hook.best is not None
    assert (run.hook.best.score, run.hook.best.epoch) == (0.93, 8)
    assert find_best(folder).score == 0.95
    assert (folder / "best_model_8_score=0.95.pt").read_bytes() == lost
    # And so it is after another restart, and one more.
    for _ in range(2):
        assert Run(folder, worse).go().hook.best == run.hook.best
        assert find_best(folder).score == 0.95
    assert [f for f in listed(folder) if "best_" in f] == [
        "best_model_8_score=0.93.pt", "best_model_8_score=0.95.pt",
    ]  # fmt: skip


def test_an_equal_score_replaces_the_file_of_an_abandoned_stretch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    scores = list(LONG)
    scores[16] = 0.1  # epoch 8 fails this time, epoch 10 reaches what it was
    run = Run(folder, replace(NINE, scores=scores))
    seen = follow(run, folder)
    run.go()
    assert seen == {6: (8, 2), 7: (8, 2), 8: (8, 2), 9: (8, 2), 10: (10, 10)}
    assert [f for f in listed(folder) if "best_" in f] == ["best_model_10_score=0.95.pt"]


def test_the_own_best_of_the_state_has_no_path_while_its_file_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    run = Run(folder, NINE)
    killed: list[Any] = []

    @run.trainer.on(Events.EPOCH_STARTED)
    def _look(engine: Engine) -> None:
        killed.append(run.hook.best)
        raise Killed

    with pytest.raises(Killed):
        run.go()
    [best] = killed
    assert (best.score, best.epoch, best.path) == (0.9, 2, None)


def test_of_an_abandoned_top_2_each_stays_until_two_files_are_as_good(tmp_path: Path) -> None:
    setup = replace(NINE, hook={"n_saved": 2})
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    abandoned(folder, setup, reach=8, back_to=1)
    run = Run(folder, setup)
    files: dict[int, list[str]] = {}

    @run.hook.on(EvalEvents.EVAL_COMPLETED)
    def _note(record: Any) -> None:
        files[record.epoch] = [name[11] for name in listed(folder) if "_model" in name]

    run.go()
    assert files[3] == ["2", "3", "8"]  # 2 is its own again; 8 stays
    assert outcome(run) == whole


def test_one_better_file_is_not_enough_to_give_up_an_abandoned_top_2(tmp_path: Path) -> None:
    setup = replace(NINE, hook={"n_saved": 2})
    folder = tmp_path / "run"
    abandoned(folder, setup, reach=8, back_to=1)
    scores = list(LONG)
    scores[4], scores[16] = 0.97, 0.96  # epochs 2 and 8
    run = Run(folder, replace(setup, scores=scores))
    files: dict[int, list[str]] = {}

    @run.hook.on(EvalEvents.EVAL_COMPLETED)
    def _note(record: Any) -> None:
        files[record.epoch] = [name for name in listed(folder) if "_model" in name]

    run.go()
    first, new = "best_model_2_score=0.97.pt", "best_model_8_score=0.96.pt"
    old = ["best_model_2_score=0.9.pt", "best_model_8_score=0.95.pt"]
    assert files[5] == sorted([*old, first, "best_model_5_score=0.8.pt"])
    assert files[8] == [first, new]


def test_the_same_name_with_other_content_is_loadable_at_any_moment(tmp_path: Path) -> None:
    # Training that does not repeat reaches the same score with other weights: the same name.
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    other = replace(NINE, seed=8, seeded="iteration")
    run = Run(folder, other)
    best = folder / "best_model_8_score=0.95.pt"
    before, seen, model = best.read_bytes(), [], nn.Linear(2, 2)
    real = os.replace

    def replaced(source: Any, target: Any) -> None:
        real(source, target)
        if best.read_bytes() != before:
            seen.append(load_best(folder, {"model": model}).epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        run.go()
    assert best.read_bytes() != before
    assert set(seen) == {8}


def test_the_same_name_with_other_content_is_loadable_after_the_evaluation_failed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    run = Run(folder, replace(NINE, seed=8, seeded="iteration"))
    best = folder / "best_model_8_score=0.95.pt"
    before, model = best.read_bytes(), nn.Linear(2, 2)

    @run.trainer.on(Events.EPOCH_COMPLETED(once=7))
    def _break(engine: Engine) -> None:  # the record of epoch 8 cannot be written
        (folder / "history.jsonl").unlink()
        (folder / "history.jsonl").mkdir()

    with pytest.raises(CheckpointError, match="could not append to"):
        run.go()
    assert best.read_bytes() != before
    assert load_best(folder, {"model": model}).epoch == 8
    assert run.hook.load_best(to_load={"model": model}).epoch == 8


def test_a_stable_name_follows_when_the_same_name_gets_other_content(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    setup = replace(NINE, hook={"alias": "copy"})
    abandoned(folder, setup, reach=8, back_to=5)
    Run(folder, replace(setup, seed=8, seeded="iteration")).go()
    best = folder / "best_model_8_score=0.95.pt"
    assert (folder / "best.pt").read_bytes() == best.read_bytes()


# A folder that is used, shared, moved or broken -------------------------------------------------


def test_a_fresh_run_moves_the_files_of_an_earlier_one_away_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = replace(
        LAST,
        hook={"save_best": ["score", "loss"], "rule": {"score": "greater", "loss": "less"},
              "n_saved": 2},
    )  # fmt: skip
    first = Run(tmp_path, setup).go()
    run_id = first.hook.state_dict()["run_id"]
    theirs = {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)}
    foreign = {"best_of_mine.pt": b"mine", "notes/last.pt": b"notes", "best.txt": b"text"}
    for name, content in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    run = Run(tmp_path, replace(setup, saves="nothing"))
    assert listed(tmp_path) == sorted([*theirs, *foreign])  # nothing happens before it runs
    run.go()
    aside = tmp_path / "earlier" / run_id
    assert {name: (aside / name).read_bytes() for name in listed(aside)} == theirs
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
    assert f"its files are now in earlier/{run_id}/" in caplog.text
    assert find_best(aside, "loss").path == aside / Path(str(first.hook.bests["loss"][0].path)).name
    best = load_best(aside, {"model": nn.Linear(2, 2)})
    assert (best.score, best.epoch) == (0.6, 3)
    assert [r.iteration for r in History.read(tmp_path / "history.jsonl")] == [2, 4, 6]


def test_two_hooks_in_one_folder_are_put_aside_together(tmp_path: Path) -> None:
    setup = replace(LAST, second={"save_best": "loss", "rule": "less"})
    first = Run(tmp_path, setup).go()
    theirs = listed(tmp_path)
    Run(tmp_path, replace(setup, saves="nothing")).go()
    for hook in first.hooks:
        aside = tmp_path / "earlier" / hook.state_dict()["run_id"]
        assert find_best(aside).score in (0.6, 0.3)
    aside_names = [name.split("/")[-1] for name in listed(tmp_path) if "earlier" in name]
    assert sorted(aside_names) == theirs


def test_three_fresh_runs_leave_two_earlier_ones(tmp_path: Path) -> None:
    ids = [Run(tmp_path, LAST).go().hook.state_dict()["run_id"]]
    for _ in range(2):
        run = Run(tmp_path, replace(LAST, saves="nothing")).go()
        ids.append(run.hook.state_dict()["run_id"])
    assert sorted(p.name for p in (tmp_path / "earlier").iterdir()) == sorted(ids[:2])


def test_a_run_killed_before_its_first_save_is_put_aside_by_the_next(tmp_path: Path) -> None:
    first = killed_at(tmp_path, LAST, "eval_completed (after)")
    run_id = first.hook.state_dict()["run_id"]
    run = Run(tmp_path, LAST)
    assert not run.resumed
    run.go()
    assert listed(tmp_path / "earlier" / run_id) == [
        "best.json", "best_model_1_score=0.4.pt", "history.jsonl",
    ]  # fmt: skip


def test_a_fresh_run_keeps_the_alias_of_the_earlier_one_with_it(tmp_path: Path) -> None:
    for _ in range(2):
        model = nn.Linear(2, 2)
        trainer = Engine(lambda engine, batch: None)
        checkpoint = BestCheckpoint({"model": model}, tmp_path, alias="copy")
        hook = EvalHook(None, lambda engine: {"score": 1.0}, checkpoint=checkpoint, model=model,
                        save_best="score", rule="greater")  # fmt: skip
        hook.attach(trainer)
        trainer.run([0])
    assert [name for name in listed(tmp_path) if name.endswith("best.pt")] == [
        "best.pt", listed(tmp_path / "earlier")[1].join(["earlier/", ""]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.jsonl", '{"loss": 1}\n{"loss": 2}\n'),
        ("best.json", '{"a": 1}'),
        ("best.json", "[]"),
    ],
)
def test_somebody_else_s_file_under_a_name_of_ours_is_refused_and_left_alone(
    name: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    run = Run(tmp_path, LAST)
    with pytest.raises(StateError, match=r"is not a file of this package.*move it away") as error:
        run.go()
    assert str(tmp_path / name) in str(error.value)
    assert run.at("train") == []
    assert (tmp_path / name).read_text() == content
    assert [found for found in listed(tmp_path) if not found.endswith(".lock")] == [name]


def test_a_second_live_run_in_the_same_process_is_refused(tmp_path: Path) -> None:
    second = [Run(tmp_path, Setup("nothing")) for _ in range(3)]
    run = Run(tmp_path, LAST)
    refused: list[str] = []

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def _second(engine: Engine) -> None:
        with pytest.raises(StateError, match="is in use by another run in this process") as error:
            second.pop().go()
        refused.append(str(error.value))

    run.go()
    assert len(refused) == 3
    assert "give this run another out_dir, or its hook another name=" in refused[0]
    assert outcome(run) == outcome(Run(tmp_path / "alone", LAST).go())


def test_a_live_run_that_is_interrupted_keeps_its_folder(tmp_path: Path) -> None:
    whole = outcome(Run(tmp_path / "whole", LAST).go())
    folder = tmp_path / "run"
    second = Run(folder, Setup("nothing"))
    run = Run(folder, LAST)
    interrupted(run, Events.EPOCH_STARTED(once=2))
    with pytest.raises(StateError, match="is in use by another run in this process"):
        second.go()
    run.go()
    assert outcome(run) == whole


def test_hooks_of_two_names_may_run_in_one_folder_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, LAST)

    @run.trainer.on(Events.EPOCH_COMPLETED(once=1))
    def _second(engine: Engine) -> None:
        trainer = Engine(lambda engine, batch: None)
        EvalHook(None, lambda engine: {"acc": 1.0}, model=nn.Linear(2, 2), save_best="acc",
                 out_dir=tmp_path, name="other").attach(trainer)  # fmt: skip
        trainer.run([0])

    run.go()
    assert find_best(tmp_path, name="other").score == 1.0
    assert find_best(tmp_path, name="val").score == 0.6


@pytest.mark.parametrize("saves", ["last", "before"])
def test_a_moved_folder_goes_on_where_it_is(saves: str, tmp_path: Path) -> None:
    setup = Setup(saves, seeded="epoch")
    whole = outcome(Run(tmp_path / "whole", setup).go())
    killed_at(tmp_path / "here", setup, "epoch_started (before)", 3).hook.detach()  # lets go of it
    (tmp_path / "here").rename(tmp_path / "there")
    run = Run(tmp_path / "there", setup).go()
    assert outcome(run) == whole
    assert not (tmp_path / "here").exists()
    assert not (tmp_path / "there" / "earlier").exists()


def test_a_missing_best_file_is_told_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = replace(LAST, epochs=4)
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    killed_at(folder, setup, "epoch_started (before)", 3)
    (folder / "best_model_1_score=0.4.pt").unlink()
    run = Run(folder, setup)
    assert run.hook.best is not None
    caplog.clear()
    run.go()
    assert outcome(run) == whole
    [warning] = warnings_in(caplog)
    assert warning == (
        f"val: the file of the best score, best_model_1_score=0.4.pt, is not in {folder} any more"
    )


def test_a_torn_best_file_is_told_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = replace(LAST, hook={"n_saved": 2}, epochs=4)
    Run(tmp_path, setup).go()
    torn = tmp_path / "best_model_3_score=0.6.pt"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged, or not the one that was saved"):
        load_best(tmp_path, {"model": nn.Linear(2, 2)})
    Run(tmp_path, setup).go()
    assert f"val: {torn} is damaged and not used" in caplog.text
    assert load_best(tmp_path, {"model": nn.Linear(2, 2)}).epoch == 1  # the second best


@pytest.mark.parametrize("content", [b"", b'{"format": "ignite-ev', b"\xff\xfe"])
def test_a_torn_account_of_the_best_is_written_anew_from_the_state(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = replace(LAST, epochs=4)
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    killed_at(folder, setup, "epoch_started (before)", 4)
    (folder / "best.json").write_bytes(content)
    run = Run(folder, setup).go()
    assert outcome(run) == whole
    assert (folder / "earlier" / "damaged" / "best.json").read_bytes() == content
    assert any("best.json" in warning for warning in warnings_in(caplog))


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_a_torn_last_line_of_the_history_is_written_anew(cut: int, tmp_path: Path) -> None:
    whole = outcome(Run(tmp_path / "whole", LAST).go())
    folder = tmp_path / "run"
    killed_at(folder, LAST, "epoch_started (before)", 3)
    text = (folder / "history.jsonl").read_text()
    (folder / "history.jsonl").write_text(text[:-cut])
    assert len(History.read(folder / "history.jsonl")) < 2 or cut == 1
    assert outcome(Run(folder, LAST).go()) == whole


def test_a_history_damaged_in_the_middle_is_put_aside_and_written_anew(tmp_path: Path) -> None:
    whole = outcome(Run(tmp_path / "whole", LAST).go())
    folder = tmp_path / "run"
    killed_at(folder, LAST, "epoch_started (before)", 3)
    text = "oops\n" + (folder / "history.jsonl").read_text()
    (folder / "history.jsonl").write_text(text)
    assert outcome(Run(folder, LAST).go()) == whole
    assert (folder / "earlier" / "damaged" / "history.jsonl").read_text() == text


def test_a_missing_history_is_written_anew(tmp_path: Path) -> None:
    whole = outcome(Run(tmp_path / "whole", LAST).go())
    folder = tmp_path / "run"
    killed_at(folder, LAST, "epoch_started (before)", 3)
    (folder / "history.jsonl").unlink()
    assert outcome(Run(folder, LAST).go()) == whole


def test_rows_of_an_abandoned_stretch_leave_the_history(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    abandoned(folder, NINE, reach=8, back_to=5)
    assert len(History.read(folder / "history.jsonl")) == 8
    run = Run(folder, NINE)
    at_start: list[int] = []
    run.trainer.add_event_handler(
        Events.EPOCH_STARTED(once=6),
        lambda: at_start.extend(r.epoch for r in History.read(folder / "history.jsonl")),
    )
    run.go()
    assert at_start == [1, 2, 3, 4, 5]


def test_rows_of_another_stretch_do_not_speak_for_the_state(tmp_path: Path) -> None:
    setup = Setup("after", seeded="epoch")
    folder = tmp_path / "run"
    killed_at(folder, setup, "epoch_started (before)", 3)
    newest = sorted((folder / "by hand").iterdir())[-1]
    kept = newest.read_bytes()
    newest.unlink()
    # The second stretch evaluates epoch 2 otherwise; then the first one is taken up again.
    killed_at(folder, replace(setup, scores=[0.25] * 8), "epoch_started (before)", 2)
    newest.write_bytes(kept)
    run = Run(folder, setup).go()
    on_disk = History.read(folder / "history.jsonl")
    assert [r.metrics["score"] for r in on_disk] == [r.metrics["score"] for r in run.hook.history]
    assert [r.metrics["score"] for r in on_disk] == [0.4, 0.1, 0.6]


def test_strings_in_the_history_on_disk_survive_a_restart(tmp_path: Path) -> None:
    setup = replace(LAST, hook={"compute_metrics": lambda results: {"note": "é", "list": [1.0]}})
    Run(tmp_path, setup).go()
    Run(tmp_path, setup).go()
    for record in History.read(tmp_path / "history.jsonl"):
        assert (record.metrics["note"], record.metrics["list"]) == ("é", [1.0])


def test_a_store_behind_a_url_is_resumed_put_aside_and_found(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"

    def run(epochs: int, *, resume: bool) -> EvalHook:
        model = nn.Linear(2, 2)
        trainer = Engine(lambda engine, batch: None)
        hook = EvalHook(None, lambda engine: {"acc": engine.state.epoch / 10}, model=model,
                        save_best="acc", out_dir=url)  # fmt: skip
        hook.attach(trainer)
        assert hook.keep_last({"model": model}, resume=resume) is resume
        trainer.run([0, 1], max_epochs=epochs)
        return hook

    first = run(2, resume=False).state_dict()["run_id"]
    hook = run(3, resume=True)
    assert hook.state_dict()["run_id"] == first
    assert [record.epoch for record in hook.history] == [1, 2, 3]
    assert find_best(url).score == 0.3
    run(1, resume=False)
    assert find_best(url).score == 0.1
    assert find_best(f"{url}/earlier/{first}").score == 0.3


# last.pt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], CheckpointError, "cannot read the checkpoint"),
        (lambda whole: b"", CheckpointError, "cannot read the checkpoint"),
        (lambda whole: b"not a checkpoint", CheckpointError, "cannot read the checkpoint"),
        ({"model": {"weight": torch.ones(1)}}, StateError, "was not written by keep_last"),
        ([1, 2], CheckpointError, "holds a list, no dict"),
    ],
    ids=["torn", "empty", "text", "foreign", "no dict"],
)
def test_a_torn_or_foreign_last_checkpoint_is_refused_and_left_alone(
    content: Any, error: type[Exception], words: str, resume: bool, tmp_path: Path
) -> None:
    Run(tmp_path, LAST).go()
    last = tmp_path / "last.pt"
    if callable(content):
        last.write_bytes(content(last.read_bytes()))
    else:
        torch.save(content, last)
    before = last.read_bytes()
    run = Run(tmp_path, Setup("nothing"))
    untouched = weights(run)
    with pytest.raises(error, match=words) as raised:
        run.hook.keep_last({"model": run.model}, resume=resume)
    assert str(last) in str(raised.value)
    assert "move it away or use another out_dir" in str(raised.value)
    assert last.read_bytes() == before
    assert weights(run) == untouched
    assert len(run.hook.history) == 0


def test_a_last_checkpoint_of_another_model_is_refused_and_nothing_is_loaded(
    tmp_path: Path,
) -> None:
    Run(tmp_path, LAST).go()
    run = Run(tmp_path, Setup("nothing"))
    state = run.hook.state_dict()
    with pytest.raises(StateError, match=r"'model' does not fit.*'weight', 'bias'"):
        run.hook.keep_last({"model": nn.Linear(3, 3)})
    with pytest.raises(StateError, match=r"has no \['scheduler'\]; it has \['model'"):
        run.hook.keep_last({"model": run.model, "scheduler": run.optimizer})
    assert run.hook.state_dict() == state
    assert run.trainer.state.iteration == 0


def test_resume_false_starts_anew_and_puts_the_last_checkpoint_aside(tmp_path: Path) -> None:
    first = Run(tmp_path, LAST).go()
    last = (tmp_path / "last.pt").read_bytes()
    run = Run(tmp_path, Setup("nothing"))
    assert not run.hook.keep_last({"model": run.model}, resume=False)
    run.go()
    assert run.at("train") == [1, 2, 3, 4, 5, 6]
    aside = tmp_path / "earlier" / first.hook.state_dict()["run_id"]
    assert (aside / "last.pt").read_bytes() == last
    assert (tmp_path / "last.pt").exists()


def test_the_last_checkpoint_can_be_read_by_anyone(tmp_path: Path) -> None:
    Run(tmp_path, replace(LAST, patience=9, second={"save_best": "loss", "rule": "less"})).go()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert sorted(state) == ["eval_hook", "model", "optimizer", "random", "test_hook", "trainer"]
    assert [row["iteration"] for row in state["eval_hook"]["history"]] == [2, 4, 6]


# The state --------------------------------------------------------------------------------------


def test_the_state_is_plain_at_any_moment_and_loads_into_a_new_hook(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    run = Run(tmp_path / "run", replace(LAST, patience=9))

    def note(*_: Any) -> None:
        states.append(run.hook.state_dict())

    note()
    for event in (*EvalEvents, Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED):
        run.trainer.add_event_handler(event, note)
    for event in (Events.STARTED, Events.ITERATION_COMPLETED, Events.COMPLETED):
        run.hook.evaluator.add_event_handler(event, note)
    run.go()
    note()
    run.hook.detach()
    note()
    assert len(states) > 30
    for number, state in enumerate(states):
        file = tmp_path / f"{number}.pt"
        torch.save(state, file)
        loaded = torch.load(file, weights_only=True)
        assert loaded == state
        assert str(tmp_path) not in json.dumps(state)  # so that the folder can move
        other = Run(tmp_path / "other", Setup("nothing", patience=9)).hook
        other.load_state_dict(loaded)
        assert other.state_dict() == {**state, "epoch": 0}
        assert other.history == History.from_list(state["history"])


@pytest.mark.parametrize("early", [True, False], ids=["load, then attach", "attach, then load"])
def test_load_and_attach_come_in_either_order(early: bool, tmp_path: Path) -> None:
    setup = Setup("after", seeded="epoch")
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    killed_at(folder, setup, "epoch_started (before)", 3)
    checkpoint = torch.load(folder / "by hand" / "checkpoint_4.pt", weights_only=True)
    run = Run(folder, replace(setup, saves="nothing"))
    run.hook.detach()
    if early:
        run.hook.load_state_dict(checkpoint["eval_hook"])
    run.hook.attach(run.trainer)
    if not early:
        run.hook.load_state_dict(checkpoint["eval_hook"])
    for name in ("model", "optimizer", "trainer"):
        run.objects[name].load_state_dict(checkpoint[name])
    run.go()
    assert outcome(run) == whole


@pytest.mark.parametrize("early", [True, False], ids=["stopping, then load", "load, then stopping"])
def test_early_stopping_takes_its_counter_from_the_state_in_either_order(
    early: bool, tmp_path: Path
) -> None:
    killed = killed_at(tmp_path, Setup("nothing", patience=3), "epoch_started (before)", 3)
    state = killed.hook.state_dict()
    run = Run(tmp_path, Setup("nothing"))
    if not early:
        run.hook.load_state_dict(state)
    stopper = run.hook.early_stopping(3, metric="score")
    if early:
        run.hook.load_state_dict(state)
    assert stopper.state_dict() == {"counter": 1, "best_score": 0.4}


def test_an_empty_state_loads_as_fresh(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(LAST, patience=9)).go()
    run.hook.load_state_dict({})
    assert len(run.hook.history) == 0
    assert run.hook.best is None
    assert run.stopper is not None
    assert run.stopper.counter == 0
    run.go()
    assert [record.iteration for record in run.hook.history] == [2, 4, 6]
    assert run.hook.best is not None


def test_the_state_of_a_hook_of_another_name_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(LAST, second={"save_best": "loss", "rule": "less"})).go()
    val, test = run.hooks
    before = val.state_dict()
    with pytest.raises(StateError, match="the state is of the hook 'test', this one is 'val'"):
        val.load_state_dict(test.state_dict())
    assert val.state_dict() == before


def test_the_hook_s_state_without_the_trainer_s_is_refused(tmp_path: Path) -> None:
    killed = killed_at(tmp_path, Setup("nothing"), "epoch_started (before)", 3)
    files = {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)}
    run = Run(tmp_path, Setup("nothing"))
    run.hook.load_state_dict(killed.hook.state_dict())
    words = "of iteration 4, but the trainer stands at 0; load the trainer's state"
    with pytest.raises(StateError, match=words):
        run.go()
    assert run.at("train") == []
    assert {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)} == files


def damaged(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a state with each of its parts missing, or of another kind."""

    def walk(part: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if not isinstance(part, (dict, list)):
            return
        for key in part if isinstance(part, dict) else range(len(part)):
            yield (*path, key)
            yield from walk(part[key], (*path, key))

    for path in walk(state, ()):
        for kind in ("missing", None, "text", 3.5, [], {"a": 1}, [["x"]], [{}]):
            copied = copy_of(state)
            part = copied
            for key in path[:-1]:
                part = part[key]
            if kind == "missing":
                del part[path[-1]]
            else:
                part[path[-1]] = kind
            yield f"{path} {kind!r}", copied


def test_a_damaged_state_is_refused_with_words_and_changes_nothing(tmp_path: Path) -> None:
    setup = replace(LAST, patience=9, hook={"n_saved": 2})
    state = Run(tmp_path, setup).go().hook.state_dict()
    run = Run(tmp_path / "other", Setup("nothing", patience=9, hook={"n_saved": 2}))
    refused = []
    for what, broken in damaged(copy_of(state)):
        run.hook.load_state_dict({})
        before = plain(run.hook.state_dict())
        try:
            run.hook.load_state_dict(broken)
        except StateError as error:
            refused.append(str(error))
            assert plain(run.hook.state_dict()) == before, what
        else:
            torch.save(run.hook.state_dict(), tmp_path / "state.pt")
    assert len(refused) > 200
    assert all("state" in words for words in refused)
    for place in ({"epoch": "1"}, {"iteration": None}, {"metrics": [1]}, {"samples": "4"},
                  {"is_best": "yes"}, {"seconds": None}, {"best_of": "score"}):  # fmt: skip
        broken = copy_of(state)
        broken["history"][0].update(place)
        with pytest.raises(StateError, match=f"this is no state .*{next(iter(place))} of a record"):
            run.hook.load_state_dict(broken)
    with pytest.raises(TypeError, match="state must be a mapping, got list"):
        run.hook.load_state_dict([])  # type: ignore[arg-type]


# A run taken over -------------------------------------------------------------------------------


def taken_over(folder: Path, options: dict[str, Any], *, iteration: int) -> Run:
    """Return a run whose trainer stands at ``iteration``, with a hook that has no state."""
    run = Run(folder, Setup("nothing", seeded="iteration", hook=options, epochs=5))
    run.trainer.load_state_dict({"iteration": iteration, "epoch_length": 2, "max_epochs": 5})
    return run.go()


@pytest.mark.parametrize(
    ("options", "iteration", "log"),
    [
        ({}, 4, ["train 5"]),
        ({"start": None, "interval": 2}, 4, ["train 5"]),
        ({"start": 0}, 4, ["eval_started 4", "eval_completed 4"]),
        ({"start": 2}, 4, ["eval_started 4", "eval_completed 4"]),
        ({"start": 3}, 4, ["train 5"]),
        ({"start": 1, "interval": 3}, 6, ["eval_started 6"]),  # off the grid, as MMCV does
        ({"start": 2}, 3, ["train 4"]),  # one epoch is completed
        ({"start": 1}, 3, ["eval_started 3"]),
        ({"start": 3, "by_epoch": False}, 3, ["eval_started 3"]),
        ({"start": 4, "by_epoch": False}, 3, ["train 4", "eval_started 4"]),
        ({"start": 1, "interval": 0.5}, 2, ["eval_started 2"]),
        ({"interval": 0.5}, 3, ["train 4", "eval_started 4"]),
    ],
)
def test_a_run_taken_over_is_evaluated_before_it_goes_on_if_start_says_so(
    options: dict[str, Any], iteration: int, log: list[str], tmp_path: Path
) -> None:
    run = taken_over(tmp_path, options, iteration=iteration)
    assert [f"{what} {i}" for what, i in run.log][: len(log)] == log
    assert run.at("eval_started") == [record.iteration for record in run.hook.history]


def test_a_run_taken_over_in_a_used_folder_adopts_nothing(tmp_path: Path) -> None:
    first = Run(tmp_path, LAST).go()
    run = taken_over(tmp_path, {}, iteration=6)
    assert [record.iteration for record in run.hook.history] == [8, 10]
    assert listed(tmp_path / "earlier") == sorted(
        f"{first.hook.state_dict()['run_id']}/{name}"
        for name in ("best.json", "best_model_3_score=0.6.pt", "history.jsonl", "last.pt")
    )


# Attached late ----------------------------------------------------------------------------------


def late(folder: Path, setup: Setup, event: Any, *, state: Mapping[str, Any] | None = None) -> Run:
    """Attach the hook in a handler of ``event``."""
    run = Run(folder, replace(setup, saves="nothing"))
    run.hook.detach()

    def attach(engine: Engine) -> None:
        if state is not None:
            run.hook.load_state_dict(state)
        run.hook.attach(engine)

    run.trainer.add_event_handler(event, attach)
    return run


@pytest.mark.parametrize(
    ("event", "options", "evaluated"),
    [
        (Events.STARTED, {}, [2, 4, 6]),
        (Events.STARTED, {"start": 0}, [0, 2, 4, 6]),
        (Events.STARTED, {"start": 0, "by_epoch": False, "interval": 3}, [0, 3, 6]),
        (Events.EPOCH_STARTED(once=1), {"start": 0, "interval": 2}, [0, 4]),
        (Events.EPOCH_STARTED(once=2), {"start": 1, "interval": 2}, [2, 6]),
        (Events.EPOCH_STARTED(once=2), {}, [4, 6]),
        (Events.ITERATION_STARTED(once=3), {"start": 1}, [4, 6]),
        (Events.ITERATION_COMPLETED(once=1), {}, [2, 4, 6]),
        (Events.ITERATION_COMPLETED(once=1), {"by_epoch": False}, [1, 2, 3, 4, 5, 6]),
        (Events.ITERATION_COMPLETED(once=3), {"interval": 0.5}, [3, 4, 5, 6]),
        (Events.EPOCH_COMPLETED(once=1), {}, [2, 4, 6]),
        (Events.EPOCH_COMPLETED(once=1), {"start": 1, "interval": 2}, [2, 6]),
        (Events.COMPLETED, {"interval": 2, "at_end": True}, [6]),
    ],
)
def test_a_hook_attached_while_training_does_at_the_first_event_what_started_had_to_do(
    event: Any, options: dict[str, Any], evaluated: list[int], tmp_path: Path
) -> None:
    run = late(tmp_path, Setup(hook=options), event).go()
    assert [record.iteration for record in run.hook.history] == evaluated
    if evaluated:
        assert [r.iteration for r in History.read(tmp_path / "history.jsonl")] == evaluated


def interrupted(run: Run, event: Any) -> None:
    with run.trainer.add_event_handler(event, run.trainer.interrupt):
        run.go()


@pytest.mark.parametrize(
    ("options", "event", "evaluated"),
    [
        ({}, Events.EPOCH_STARTED(once=2), [4, 6]),
        ({"start": 1}, Events.EPOCH_COMPLETED(once=1), [2, 4, 6]),
        ({"start": 0}, Events.EPOCH_COMPLETED(once=2), [4, 6]),
        ({"start": 3}, Events.EPOCH_COMPLETED(once=2), [6]),
        ({}, Events.ITERATION_COMPLETED(once=3), [4, 6]),
        ({"by_epoch": False}, Events.ITERATION_COMPLETED(once=3), [4, 5, 6]),
        ({"by_epoch": False, "start": 2}, Events.EPOCH_COMPLETED(once=2), [4, 5, 6]),
    ],
)
def test_a_hook_attached_between_interrupt_and_run_does_what_started_had_to_do(
    options: dict[str, Any], event: Any, evaluated: list[int], tmp_path: Path
) -> None:
    run = Run(tmp_path, Setup("nothing", hook=options))
    run.hook.detach()
    interrupted(run, event)
    assert len(run.hook.history) == 0
    run.hook.attach(run.trainer)
    run.go()
    assert [record.iteration for record in run.hook.history] == evaluated


@pytest.mark.parametrize("options", [{}, {"by_epoch": False, "interval": 2}, {"interval": 0.5}])
def test_a_state_loaded_between_interrupt_and_run_is_brought_up_to_date(
    options: dict[str, Any], tmp_path: Path
) -> None:
    setup = Setup("nothing", hook=options)
    states: list[Any] = []
    first = Run(tmp_path / "first", setup)
    first.trainer.add_event_handler(
        EvalEvents.EVAL_STARTED, lambda engine: states.append(first.hook.state_dict())
    )
    interrupted(first, Events.EPOCH_COMPLETED(once=2))
    state = next(s for s in states if s["iteration"] == 4)  # lacks the evaluation at 4

    run = Run(tmp_path / "run", setup)
    run.hook.detach()
    interrupted(run, Events.EPOCH_COMPLETED(once=2))
    run.hook.load_state_dict(state)
    run.hook.attach(run.trainer)
    run.go()
    assert run.log[4:6] == [("eval_started", 4), ("eval_completed", 4)]
    assert [r.iteration for r in run.hook.history] == [r.iteration for r in first.go().hook.history]
