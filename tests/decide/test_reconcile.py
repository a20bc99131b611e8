"""What stays listed of the best files after a restart: by a table, then by laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import Kept, Reconciled, Rule, Sidecar, Target, reconcile


def kept(score: float, iteration: int, *, abandoned: bool = False) -> Kept:
    return Kept(score, iteration, iteration, f"best_{iteration}.pt", None, abandoned)


def reconciled(
    own: list[Kept], found: list[Kept] | None, missing: set[int] = frozenset(), n_saved: int = 1
) -> Reconciled:
    target = Target("acc", Rule.GREATER, n_saved)
    empty = Sidecar("val", "run1", (target,))
    listed = None if found is None else Sidecar("val", "run1", (target,), {"acc": tuple(found)})
    return reconcile(empty, {"acc": tuple(own)}, listed, lambda e: e.iteration not in missing)


@pytest.mark.parametrize(
    ("own", "found", "missing", "n_saved", "listed", "surplus", "gone"),
    [
        # A new run in an empty folder, and one that goes on with its file.
        ([], None, set(), 1, [], [], {}),
        ([kept(0.5, 1)], [kept(0.5, 1)], set(), 1, [(1, False)], [], {}),
        # A file that the history has and the account had not yet.
        ([kept(0.5, 1)], None, set(), 1, [(1, False)], [], {}),
        # Killed after a best that the state does not know: it stays until it is beaten.
        ([], [kept(0.7, 3)], set(), 1, [(3, True)], [], {}),
        ([kept(0.5, 1)], [kept(0.7, 3)], set(), 1, [(3, True), (1, False)], [], {}),
        ([kept(0.5, 1)], [kept(0.7, 3)], {1}, 1, [(3, True)], [], {}),
        # What the run's own equals or beats is not needed any more.
        ([kept(0.5, 1)], [kept(0.5, 3)], set(), 1, [(1, False)], ["best_3.pt"], {}),
        ([kept(0.5, 1)], [kept(0.4, 3)], set(), 1, [(1, False)], ["best_3.pt"], {}),
        # Nothing of the run's own is there.
        ([kept(0.5, 1)], [kept(0.5, 1)], {1}, 1, [], [], {"acc": "best_1.pt"}),
        # n_saved was lowered.
        ([kept(0.5, 1), kept(0.4, 2)], None, set(), 1, [(1, False)], ["best_2.pt"], {}),
        ([kept(0.5, 1), kept(0.4, 2)], None, {1}, 1, [(2, False)], [], {}),
    ],
)
def test_what_is_listed_what_is_not_any_more_and_what_is_gone(
    own: list[Kept],
    found: list[Kept] | None,
    missing: set[int],
    n_saved: int,
    listed: list[tuple[int, bool]],
    surplus: list[str],
    gone: dict[str, str],
) -> None:
    said = reconciled(own, found, missing, n_saved)
    assert [(e.iteration, e.abandoned) for e in said.sidecar.of("acc")] == listed
    assert said.surplus == surplus
    assert said.gone == gone


def test_a_file_that_the_history_knows_is_its_own_whatever_the_account_says() -> None:
    said = reconciled([kept(0.5, 1)], [kept(0.5, 1, abandoned=True)])
    assert not said.sidecar.of("acc")[0].abandoned


FILES = st.dictionaries(st.integers(1, 6), st.sampled_from([0.1, 0.2, 0.3]))


@given(FILES, FILES, st.sets(st.integers(1, 6)), st.integers(1, 3))
def test_the_best_file_on_disk_is_always_listed_and_nothing_is_listed_and_removed(
    own: dict[int, float], found: dict[int, float], missing: set[int], n_saved: int
) -> None:
    found = {i: own.get(i, score) for i, score in found.items()}
    order = sorted(own, key=lambda i: (-own[i], i))
    said = reconciled(
        [kept(own[i], i) for i in order], [kept(s, i) for i, s in found.items()], missing, n_saved
    )
    there = {i: score for i, score in {**own, **found}.items() if i not in missing}
    scores = [entry.score for entry in said.sidecar.of("acc")]
    assert max(scores, default=None) == max(there.values(), default=None)
    assert {e.iteration for e in said.sidecar.entries()} <= set(there)
    files = {f"best_{i}.pt" for i in there}
    assert set(said.surplus) == files - said.sidecar.files()
