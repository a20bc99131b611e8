"""Find and load the best checkpoint of a folder, without a hook."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from .._decide.best import Best
from .._decide.kept import Kept, Sidecar, is_foreign
from .._ranks.sharded_models import entries_of, has_state, holds_state, load_whole
from ..exceptions import CheckpointError, StateError
from .best_files import as_best, read_sidecar, sidecar_name
from .storage import Storage, open_storage

__all__ = ["find_best", "load_best"]


def find_best(
    out_dir: str | PathLike[str], metric: str | None = None, *, name: str | None = None
) -> Best:
    """Return the best checkpoint that a run has left in ``out_dir``.

    Args:
        out_dir: The folder or fsspec URL that the hook wrote to.
        metric: The metric; by default the first one that the hook followed.
        name: The hook's name, if the folder holds files of several.

    Raises:
        CheckpointError: If there is none, or its file is missing.
        ValueError: If ``metric`` or ``name`` does not say which one is meant.
    """
    storage = open_storage(out_dir)
    sidecar, entry = _find(storage, metric, name)
    check_exists(storage, entry)
    target = next(t for t in sidecar.targets if entry in sidecar.of(t.metric))
    return as_best(target, entry, storage)


def load_best(
    out_dir: str | PathLike[str],
    to_load: Mapping[str, Any],
    *,
    metric: str | None = None,
    name: str | None = None,
) -> Best:
    """Load the best checkpoint of ``out_dir`` into objects.

    Args:
        out_dir: The folder or fsspec URL that the hook wrote to.
        to_load: Name to object with ``load_state_dict``; names as in ``to_save``.
        metric: The metric; by default the first one that the hook followed.
        name: The hook's name, if the folder holds files of several.

    Raises:
        CheckpointError: If there is none, or its file is missing or damaged.
        ValueError: If a name of ``to_load`` is not in the file.
    """
    storage = open_storage(out_dir)
    sidecar, entry = _find(storage, metric, name)
    load_entry(storage, entry, to_load)
    target = next(t for t in sidecar.targets if entry in sidecar.of(t.metric))
    return as_best(target, entry, storage)


def load_entry(storage: Storage, entry: Kept, to_load: Mapping[str, Any]) -> None:
    """Check a listed file and load it.

    Raises:
        CheckpointError: If it is missing, damaged, or another one than was listed.
        StateError: If it holds something that ``to_load`` does not take.
        ValueError: If it lacks a name of ``to_load``.
    """
    check_exists(storage, entry)
    found = storage.fingerprint(entry.file)
    if entry.fingerprint not in (None, found):
        raise CheckpointError(
            f"the best checkpoint {storage.path(entry.file)} is damaged, or not the one that was "
            f"saved: it has (bytes, CRC-32) {found}, best.json says {entry.fingerprint}"
        )
    checkpoint = read_checkpoint(storage, entry.file)
    load_objects(to_load, checkpoint, str(storage.path(entry.file)))


def check_exists(storage: Storage, entry: Kept) -> None:
    """Check that a listed file is there.

    Raises:
        CheckpointError: If it is missing.
    """
    if not storage.exists(entry.file):
        raise CheckpointError(f"the best checkpoint {storage.path(entry.file)} is missing")


def read_checkpoint(storage: Storage, file: str, *, lazily: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        storage: Its folder.
        file: Its name.
        lazily: Read tensors only when they are used, where the storage can do that, and do not
            look for damage in them.

    Raises:
        CheckpointError: If it cannot be read, or is damaged.
    """
    path = storage.path(file)
    try:
        if lazily and isinstance(path, Path):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with storage.open(file) as stream:
                _check_records(stream)
                stream.seek(0)
                checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the checkpoint {storage.path(file)}: {error}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{storage.path(file)} holds a {type(checkpoint).__name__}, no dict")
    return checkpoint


def _check_records(stream: BinaryIO) -> None:
    """Compare what ``torch.save`` has written with the CRC-32 sums it has written beside it.

    Raises:
        ValueError: If they differ.
        Exception: Whatever :mod:`zipfile` finds.
    """
    with zipfile.ZipFile(stream) as archive:
        # Without set_crc32_options() of torch they are all zero, and tell nothing.
        if any(record.CRC for record in archive.infolist()):
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"it is damaged: the CRC-32 of {damaged!r} is another one")


def load_objects(to_load: Mapping[str, Any], checkpoint: dict[str, Any], where: str) -> None:
    """Load states into objects, as Ignite does, after checking that each one is there.

    Raises:
        StateError: If an object does not take its state.
        ValueError: If a name is missing.
    """
    missing = [name for name in to_load if name not in checkpoint]
    if missing and (len(to_load) > 1 or not _is_state_of(checkpoint, to_load[missing[0]])):
        raise ValueError(f"{where} has no {missing}; it has {list(checkpoint)}")
    for name, item in to_load.items():
        if not holds_state(item):
            raise TypeError(f"to_load[{name!r}] must have a load_state_dict(), got {item!r:.80}")
        _load(item, checkpoint if name in missing else checkpoint[name], f"{where}: {name!r}")


def _load(item: Any, state: Any, where: str) -> None:
    """Load a state into an object, or into those in a mapping or list; plain values stay."""
    if has_state(item):
        try:
            load_whole(item, state)
        except StateError as error:
            raise StateError(f"{where}: {error}") from error
        except Exception as error:
            raise StateError(f"{where} cannot be loaded: {error!r}") from error
        return
    for key, inner in entries_of(item):
        if holds_state(inner):
            try:
                part = state[key]
            except (LookupError, TypeError) as error:
                raise StateError(f"{where} has no {key!r}, which is to be loaded") from error
            _load(inner, part, f"{where}[{key!r}]")


def _is_state_of(checkpoint: Mapping[str, Any], item: Any) -> bool:
    """Return whether a file may hold just the state of ``item``, without a name for it."""
    if not isinstance(item, nn.Module) or not checkpoint:
        return True
    return not all(isinstance(value, Mapping) for value in checkpoint.values())


def _find(storage: Storage, metric: str | None, name: str | None) -> tuple[Sidecar, Kept]:
    if name is not None:
        files = [sidecar_name(name)]
    else:
        files = [f for f in storage.list() if f.startswith("best") and f.endswith(".json")]
        files = [f for f in files if not is_foreign(storage.read_text(f))]
    sidecars = [s for s in (read_sidecar(storage, file) for file in sorted(files)) if s]
    if not sidecars:
        wanted = "best*.json" if name is None else sidecar_name(name)
        raise CheckpointError(f"{storage.location} has no {wanted}: no best was saved there")
    known = [t.metric for s in sidecars for t in s.targets]
    if metric is not None:
        sidecars = [s for s in sidecars if metric in [t.metric for t in s.targets]]
        if not sidecars:
            raise ValueError(f"no best of {metric!r} in {storage.location}; there are {known}")
    if len(sidecars) > 1:
        names = [s.name for s in sidecars]
        raise ValueError(f"{storage.location} holds the best of several hooks; pass name={names}")
    sidecar = sidecars[0]
    wanted = sidecar.targets[0].metric if metric is None else metric
    entry = next(iter(sidecar.of(wanted)), None)
    if entry is None:
        raise CheckpointError(f"no best of {wanted!r} has been saved in {storage.location} yet")
    return sidecar, entry
