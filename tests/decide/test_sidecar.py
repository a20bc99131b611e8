"""The account of the best files: a value, its text, and what it gives up when."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import Kept, Rule, Sidecar, Target, is_foreign, prune, sort_entries

ACC = Target("acc", Rule.GREATER)
LOSS = Target("val_loss", Rule.LESS)


def kept(score: float, iteration: int = 1, *, abandoned: bool = False) -> Kept:
    return Kept(score, iteration, iteration, f"best_{iteration}.pt", 7, "abcdef12", abandoned)


def sidecar(*entries: Kept, target: Target = ACC) -> Sidecar:
    return Sidecar("val", "run1", (target,)).with_entries(target, entries)


# --------------------------------------------------------------------------------------- the text


def test_best_json_tells_a_person_everything_with_json_alone() -> None:
    account = Sidecar("val", "run1", (ACC, LOSS))
    account = account.with_entries(ACC, [kept(0.25, 4), kept(0.5, 2)])
    account = account.with_entries(LOSS, [kept(-0.0, 7)])
    text = account.to_json()
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "format": "ignite-evalhook best 1",
        "name": "val",
        "run_id": "run1",
        "metric": "acc",
        "rule": "greater",
        "score": 0.5,
        "epoch": 2,
        "iteration": 2,
        "file": "best_2.pt",
        "size": 7,
        "crc32": "abcdef12",
        "kept": {
            "acc": {
                "rule": "greater",
                "files": [
                    {
                        "score": 0.5,
                        "epoch": 2,
                        "iteration": 2,
                        "file": "best_2.pt",
                        "size": 7,
                        "crc32": "abcdef12",
                        "abandoned": False,
                    },
                    {
                        "score": 0.25,
                        "epoch": 4,
                        "iteration": 4,
                        "file": "best_4.pt",
                        "size": 7,
                        "crc32": "abcdef12",
                        "abandoned": False,
                    },
                ],
            },
            "val_loss": {
                "rule": "less",
                "files": [
                    {
                        "score": -0.0,
                        "epoch": 7,
                        "iteration": 7,
                        "file": "best_7.pt",
                        "size": 7,
                        "crc32": "abcdef12",
                        "abandoned": False,
                    }
                ],
            },
        },
    }


def test_equal_accounts_have_equal_bytes_whatever_they_grew_from() -> None:
    one = sidecar(kept(0.5, 2), kept(0.25, 4))
    other = sidecar(kept(0.25, 4)).with_entries(ACC, [kept(0.5, 2), kept(0.25, 4)])
    assert one.to_json() == other.to_json()


def test_an_empty_account_is_text_too_and_names_no_file() -> None:
    document = json.loads(Sidecar("val", "run1", (ACC,)).to_json())
    assert (document["metric"], document["score"], document["file"]) == ("acc", None, None)
    assert Sidecar.from_json(json.dumps(document)).files() == set()


def test_names_in_any_script_stay_readable() -> None:
    target = Target("Genauigkeit_Ü 精度", Rule.GREATER)
    text = Sidecar("prüf", "run1", (target,)).with_entries(target, [kept(1.0)]).to_json()
    assert "Genauigkeit_Ü 精度" in text
    assert Sidecar.from_json(text).of("Genauigkeit_Ü 精度") == (kept(1.0),)


def is_inside(name: str) -> bool:
    return bool(name.strip("/.")) and name[0] != "/" and ".." not in name.split("/")


finite = st.floats(allow_nan=False, allow_infinity=False)
entries_of = st.lists(
    st.builds(
        Kept,
        finite,
        st.integers(0, 99),
        st.integers(0, 999),
        st.text("ab.é= /", min_size=1).filter(lambda name: is_inside(name)),
        st.none() | st.integers(0),
        st.none() | st.text("0123456789abcdef", min_size=8, max_size=8),
        st.booleans(),
    ),
    max_size=4,
)


@given(entries_of, entries_of, st.text(), st.text())
def test_what_is_written_is_what_is_read(
    first: list[Kept], second: list[Kept], name: str, run_id: str
) -> None:
    account = Sidecar(name, run_id, (ACC, LOSS))
    account = account.with_entries(ACC, first).with_entries(LOSS, second)
    again = Sidecar.from_json(account.to_json())
    assert (again.name, again.run_id) == (name, run_id)
    assert [(t.metric, t.rule) for t in again.targets] == [
        ("acc", Rule.GREATER),
        ("val_loss", Rule.LESS),
    ]
    assert again.of("acc") == account.of("acc")
    assert again.of("val_loss") == account.of("val_loss")
    assert again.of("unknown") == ()


TEXT = sidecar(kept(0.5, 2)).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{}",
        '{"format": "ignite-evalhook best 1"}',
        TEXT[: len(TEXT) // 2],
        TEXT[:-3],
        TEXT.replace("best 1", "best 2"),
        TEXT.replace('"greater"', '"upwards"'),
        TEXT.replace('"kept"', '"keeps"'),
        TEXT.replace('"files"', '"filez"'),
        TEXT.replace('"abandoned"', '"deserted"'),
        TEXT.replace('"run_id"', '"run"'),
    ],
)
def test_a_damaged_text_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a best\.json of ignite-evalhook, or damaged"):
        Sidecar.from_json(text)


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ('{"lr": 0.1}', True),
        ("[1, 2]", True),
        ('{"format": "somebody else"}', True),
        ('{"format": null}', True),
        (TEXT, False),
        (TEXT.replace("best 1", "best 2"), False),  # of a later version: an error, not silence
        (TEXT[:-3], False),
        ("", False),
        (None, False),
    ],
)
def test_somebody_elses_json_is_told_from_a_damaged_one_of_ours(
    text: str | None, foreign: bool
) -> None:
    assert is_foreign(text) is foreign


# -------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize(
    ("target", "scores", "order"),
    [
        (ACC, [0.1, 0.3, 0.2], [2, 3, 1]),
        (LOSS, [0.1, 0.3, 0.2], [1, 3, 2]),
        (ACC, [0.5, 0.5, 0.5], [1, 2, 3]),
        (LOSS, [0.5, 0.5, 0.5], [1, 2, 3]),
        (ACC, [-1.0, 0.0, -0.0], [2, 3, 1]),
        (LOSS, [-1.0, 0.0, 1.0], [1, 2, 3]),
        (Target("acc", Rule.GREATER, rule_map={"greater": lambda x, y: x >= y}),
         [0.5, 0.5, 0.1], [2, 1, 3]),
    ],
)  # fmt: skip
def test_the_best_comes_first_and_the_earlier_of_equals(
    target: Target, scores: list[float], order: list[int]
) -> None:
    entries = [kept(score, number) for number, score in enumerate(scores, start=1)]
    assert [entry.iteration for entry in sort_entries(target, entries)] == order
    assert [entry.iteration for entry in sort_entries(target, reversed(entries))] == order


# ------------------------------------------------------------------- what a restart has abandoned


@pytest.mark.parametrize(
    ("n_saved", "live", "abandoned", "stay"),
    [
        (1, [], [0.9], [0.9]),
        (1, [0.5], [0.9], [0.9]),
        (1, [0.9], [0.9], []),  # its equal is durable
        (1, [0.95], [0.9], []),
        (1, [0.5], [0.9, 0.4], [0.9]),
        (2, [0.95], [0.9], [0.9]),  # one of two places is still free
        (2, [0.95, 0.93], [0.9], []),
        (2, [0.95, 0.1], [0.9, 0.05], [0.9]),
    ],
)
def test_a_better_file_of_an_abandoned_stretch_stays_until_its_equal_is_durable(
    n_saved: int, live: list[float], abandoned: list[float], stay: list[float]
) -> None:
    target = Target("acc", Rule.GREATER, n_saved)
    entries = [kept(score, number) for number, score in enumerate(live, start=1)]
    entries += [kept(score, 50 + n, abandoned=True) for n, score in enumerate(abandoned)]
    pruned = prune(target, sort_entries(target, entries))
    assert [entry.score for entry in pruned if entry.abandoned] == stay
    assert [entry.score for entry in pruned if not entry.abandoned] == sorted(live, reverse=True)


small = st.integers(-2, 2).map(float)


@given(
    st.lists(small, max_size=5),
    st.lists(small, max_size=5),
    st.integers(1, 3),
    st.sampled_from(Rule),
)
def test_pruning_never_lowers_the_best_and_never_drops_a_live_file(
    live: list[float], abandoned: list[float], n_saved: int, rule: Rule
) -> None:
    target = Target("m", rule, n_saved)
    entries = [kept(score, number) for number, score in enumerate(live)]
    entries += [kept(score, 50 + n, abandoned=True) for n, score in enumerate(abandoned)]
    account = sidecar(*entries, target=target)
    left = account.of("m")
    assert [e for e in left if not e.abandoned] == list(
        sort_entries(target, [e for e in entries if not e.abandoned])
    )
    if entries:
        assert left[0].score == max((e.score for e in entries), key=rule.signed)
    again: Any = account.with_entries(target, left)
    assert again == account
