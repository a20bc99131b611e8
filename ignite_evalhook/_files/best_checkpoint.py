"""Keep the best checkpoints on disk, and never lose one.

:class:`BestCheckpoint` is Ignite's ``Checkpoint`` with a score function.  Ignite decides which
files the top-k holds; what changes is the order of what happens on disk.  The new file is
written beside the old one, made durable and put in place; then ``best.json``; only then is the
old file removed.  When anything fails, files and memory are as they were.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, NoReturn

from ignite.engine import Engine
from ignite.handlers import Checkpoint, EMAHandler
from ignite.handlers.checkpoint import BaseSaveHandler, DiskSaver

from .._decide.best import KEEP_ALL, PART, Target, legal
from .._decide.file_names import check_length, checked
from .._decide.kept import Kept, Sidecar
from .._decide.position import Position
from .._decide.rules import Rule, infer_rule
from .._log import logger
from .._ranks.sharded_models import entries_of, has_state
from ..exceptions import CheckpointError
from .background import Writer
from .best_files import BestFiles, DeferredSaver, owner_of, read_sidecar, suffix
from .plain import to_plain
from .snapshot import Snapshots
from .storage import Storage, open_storage

__all__ = ["BestCheckpoint"]

OutDir = str | PathLike[str] | BaseSaveHandler
ALIASES = (None, "copy", "link")
ON_SAVE_ERROR = ("raise", "warn")


class BestCheckpoint(Checkpoint):
    """Keep the best checkpoints of one metric, safely.

    Give it to ``EvalHook(checkpoint=...)``, which tells it what to follow.  By itself it is a
    handler like Ignite's, with ``score_name`` (and ``rule``) saying what is best.

    Args:
        to_save: Name to object with a ``state_dict``, as for Ignite's ``Checkpoint``.
        out_dir: A folder, an fsspec URL, or an Ignite save handler.
        n_saved: Files to keep; ``None`` keeps all.
        alias: ``"copy"`` or ``"link"``: keep a stable name ``best.pt`` too, as a copy or as a
            hard link of our own file.
        async_save: Let training go on while a file is written.  The evaluation only copies the
            states into host memory, which is kept for the next time; a thread writes them, makes
            them durable, and then accounts for them.  Until then ``hook.best`` has no path.
            What fails is raised at the next evaluation, or at the end of the run.
        on_save_error: ``"raise"``, or ``"warn"``: log the first failure and train on with the old
            best.  With a hook this is for its ``history.jsonl`` and ``last.pt`` too.
        filename_pattern: As for Ignite's ``Checkpoint``: a format string of ``filename_prefix``,
            ``name``, ``global_step``, ``score_name``, ``score`` and ``ext``.  ``global_step`` must
            be in it, so that a new file never replaces the old best.
        score_name: The metric to follow when there is no hook.
        rule: ``"greater"`` or ``"less"``; inferred from ``score_name`` by default.
        global_step_transform: As for Ignite's ``Checkpoint``; only used without a hook.

    Raises:
        TypeError: If ``to_save`` holds objects without a ``state_dict``.
        ValueError: If an option is none of those allowed.

    Source:
        Ignite's ``Checkpoint`` decides; the order of writing before removing is what Lightning
        came to in its issue 1150.
    """

    def __init__(
        self,
        to_save: Mapping[str, Any],
        out_dir: OutDir,
        *,
        n_saved: int | None = 1,
        alias: str | None = None,
        async_save: bool = False,
        on_save_error: str = "raise",
        filename_pattern: str | None = None,
        score_name: str | None = None,
        rule: str | None = None,
        global_step_transform: Callable[..., int] | None = None,
    ) -> None:
        if alias not in ALIASES:
            raise ValueError(f"alias must be one of {ALIASES}, got {alias!r}")
        if on_save_error not in ON_SAVE_ERROR:
            raise ValueError(f"on_save_error must be one of {ON_SAVE_ERROR}, got {on_save_error!r}")
        if type(async_save) is not bool:
            raise ValueError(f"async_save must be True or False, got {async_save!r}")
        if rule is not None and score_name is None:
            raise ValueError("rule= belongs to score_name=; a hook has a rule= of its own")
        check_n_saved(n_saved)
        check_to_save(to_save)
        where = out_dir if isinstance(out_dir, BaseSaveHandler) else open_storage(out_dir)
        check_pattern(filename_pattern, where)
        self.saver = DeferredSaver(where)
        self.async_save = async_save
        self._snapshots = Snapshots() if async_save else None
        self.saver.snapshot = None if self._snapshots is None else self._snapshots.take
        self._writer = Writer()  # for one without a hook
        super().__init__(
            to_save,
            self.saver,
            filename_prefix="best",
            n_saved=n_saved,
            global_step_transform=global_step_transform,
            filename_pattern=filename_pattern,
        )
        self.alias = alias
        self.on_save_error = on_save_error
        self.files: BestFiles | None = None
        self.target: Target | None = None
        self._before: tuple[list[Any], tuple[Kept, ...]] | None = None  # what a save has changed
        self._entry: Kept | None = None
        self._states: Mapping[str, Any] | None = None  # what to write, while saving
        self._owner: str | None = None
        self._begun = True
        if score_name is not None:
            found = Rule(rule) if rule is not None else infer_rule(score_name)
            target = Target(score_name, found, n_saved or KEEP_ALL)
            files = BestFiles(where, Sidecar("val", uuid.uuid4().hex[:12], (target,)), alias)
            self.bind(target, files, self._score_of_engine, self._position_of_engine)
            self._begun = False

    def take(self, owner: str) -> None:
        """Belong to the hook called ``owner``.

        Raises:
            ValueError: If it belongs to another one, or would write files of the same names.
        """
        if self._owner is not None:
            raise ValueError(
                f"this BestCheckpoint belongs to the hook {self._owner!r} already; make another "
                f"one for {owner!r}"
            )
        pattern = self.filename_pattern
        if suffix(owner) and pattern is not None and "{filename_prefix}" not in pattern:
            raise ValueError(
                f"filename_pattern={pattern!r} needs {{filename_prefix}}, which tells the files of "
                f"the hook {owner!r} from those of other hooks"
            )
        self._owner = owner
        self._begun = True
        if isinstance(self.saver.target, Storage):
            self.saver.target.owner = owner_of(owner)

    def bind(
        self,
        target: Target,
        files: BestFiles,
        score_function: Callable[[Engine], float],
        position: Callable[[Engine], Position],
    ) -> None:
        """Follow ``target``.

        Args:
            target: The metric and its rule.
            files: The account to keep.
            score_function: The score of an engine, signed so that higher is better.
            position: Where training stands.
        """
        self.target = target
        self.files = files
        self.score_function = score_function
        self.score_name = files.legal_name(target.metric)
        self.filename_prefix = f"best{suffix(files.sidecar.name)}"
        self.n_saved = None if target.n_saved >= KEEP_ALL else target.n_saved
        self._position = position
        check_length(self._filename(-1.23457e-100, 10**9), owner_of(files.sidecar.name))

    def for_another(self) -> BestCheckpoint:
        """Return an unbound checkpoint with the same settings, for another metric."""
        twin = copy.copy(self)
        twin.saver = DeferredSaver(self.saver.target)
        if self.async_save:
            twin._snapshots = Snapshots()
            twin.saver.snapshot = twin._snapshots.take
        twin.save_handler = twin.saver  # type: ignore[assignment]  # Ignite says DiskSaver
        twin._saved = []
        twin.files = twin.target = None
        return twin

    def __call__(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Save if the score belongs to the top-k, and remove what does not any more.

        Raises:
            CheckpointError: If the file, or the account of it, cannot be written.  Then files
                and memory are as they were.
        """
        self.wait()
        try:
            self.save(engine)
        except CheckpointError as error:
            if self.on_save_error != "warn":
                raise
            logger.error("the best was not saved: %s", error)
        if self.holds is not None:
            self._writer.submit(self.write_held)
        self.settle()

    def wait(self) -> None:
        """Wait until the file that is being written in the background is there.

        Raises:
            CheckpointError: If it could not be written (with ``on_save_error="warn"``, that is
                only logged).
        """
        try:
            self._writer.wait()
        except CheckpointError:
            if self.on_save_error != "warn":
                raise

    def state_dict(self) -> Any:
        """Return Ignite's state, which names the files that there are."""
        self.wait()
        return super().state_dict()

    def reload_objects(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse what Ignite's own offers for files that a ``DiskSaver`` has named.

        Raises:
            AttributeError: Naming what loads the best.
        """
        raise AttributeError(
            "a BestCheckpoint has no reload_objects; load_best(out_dir, to_load) loads the best of "
            "a folder, and hook.load_best() that of a hook"
        )

    def would_save(self, score: float) -> bool:
        """Return whether ``score`` belongs to the top-k."""
        if self.target is None or not self.target.is_better(score, None):
            return False
        return self._check_lt_n_saved() or self._compare_fn(self.target.rule.signed(score))

    def save(self, engine: Engine, states: Mapping[str, Any] | None = None) -> None:
        """Save if the score belongs to the top-k.

        What it makes superfluous stays until :meth:`settle`, and :meth:`undo` takes it back.

        Args:
            engine: The engine that has the score.
            states: What to write, by name; by default the states of ``to_save``.

        Raises:
            CheckpointError: If the file, or the account of it, cannot be written.  Then files
                and memory are as they were.
        """
        if self.target is None or self.files is None or self.score_function is None:
            raise ValueError(
                "this BestCheckpoint follows no metric: pass it to EvalHook(checkpoint=...) or "
                "give it score_name="
            )
        if not self._begun:
            self._begin_by_itself(self.files)
        signed = self.score_function(engine)
        score = signed if self.target.rule is Rule.GREATER else -signed
        if not self.target.is_better(score, None):
            return
        position = self._position(engine)
        files, pattern, event_name = self.files, self.filename_pattern, engine.last_event_name
        filename = files.free(self._filename(score, position.step))
        self.filename_pattern = filename.replace("{", "{{").replace("}", "}}")
        self.saver.begin()
        self.saver.before_writing = files.unseal
        self._states = states
        self._before = (list(self._saved), files.sidecar.of(self.target.metric))
        self._entry = Kept(score, position.epoch, position.iteration, filename)
        try:
            super().__call__(engine)
            if self.saver.written is None:
                return
            if self.saver.held is None:
                self._commit()
            self._order_ties()
        except BaseException:
            self.undo()
            raise
        finally:
            self._states = None
            self.filename_pattern = pattern
            engine.last_event_name = event_name  # Ignite has fired SAVED_CHECKPOINT

    def undo(self) -> None:
        """Take the last :meth:`save` back, if it is not settled."""
        if self._before is None or self.files is None or self.target is None:
            return
        self._saved, entries = self._before
        self._before = None
        if self.saver.held is not None:
            self.saver.begin()  # nothing is written yet
        elif self.saver.written is not None and self._entry is not None:
            self.files.take_back(self.target, entries, self._entry)

    @property
    def holds(self) -> Kept | None:
        """What the last :meth:`save` has copied and :meth:`write_held` is to write."""
        return None if self.saver.held is None else self._entry

    def write_held(self) -> None:
        """Write what the last :meth:`save` has copied, and settle; from any thread.

        Raises:
            CheckpointError: If it cannot be written.  Then files and memory are as they were
                before that save.
        """
        if self.saver.held is None:
            return
        if self._snapshots is not None:
            self._snapshots.wait()
        held, self.saver.held = self.saver.held, None
        self.saver.written, filename = None, self.saver.written
        try:
            held()
            self.saver.written = filename
            self._commit()
        except BaseException:
            self.undo()
            raise
        self.settle()

    def _commit(self) -> None:
        """Account for the file that has just been made durable."""
        if self.target is None or self.files is None or self._entry is None:
            return
        self._entry = self._entry.with_fingerprint(self.saver.fingerprint)
        gone = self.files.commit(self.target, self._entry, self.saver.dropped)
        self.saver.dropped = sorted({*self.saver.dropped, *gone})

    def settle(self) -> None:
        """Remove the files that the last :meth:`save` has made superfluous."""
        if self._before is None or self.files is None or self.saver.held is not None:
            return
        self._before = None
        self.files.discard({*self.saver.dropped} - {self.saver.written})
        self.saver.dropped = []

    def restore(self, live: tuple[Kept, ...]) -> None:
        """Take over the files that an earlier part of the run has kept, best first."""
        if self.target is None:
            raise ValueError("bind() comes before restore()")
        # Ignite gives up the first item first: the worst, and the last one to come among equals.
        self._saved = [
            Checkpoint.Item(self.target.rule.signed(e.score), e.file) for e in reversed(live)
        ]

    def _order_ties(self) -> None:
        """Put the file just saved where Ignite gives it up before the earlier ones it equals."""
        if self.target is None or self.target.prefers_later:
            return
        new = [item for item in self._saved if item.filename == self.saver.written]
        others = [item for item in self._saved if item.filename != self.saver.written]
        self._saved = sorted([*new, *others], key=lambda item: item.priority)

    def _begin_by_itself(self, files: BestFiles) -> None:
        """Go on with the files that a loaded state names; put those of another run aside."""
        self._begun = True
        storage, file = files.storage, files.sidecar_name
        found = None if storage is None else read_sidecar(storage, file)
        if storage is None or found is None or self.target is None:
            return
        known = {item.filename for item in self._saved}
        if known & found.files():
            entries = [
                replace(entry, abandoned=entry.file not in known)
                for entry in found.of(self.target.metric)
            ]
            empty = replace(files.sidecar, run_id=found.run_id)
            files.sidecar = empty.with_entries(self.target, entries)
            files.leftovers.recall(found.files())
            return
        ours = {storage.fingerprint(name) for name in found.files()}
        aliases = [files.alias_name(self.target.metric)]
        aliases = [alias for alias in aliases if storage.fingerprint(alias) in ours - {None}]
        for name in (*aliases, *sorted(found.files()), file):
            storage.move(name, f"earlier/{legal(found.run_id)}/{name}")

    def _filename(self, score: float, step: int) -> str:
        alone = list(self.to_save)
        fields = {
            "filename_prefix": self.filename_prefix,
            "name": legal(alone[0], PART) if len(alone) == 1 else "checkpoint",
            "global_step": step,
            "score_name": self.score_name,
            "score": f"{score:.6g}",
            "ext": self.ext,
        }
        pattern = "{filename_prefix}_{name}_{global_step}_{score_name}={score}.{ext}"
        return (self.filename_pattern or pattern).format(**fields)

    def _setup_checkpoint(self) -> dict[str, Any]:
        return super()._setup_checkpoint() if self._states is None else dict(self._states)

    def _compare_fn(self, new: float) -> bool:
        # Ignite's own hook for the comparison: a rule_map of the user's decides here as well.
        if self.target is None:
            return super()._compare_fn(new)
        sign = 1.0 if self.target.rule is Rule.GREATER else -1.0
        return self.target.is_better(sign * new, sign * self._saved[0].priority)

    def _score_of_engine(self, engine: Engine) -> float:
        if self.target is None or self.target.metric not in engine.state.metrics:
            raise CheckpointError(
                f"the engine has no metric {self.target and self.target.metric!r}; it has "
                f"{list(engine.state.metrics)}"
            )
        return self.target.rule.signed(float(engine.state.metrics[self.target.metric]))

    def _position_of_engine(self, engine: Engine) -> Position:
        step = engine.state.iteration
        if self.global_step_transform is not None:
            step = self.global_step_transform(engine, engine.last_event_name)
        return Position(engine.state.epoch, engine.state.iteration, step)


def check_n_saved(n_saved: object) -> None:
    """Refuse a number of files to keep that is no positive integer.

    Raises:
        ValueError: With words.
    """
    if n_saved is None or (type(n_saved) is int and n_saved >= 1):
        return
    raise ValueError(f"n_saved must be a positive integer or None (keep all), got {n_saved!r}")


def check_to_save(to_save: object, *, resumable: bool = False) -> None:
    """Refuse what is no mapping of names to objects with a state.

    An object may be a mapping or a list of such, as for Ignite's ``Checkpoint``.

    Args:
        to_save: What a user gave.
        resumable: Objects have to load their state as well, and plain values may be among them.

    Raises:
        TypeError: Naming the entry.
    """
    if not isinstance(to_save, Mapping) or not to_save:
        raise TypeError(f"to_save must be a mapping name -> object, got {to_save!r}")
    for name, item in to_save.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"to_save must have strings as names, got {name!r}")
        _check_entry(item, f"to_save[{name!r}]", resumable)


def _check_entry(item: object, where: str, resumable: bool) -> None:
    if has_state(item):
        if resumable and not callable(getattr(item, "load_state_dict", None)):
            raise TypeError(
                f"{where} must have a load_state_dict(), to be resumed, got {_shown(item)}"
            )
        return
    inner = entries_of(item)
    for key, value in inner:
        _check_entry(value, f"{where}[{key!r}]", resumable)
    if inner:
        return
    if not resumable:
        raise TypeError(f"{where} must be an object with a state_dict(), got {_shown(item)}")
    if isinstance(item, EMAHandler):
        raise TypeError(f"{where} is an EMAHandler; leave it out: its averages are kept anyway")
    try:
        to_plain(item, where)
    except TypeError as error:
        raise TypeError(
            f"{where} must be an object with state_dict() and load_state_dict(), or plain values, "
            f"got {_shown(item)}; {error}"
        ) from error


def _shown(item: object) -> str:
    return f"the class {item.__name__}" if isinstance(item, type) else f"{item!r:.80}"


PATTERN_FIELDS = ("filename_prefix", "name", "global_step", "score_name", "score", "ext")


def check_pattern(pattern: str | None, where: object) -> None:
    """Refuse a pattern of file names that cannot be filled in, or would not do.

    It has to tell steps apart, and to stay within the folder.

    Args:
        pattern: The pattern.
        where: Where the files go.

    Raises:
        ValueError: With words.
    """
    if pattern is None:
        return
    sample: dict[str, Any] = dict.fromkeys(PATTERN_FIELDS, "x")
    try:
        names = {pattern.format(**{**sample, "global_step": n}) for n in (7, 8)}
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"filename_pattern={pattern!r} cannot be filled in ({error!r}); it may hold "
            f"{[f'{{{name}}}' for name in PATTERN_FIELDS]}"
        ) from error
    if len(names) == 1:
        raise ValueError(
            f"filename_pattern={pattern!r} needs {{global_step}}, so that a new file never "
            "replaces the old best; alias='copy' keeps a stable name best.pt"
        )
    name = names.pop()
    try:
        check_length(checked(name), "")
    except ValueError as error:
        raise ValueError(f"filename_pattern={pattern!r}: {error}") from error
    if isinstance(where, DiskSaver) and not (where.dirname / name).parent.is_dir():
        raise ValueError(
            f"filename_pattern={pattern!r} names a folder in {where.dirname} that is not there, "
            "and a DiskSaver makes none; make it, or pass the folder itself as out_dir"
        )
