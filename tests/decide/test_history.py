"""Test records, their lines in ``history.jsonl`` and the table: values, laws, damage."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import parse_lines
from ignite_evalhook import EvalRecord, History

FIRST = EvalRecord(1, 4, {"loss": 0.5, "note": "früh", "iou": [0.25, 1.0]}, ("loss",), True, 7, 0.5)
SECOND = EvalRecord(2, 8, {"loss": 0.75, "note": "spät", "iou": [0.5, 1.0]}, (), False, 7, 1.25)
THIRD = EvalRecord(3, 12, {"loss": 0.25, "mAP": 0.5}, ("loss", "mAP"), True, None, 0.125)
ALL = [FIRST, SECOND, THIRD]

plain_values = st.recursive(
    st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
records = st.builds(
    EvalRecord,
    epoch=st.integers(0, 10**6),
    iteration=st.integers(0, 10**9),
    metrics=st.dictionaries(st.text(max_size=8), plain_values, max_size=4),
    best_of=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    is_best=st.booleans(),
    samples=st.none() | st.integers(0, 10**9),
    seconds=st.floats(0, 1e9),
)
histories = st.lists(records, max_size=5, unique_by=lambda r: r.iteration).map(
    lambda found: History(sorted(found, key=lambda r: r.iteration))
)


# --- records -----------------------------------------------------------------------------------


def test_a_record_is_a_value() -> None:
    assert dataclasses.replace(FIRST) == FIRST
    assert dataclasses.replace(FIRST, epoch=2) != FIRST
    assert EvalRecord(1, 4, {}) == EvalRecord(1, 4, {}, (), False, None, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        FIRST.epoch = 2  # type: ignore[misc]


def test_a_record_in_plain_values_has_every_field_by_its_name() -> None:
    assert FIRST.to_dict() == {
        "epoch": 1,
        "iteration": 4,
        "metrics": {"loss": 0.5, "note": "früh", "iou": [0.25, 1.0]},
        "best_of": ["loss"],
        "is_best": True,
        "samples": 7,
        "seconds": 0.5,
    }


def test_scalars_only_leaves_out_what_is_no_number() -> None:
    metrics = {"loss": 0.0, "n": 3, "nan": math.nan, "name": "x", "list": [1.0], "none": None}
    kept = EvalRecord(1, 4, metrics).to_dict(scalars_only=True)["metrics"]
    assert list(kept) == ["loss", "n", "nan"]


def test_changing_the_plain_values_does_not_change_the_record() -> None:
    state = FIRST.to_dict()
    record = EvalRecord.from_dict(state)
    state["metrics"]["loss"] = 9.0
    state["best_of"].append("x")
    assert FIRST.metrics["loss"] == record.metrics["loss"] == 0.5
    assert FIRST.best_of == record.best_of == ("loss",)


@given(records)
def test_a_record_comes_back_from_its_plain_values_and_from_its_line(record: EvalRecord) -> None:
    assert EvalRecord.from_dict(record.to_dict()) == record
    line = record.to_json()
    assert "\n" not in line
    assert "\r" not in line
    assert EvalRecord.from_dict(json.loads(line)) == record


def test_a_record_ignores_what_it_does_not_know() -> None:
    assert EvalRecord.from_dict({**FIRST.to_dict(), "run_id": "abc"}) == FIRST
    assert json.loads(FIRST.to_json(run_id="abc"))["run_id"] == "abc"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EvalRecord)])
def test_a_missing_field_is_named(field: str) -> None:
    state = FIRST.to_dict()
    del state[field]
    with pytest.raises(ValueError, match=rf"a record needs .*\['{field}'\] are missing"):
        EvalRecord.from_dict(state)


def strict(line: str) -> dict[str, Any]:
    """Read a line as a reader of JSON does that knows no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)  # type: ignore[no-any-return]


odd_text = st.text(max_size=3) | st.sampled_from(
    ['"', '\\"', "NaN", '\\"NaN', "-Infinity", "\\", "\n", "\u2028", "é", "a\ud800b", "\udfff"]
)
odd_values = st.recursive(
    st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(odd_text, odd_values, max_size=4))
def test_law_a_line_is_strict_json_in_utf8_and_is_read_back_exactly(metrics: Any) -> None:
    record = EvalRecord(1, 4, metrics)
    line = record.to_json()
    # By repr, in which NaN equals itself, -0.0 is not 0.0, and no digit is lost.
    assert repr(EvalRecord.from_dict(strict(line)).metrics) == repr(metrics)
    assert line.encode().decode() == line


def test_nan_is_null_and_infinity_a_number_too_large() -> None:
    record = EvalRecord(1, 4, {"a": math.inf, "b": [-math.inf, math.nan], "NaN": "Infinity"})
    assert '{"a": 1e999, "b": [-1e999, null], "NaN": "Infinity"}' in record.to_json()


def test_lines_with_pythons_own_words_for_nan_and_infinity_are_read_too(tmp_path: Path) -> None:
    line = '"metrics": {"a": NaN, "b": [-Infinity, Infinity], "c": {"d": NaN}}, "best_of": [], '
    line = f'{{"epoch": 1, "iteration": 4, {line}"is_best": false, "samples": null, "seconds": 1}}'
    (tmp_path / "history.jsonl").write_text(line + "\n")
    record = History.read(tmp_path / "history.jsonl")[0]
    wanted = {"a": math.nan, "b": [-math.inf, math.inf], "c": {"d": math.nan}}
    assert repr(record.metrics) == repr(wanted)
    assert record.samples is None


def test_a_line_is_readable_as_it_stands() -> None:
    assert '"note": "früh"' in FIRST.to_json()


# --- the history as a sequence -----------------------------------------------------------------


def test_a_history_is_a_sequence_of_its_records() -> None:
    history = History(ALL)
    assert len(history) == 3
    assert list(history) == ALL
    assert history[0] is FIRST
    assert history[-1] is THIRD
    assert history[1:] == ALL[1:]
    assert SECOND in history
    assert history.index(SECOND) == 1
    assert list(reversed(history)) == ALL[::-1]
    assert repr(history) == "History(3 records)"
    assert not History()


def test_histories_with_equal_records_are_equal_and_have_no_hash() -> None:
    assert History(ALL) == History(ALL)
    assert History(ALL) != History(ALL[:2])
    assert History(ALL) != ALL
    with pytest.raises(TypeError, match="unhashable"):
        hash(History())


def test_an_index_beyond_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        History(ALL)[3]


@pytest.mark.parametrize("iteration", [0, 7, 8])
def test_records_go_forward_only(iteration: int) -> None:
    history = History([FIRST, SECOND])
    with pytest.raises(ValueError, match=rf"the last one is of iteration 8, got {iteration}"):
        history.append(EvalRecord(2, iteration, {}))
    assert list(history) == [FIRST, SECOND]


def test_the_first_record_may_be_of_iteration_0() -> None:
    start = EvalRecord(0, 0, {})
    assert list(History([start, FIRST])) == [start, FIRST]


@pytest.mark.parametrize(
    ("iteration", "found"),
    [(0, None), (3, None), (4, FIRST), (5, None), (8, SECOND), (12, THIRD), (13, None)],
)
def test_a_record_is_found_by_its_iteration(iteration: int, found: EvalRecord | None) -> None:
    assert History(ALL).at(iteration) is found


@given(histories, st.integers(0, 10**9))
def test_every_record_is_found_and_nothing_else(history: History, other: int) -> None:
    for record in history:
        assert history.at(record.iteration) is record
    assert (history.at(other) is None) == (other not in [r.iteration for r in history])


def test_the_best_of_a_metric_is_the_last_record_that_says_so() -> None:
    history = History(ALL)
    assert history.best("loss") is THIRD
    assert history.best("mAP") is THIRD
    assert History(ALL[:2]).best("loss") is FIRST
    assert history.best("note") is None
    assert History().best("loss") is None


@given(histories)
def test_a_history_comes_back_from_its_state_with_its_numbers(history: History) -> None:
    back = History.from_list(history.to_list())
    assert len(back) == len(history)
    for one, other in zip(history, back, strict=True):
        numbers = {k: v for k, v in one.metrics.items() if isinstance(v, (int, float))}
        assert other == dataclasses.replace(one, metrics=numbers)


# --- history.jsonl -----------------------------------------------------------------------------


def write(path: Path, history: History) -> bytes:
    content = "".join(record.to_json(run_id="r") + "\n" for record in history).encode()
    path.write_bytes(content)
    return content


def test_a_history_is_read_from_its_file(tmp_path: Path) -> None:
    write(tmp_path / "history.jsonl", History(ALL))
    assert History.read(tmp_path / "history.jsonl") == History(ALL)
    assert History.read(str(tmp_path / "history.jsonl")) == History(ALL)
    (tmp_path / "empty.jsonl").touch()
    assert History.read(tmp_path / "empty.jsonl") == History()


def test_a_file_cut_at_any_byte_gives_the_records_that_were_complete(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    content = write(path, History(ALL))
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        # The line break is the last byte of a line; without it the line may yet be whole.
        whole = sum(size >= end for end in ends)
        assert History.read(path) == History(ALL[:whole]), size


@given(st.data())
def test_lines_cut_anywhere_parse_to_a_beginning_of_what_was_written(data: st.DataObject) -> None:
    history = data.draw(histories)
    text = "".join(record.to_json() + "\n" for record in history)
    rows = parse_lines(text[: data.draw(st.integers(0, len(text)))])
    assert rows == [record.to_dict() for record in history][: len(rows)]


def test_blank_lines_are_nothing() -> None:
    assert parse_lines('\n{"a": 1}\n\n  \n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    assert parse_lines("") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1\n{"a": 2}\n', r"line 1 of the history is no JSON: '\{\"a\": 1'"),
        ('{"a": 1}\nrubbish\n', "line 2 of the history is no JSON: 'rubbish'"),
        ("[1]\n", r"line 1 of the history is no JSON object: '\[1\]'"),
        ('{"a": 1}\n\n3\n{}\n', "line 3 of the history is no JSON object: '3'"),
    ],
)
def test_a_damaged_line_that_is_not_the_torn_last_one_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_lines(text)


def test_a_line_that_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match="a record needs"):
        History.read(path)


def test_a_step_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(FIRST.to_json() + "\n" + FIRST.to_json() + "\n")
    with pytest.raises(ValueError, match="the last one is of iteration 4, got 4"):
        History.read(path)


@pytest.mark.skipif(os.name != "posix", reason="a process's encoding is set by the locale there")
def test_a_file_is_read_as_utf_8_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii", raising=False)
    write(tmp_path / "history.jsonl", History(ALL))
    assert History.read(tmp_path / "history.jsonl")[0].metrics["note"] == "früh"


# --- the table ---------------------------------------------------------------------------------


def test_the_table_shows_numbers_aligned_and_names_the_bests() -> None:
    assert History(ALL).table().split("\n") == [
        "epoch  iteration    loss     mAP  samples  seconds",
        "    1          4  0.5000       -        7     0.50  best loss",
        "    2          8  0.7500       -        7     1.25",
        "    3         12  0.2500  0.5000        -     0.12  best loss, mAP",
    ]


def test_the_table_shows_the_columns_asked_for() -> None:
    assert History([FIRST]).table(["note", "loss", "none"]).split("\n") == [
        "epoch  iteration  note    loss  none  samples  seconds",
        "    1          4     -  0.5000     -        7     0.50  best loss",
    ]


def test_the_table_of_nothing_is_its_header() -> None:
    assert History().table() == "epoch  iteration  samples  seconds"


SHOWN: list[tuple[Any, str]] = [
    (0.0, "0.0000"),
    (0.123456, "0.1235"),
    (-0.5, "-0.5000"),
    (1e-3, "0.0010"),
    (1.23456e-5, "1.235e-05"),
    (1234.5678, "1234.5678"),
    (1e6, "1000000"),
    (123456.7, "1.235e+05"),
    (3, "3"),
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (math.nan, "nan"),
    (True, "-"),
    ("text", "-"),
    ([1.0], "-"),
    (None, "-"),
]


@pytest.mark.parametrize(("value", "shown"), SHOWN, ids=repr)
def test_a_value_is_shown_as_short_as_it_can_be_read(value: Any, shown: str) -> None:
    header, row = History([EvalRecord(1, 4, {"x": value})]).table(["x"]).split("\n")
    assert header.split()[2] == "x"
    assert row.split()[2] == shown


def test_a_metric_that_is_a_number_only_once_has_a_column() -> None:
    history = History([EvalRecord(1, 4, {"x": "n/a"}), EvalRecord(2, 8, {"x": 1.0})])
    assert history.table().split("\n")[0].split()[:3] == ["epoch", "iteration", "x"]


@given(histories)
def test_what_is_counted_on_the_way_is_what_a_look_through_all_records_finds(
    history: History,
) -> None:
    assert history.best_count == sum(record.is_best for record in history)
    for name in {name for record in history for name in record.metrics} | {"another"}:
        assert history.knows(name) is any(name in record.metrics for record in history)
