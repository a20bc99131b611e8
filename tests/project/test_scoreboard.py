"""Our column of the scoreboard, and that the README shows the run that is stored."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.ranks import on_ranks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import scoreboard
    from scoreboard_peers import ours
    from scoreboard_peers.parts import limit_file_size
    from scoreboard_peers.scenarios import SCENARIOS, Scenario
finally:
    sys.path.pop(0)

STORED: dict[str, Any] = json.loads(scoreboard.RESULTS.read_text("utf-8"))
ALONE = [s for s in SCENARIOS if s.world == 1]
TOGETHER = [s for s in SCENARIOS if s.world == 2]


@pytest.fixture(autouse=True)
def no_limit() -> Iterator[None]:
    yield
    limit_file_size(None)


@pytest.mark.parametrize("scenario", ALONE, ids=lambda s: s.key)
def test_we_are_right_on_one_process(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = scoreboard.plain_value(scenario.ask(ours, 0, tmp_path))
    assert scenario.judge([said]) is True, f"right: {scenario.truth}; we said {said}"


@pytest.mark.parametrize("scenario", TOGETHER, ids=lambda s: s.key)
def test_we_are_right_on_two_processes(scenario: Scenario, tmp_path: Path) -> None:
    outcomes = on_ranks(2, ask, scenario.key, tmp_path, check=False)
    said = [o.value if o.error is None else " ".join(o.error) for o in outcomes]
    assert scenario.judge(said) is True, f"right: {scenario.truth}; we said {said}"


def ask(rank: int, key: str, folder: Path) -> Any:
    (scenario,) = (s for s in SCENARIOS if s.key == key)
    return scenario.ask(ours, rank, folder)


def test_the_table_of_the_readme_is_the_stored_run() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"<!-- scoreboard -->\n(.*?)\n<!-- /scoreboard -->", readme, re.S)
    assert shown == scoreboard.markdown(STORED)


def test_the_stored_run_has_every_scenario_of_every_library_and_ours_is_right() -> None:
    assert list(STORED["libraries"]) == list(scoreboard.LIBRARIES)
    assert STORED["truths"] == {s.key: s.truth for s in SCENARIOS}
    for key, library in STORED["libraries"].items():
        if "missing" not in library:
            assert list(library["rows"]) == [s.key for s in SCENARIOS], key
    rows = STORED["libraries"]["ours"]["rows"]
    assert {row["verdict"] for row in rows.values()} == {"right"}


def test_a_library_that_is_not_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> ModuleType:
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(importlib, "import_module", absent)
    scoreboard.run_library("monai1", None, 1.0, tmp_path / "rows.json", verbose=False)
    said = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert said == {"missing": "no module named scoreboard_peers.monai1", "rows": {}}
    shown = scoreboard.markdown({"libraries": {"monai1": said}})
    assert "MONAI: not installed (no module named" in shown


@pytest.mark.parametrize(
    ("key", "said"),
    [("zero", 2), ("nan", 1), ("disk", {"loads": [], "raised": "OSError"}), ("resume", 3),
     ("two", {"acc": None, "miou": 1}), ("names", {"wer": "greater"}), ("loss", 2.3333),
     ("list", 1.5), ("frozen", [False, True]), ("weights", "other weights"), ("stop_constant", 8),
     ("misspelled", {"trained": 1, "raised": "KeyError"}), ("start", [1, 3])],
)  # fmt: skip
def test_a_wrong_answer_is_judged_wrong_and_shown(key: str, said: Any) -> None:
    (scenario,) = (s for s in SCENARIOS if s.key == key)
    if key == "names":
        said = {"heatmap_loss": "less", "MAPE": "less", "perplexity": "less", "f1": "asks", **said}
    assert scenario.judge([said]) is False
    assert scoreboard.brief(key, {"verdict": "wrong", "said": said}).startswith("✗ ")
