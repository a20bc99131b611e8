"""Account for the best files in a folder: ``best.json`` and the stable names.

A new file is written beside the old one, made durable and put in place; then the account; only
then is the old file removed.  When anything fails, files and memory are as they were.
"""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from ignite.handlers.checkpoint import BaseSaveHandler

from .._decide.best import Best, Target, legal, legal_names
from .._decide.file_names import spellings
from .._decide.kept import Kept, Sidecar
from .._log import logger
from ..exceptions import CheckpointError
from .base import failure
from .leftovers import Leftovers
from .plain import to_plain
from .storage import Storage

__all__: list[str] = []

_BEING_WRITTEN: dict[str, str] = {}  # place to hook's name: files that no account lists yet


class DeferredSaver(BaseSaveHandler):
    """A save handler whose ``remove`` waits until the new file is accounted for.

    Ignite's ``Checkpoint`` removes the old file before it writes the new one.  Here removing is
    only noted; :meth:`BestFiles.discard` does it when that is safe.
    """

    def __init__(self, target: Storage | BaseSaveHandler) -> None:
        self.target = target
        self.written: str | None = None
        self.fingerprint: tuple[int, str] | None = None
        self.dropped: list[str] = []
        self.before_writing: Callable[[str], object] = lambda filename: None
        self.snapshot: Callable[[Any], Any] | None = None  # set: hold what is to be written
        self.held: Callable[[], None] | None = None

    def begin(self) -> None:
        """Forget the previous save."""
        self.written = self.fingerprint = self.held = None
        self.dropped = []

    def __call__(
        self,
        checkpoint: Mapping[str, Any],
        filename: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``checkpoint`` so that it is complete and durable, or not there at all.

        With a ``snapshot``, only a copy is made now, and ``held`` writes it.

        Raises:
            CheckpointError: If it fails, whatever the cause.
        """
        if self.snapshot is not None:
            try:
                kept = self.snapshot(to_plain(checkpoint, "to_save"))
            except Exception as error:
                raise failure(f"could not copy what {filename} is to hold", error) from error
            self.written = filename
            self.held = partial(self._write, kept, filename, metadata)
            return
        self._write(checkpoint, filename, metadata)

    def _write(
        self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None
    ) -> None:
        if isinstance(self.target, BaseSaveHandler):
            self._hand_over(self.target, checkpoint, filename, metadata)
            self.written = filename
        else:
            self.before_writing(filename)
            self.written = filename  # also when only the very last step of writing fails
            self.target.write(filename, saver(checkpoint, "to_save"))
            self.fingerprint = self.target.fingerprint(filename)

    def _hand_over(
        self,
        target: BaseSaveHandler,
        checkpoint: Mapping[str, Any],
        filename: str,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        arguments: tuple[Any, ...] = (to_plain(checkpoint, "to_save"), filename, metadata)
        try:
            # Ignite finds out whether a handler takes metadata by calling it again after any
            # TypeError, which hides those that have another cause.
            try:
                inspect.signature(target).bind(*arguments)
            except TypeError:
                arguments = arguments[:2]
            target(*arguments)
        except Exception as error:
            raise failure(f"{type(target).__name__} could not save {filename}", error) from error

    def remove(self, filename: str) -> None:
        """Note that ``filename`` is not needed any more."""
        self.dropped.append(filename)


def saver(state: Any, where: str) -> Callable[[Any], None]:
    """Return a function that writes ``state`` to a binary file as ``weights_only`` can read it."""

    def save(file: Any) -> None:
        plain = to_plain(state, where)
        with _crc32():
            torch.save(plain, file)

    return save


@contextmanager
def _crc32() -> Iterator[None]:
    """Let torch write the CRC-32 of each record, by which damage is noticed, in any case."""
    options = torch.serialization
    if not hasattr(options, "get_crc32_options") or options.get_crc32_options():  # since torch 2.6
        yield
        return
    options.set_crc32_options(True)
    try:
        yield
    finally:
        options.set_crc32_options(False)


class BestFiles:
    """The best files in one folder: its ``best.json`` and the stable names.

    Args:
        target: Where files go.
        sidecar: What is kept now.
        alias: ``"copy"`` or ``"link"`` for a stable name ``best.pt``; ``None`` for none.
    """

    def __init__(self, target: Storage | BaseSaveHandler, sidecar: Sidecar, alias: str | None):
        self.storage = None if isinstance(target, BaseSaveHandler) else target
        self.sidecar = sidecar
        self.alias = alias
        self.leftovers = Leftovers(target, f".{legal(sidecar.name)}.leftovers.json")

    def discard(self, files: Iterable[str]) -> None:
        """Remove files that no entry names; what fails is a warning, and tried again later."""
        self.leftovers.remove(files, self.sidecar.files())

    @property
    def sidecar_name(self) -> str:
        """Name of the file with the account: ``best.json``, or with the hook's name in it."""
        return sidecar_name(self.sidecar.name)

    def legal_name(self, metric: str) -> str:
        """Return a metric's name for file names, different for each followed metric."""
        return legal_names(target.metric for target in self.sidecar.targets)[metric]

    def alias_name(self, metric: str) -> str:
        """Return the stable name of a metric's best file."""
        first = self.sidecar.targets[0].metric
        part = "" if metric == first else f"_{self.legal_name(metric)}"
        return f"best{suffix(self.sidecar.name)}{part}.pt"

    def free(self, name: str) -> str:
        """Return a name for a new file: another spelling of ``name`` if that is another hook's."""
        if self.storage is None:
            return name
        others: set[str] = set()
        for file in self.storage.list():
            if file.startswith("best") and file.endswith(".json") and file != self.sidecar_name:
                with suppress(ValueError, CheckpointError):  # damaged, or somebody else's
                    others |= Sidecar.from_json(self.storage.read_text(file) or "").files()
        taken = {file.lower() for file in others}  # some systems take no notice of case
        for spelling in spellings(name):
            place, own = self._place(spelling), self.sidecar.name
            if spelling.lower() not in taken and _BEING_WRITTEN.setdefault(place, own) == own:
                break
        return spelling

    def _place(self, name: str) -> str:
        return "" if self.storage is None else os.path.realpath(self.storage.path(name)).lower()

    def commit(self, target: Target, entry: Kept, dropped: list[str]) -> set[str]:
        """Account for a file that has just been made durable.

        Returns:
            Names of files that were listed before and are not any more.

        Raises:
            CheckpointError: If that cannot be written; :meth:`take_back` puts things right.
        """
        before = self.sidecar
        others = [
            kept
            for kept in before.of(target.metric)
            if kept.file != entry.file and (kept.abandoned or kept.file not in dropped)
        ]
        after = before.with_entries(target, [*others, entry])
        self.publish(after)
        _BEING_WRITTEN.pop(self._place(entry.file), None)
        return before.files() - after.files()

    def publish(self, after: Sidecar) -> None:
        """Point the stable names and then ``best.json`` at ``after``."""
        if self.storage is not None:
            self._point_aliases(self.sidecar, after)
            self.storage.write_text(self.sidecar_name, after.to_json())
        self.sidecar = after

    def unseal(self, file: str) -> None:
        """Give up the fingerprint of an abandoned file that is about to be replaced.

        Training that does not repeat may reach the same score with other weights.  A kill after
        the file is replaced must not make the account call it damaged.
        """

        def unsealed(entry: Kept) -> Kept:
            replaced = entry.file == file and entry.abandoned
            return entry.with_fingerprint(None) if replaced else entry

        after = self.sidecar.with_each(unsealed)
        if self.storage is not None and after != self.sidecar:
            self.sidecar = after
            self.storage.write_text(self.sidecar_name, after.to_json())

    def take_back(
        self,
        target: Target,
        before: Iterable[Kept],
        added: Kept,
    ) -> None:
        """Remove a file that was added, and account for those kept ``before``.

        If the disk is so full that not even ``best.json`` can be written, the file stays, and
        stays listed.
        """
        # A file that was replaced is complete, the old one or the new one: look which.
        before = [self.sealed(e) if e.file == added.file else e for e in before]
        now = self.sidecar.with_entries(target, [*before, added])
        then = self.sidecar.with_entries(target, before)
        try:
            self._write_back(then, added.file)
        except CheckpointError as error:
            logger.warning("%s stays, since it cannot be taken back: %s", added.file, error)
            stays = [*before, replace(added, abandoned=True)]
            self.sidecar = self.sidecar.with_entries(target, stays)
            return
        self.sidecar = then
        self.discard([added.file])  # before the stable names, since it makes room for a copy
        try:
            self._point_aliases(now, then)
        except CheckpointError as error:
            logger.warning("%s", error)

    def sealed(self, entry: Kept) -> Kept:
        """Return an entry with the fingerprint of the file that is there."""
        return entry.with_fingerprint(
            None if self.storage is None else self.storage.fingerprint(entry.file)
        )

    def _write_back(self, then: Sidecar, added: str) -> None:
        """Write ``then``, if the account on disk names the file ``added`` and should not."""
        if self.storage is None or added in then.files():
            return
        text = self.storage.read_text(self.sidecar_name)
        if text is None or added not in Sidecar.from_json(text).files():
            return
        if then.files():
            self.storage.write_text(self.sidecar_name, then.to_json())
        else:
            self.storage.remove(self.sidecar_name)

    def _point_aliases(self, before: Sidecar, after: Sidecar) -> None:
        if self.storage is None or self.alias is None:
            return
        for target in after.targets:
            alias = self.alias_name(target.metric)
            top, was = after.of(target.metric)[:1], before.of(target.metric)[:1]
            if not top:
                if was:
                    self.storage.remove(alias)
            elif self.storage.exists(top[0].file) and not (
                was and was[0].is_same_file(top[0]) and self.storage.exists(alias)
            ):
                self.storage.link_or_copy(top[0].file, alias, self.alias)

    def refuse_foreign_aliases(self, known: Iterable[Kept]) -> None:
        """Refuse to replace a file that has a stable name of ours but is not ours.

        Args:
            known: Files of ours, in the folder or not.

        Raises:
            CheckpointError: Naming the file.
        """
        if self.storage is None or self.alias is None:
            return
        ours = {entry.fingerprint for entry in known}
        fingerprint = self.storage.fingerprint
        for target in self.sidecar.targets:
            alias = self.alias_name(target.metric)
            found = fingerprint(alias)
            # A kill may have come between the stable name and the account of the file.
            others = (f for f in self.storage.list() if f != alias and f.startswith("best"))
            if found is None or found in ours or found in map(fingerprint, others):
                continue
            raise CheckpointError(
                f"{self.storage.path(alias)} is not this run's, and alias={self.alias!r} would "
                "replace it; move it away, or leave alias out"
            )

    def best(self, metric: str) -> Kept | None:
        """Return the best file of ``metric`` that is listed."""
        return next(iter(self.sidecar.of(metric)), None)


def suffix(name: str) -> str:
    """Return what tells a hook's files from those of others; nothing for the default name."""
    return "" if name == "val" else f"_{legal(name)}"


def owner_of(name: str) -> str:
    """Return what tells a hook's temporary files from those of others, in a few letters."""
    safe = legal(name)
    return safe if len(safe) < 16 else f"{zlib.crc32(name.encode()):08x}"


def sidecar_name(name: str) -> str:
    """Return the name of a hook's account of its best files."""
    return f"best{suffix(name)}.json"


def read_sidecar(storage: Storage, file: str) -> Sidecar | None:
    """Read an account of best files; ``None`` if there is none.

    Raises:
        CheckpointError: If it is damaged or not ours.
    """
    text = storage.read_text(file)
    if text is None:
        return None
    try:
        return Sidecar.from_json(text)
    except ValueError as error:
        raise CheckpointError(f"{storage.path(file)}: {error}") from error


def as_best(target: Target, entry: Kept, storage: Storage | None) -> Best:
    """Return a kept file as the public value."""
    path = None if storage is None else storage.path(entry.file)
    return Best(target.metric, entry.score, entry.epoch, entry.iteration, path)


def as_live(entry: Kept) -> Kept:
    """Return ``entry`` as one that the run's history knows."""
    return replace(entry, abandoned=False)
