"""Hold the random generators of training, so that a restart draws what it would have drawn."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.data import BatchSampler, DataLoader

from .._evaluate.one_pass import iterations_before_epoch

__all__: list[str] = []


class RandomState:
    """The random generators of this process, as an object to be saved.

    Loading is put off until training starts, since building the model draws from them.
    """

    def __init__(self, trainer: Engine, rank: int = 0) -> None:
        self._trainer = trainer
        self._rank = rank
        self.pending: Mapping[str, Any] | None = None
        self._before_pass: list[torch.Tensor] = []
        self._pass_began = 0  # after so many iterations
        self._before_early_pass: dict[str, Any] | None = None

    def note_pass(self, engine: Engine, iter_counter: int | None = None) -> None:
        """Note how the generators stand before a pass over the data."""
        event = engine.last_event_name
        if event is Events.EPOCH_STARTED and engine._dataloader_iter is not None:
            return  # a pass goes on, or is noted when the present one has run out
        self._before_pass = self._loader_states()
        self._pass_began = engine.state.iteration
        # After terminate_epoch() Ignite begins the next pass before the epoch is completed.
        early = event is Events.TERMINATE_SINGLE_EPOCH
        self._before_early_pass = self._now() if early else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's, Python's and NumPy's generators and of the loader's."""
        if self.pending is not None:  # training goes on from there, not from here
            return {key: value for key, value in self.pending.items() if key != "ranks"}
        state = self._now()
        state["loader_before_pass"] = self._before_pass
        if (
            self._before_early_pass is not None
            and self._pass_began == self._trainer.state.iteration
        ):
            state["before_early_pass"] = self._before_early_pass
        return state

    def _now(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "cuda": _cuda_states(),
            "python": [version, torch.tensor(words), gauss],  # a list would load slowly
            "loader": self._loader_states(),
        }
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            kind, keys, position, has_gauss, cached = numpy.random.get_state()
            words = torch.tensor(keys.tolist())
            state["numpy"] = [kind, words, position, has_gauss, cached]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep ``state`` for :meth:`restore`: what it holds of this rank, if it does."""
        ranks = [state, *state.get("ranks", ())]
        self.pending = ranks[self._rank] if self._rank < len(ranks) else None

    def restore(self) -> None:
        """Set the generators to the loaded state, once."""
        state, self.pending = self.pending, None
        if state is None:
            return
        early = state.get("before_early_pass")
        if early is not None and self._trainer.state.dataloader is not None:
            self._pass_began, self._before_early_pass = self._trainer.state.iteration, early
            self._before_pass = state["loader_before_pass"]
            self._set_loader(early["loader"])
            self._restore_global(early)
            self._trainer._dataloader_iter = iter(self._trainer.state.dataloader)
            self._set_loader(state["loader"])
        else:
            self._restore_loader(state)
        self._restore_global(state)

    def _restore_global(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        numpy = sys.modules.get("numpy")
        if numpy is not None and "numpy" in state:
            kind, words, *rest = state["numpy"]
            numpy.random.set_state((kind, words.numpy().astype("uint32"), *rest))

    def _restore_loader(self, state: Mapping[str, Any]) -> None:
        """Set the loader's generators to where the next pass will find them.

        A sampler draws once more when it has run out, and that is after the epoch is completed
        and saved.  So its pass is gone through again, up to the end that lies behind ``now``.
        """
        loader: Any = self._trainer.state.dataloader
        now = state["loader"]
        if self._set_loader(state["loader_before_pass"]) and self._is_whole(loader):
            # iter(loader) draws a seed for its workers first, also if it has none.
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
            batches = iter(loader.batch_sampler or ())
            for _ in range(len(loader)):
                next(batches, None)
            if len(now) == len(self._loader_states()) and all(
                map(torch.equal, self._loader_states(), now)
            ):
                next(batches, None)
                return
        self._set_loader(now)

    def _is_whole(self, loader: Any) -> bool:
        """Return whether training stands at the end of a pass that can be gone through again."""
        state = self._trainer.state
        return (
            isinstance(loader, DataLoader)
            and type(loader.batch_sampler) is BatchSampler  # others may do more than draw
            and type(loader.sampler).__module__ == BatchSampler.__module__
            and state.epoch_length == len(loader)
            and state.iteration == iterations_before_epoch(self._trainer)
        )

    def _set_loader(self, states: list[torch.Tensor]) -> bool:
        """Set the loader's generators, if there are as many states as generators."""
        generators = self._loader_generators()
        if len(generators) != len(states):
            return False
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return True

    def _loader_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._loader_generators()]

    def _loader_generators(self) -> list[torch.Generator]:
        loader = self._trainer.state.dataloader
        holders = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
        return list(unique.values())


def check_generators(state: Any) -> None:
    """Refuse a saved state of generators that could not be restored.

    Raises:
        Exception: Whatever is wrong with it.
    """
    for of_rank in (state, *state.get("ranks", ())):
        before = of_rank["loader_before_pass"]
        for part in (of_rank, of_rank.get("before_early_pass") or of_rank):
            torch.Generator().set_state(part["torch"])
            version, words, gauss = part["python"]
            random.Random().setstate((version, tuple(words.tolist()), gauss))
            saved = [*part["loader"], *before, *part["cuda"]]
            if not all(isinstance(one, torch.Tensor) and one.dtype == torch.uint8 for one in saved):
                raise TypeError("the state of a generator is no tensor of bytes")
            numpy = sys.modules.get("numpy")
            if numpy is not None and "numpy" in part:
                kind, words, *rest = part["numpy"]
                numpy.random.RandomState().set_state((kind, words.numpy().astype("uint32"), *rest))


def copied(value: Any) -> Any:
    """Copy the tensors of a nested state, which were views of one message."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def _cuda_states() -> list[torch.Tensor]:
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if started else []
