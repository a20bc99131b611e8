"""The rule against the names that metrics really have, each with its true direction.

``data/metric_names.csv`` holds names as they appear as keys of results, or as the names of
functions and classes, in the libraries given as their source.  ``none``: the name has no
direction (a curve, a threshold, a signed bias), or means both in different places.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.openmmlab_configs import RETURNED
from helpers.private import PRESETS, infer_rule
from ignite_evalhook.exceptions import RuleInferenceError


class Row(NamedTuple):
    """One line of the table."""

    name: str
    direction: str
    source: str


def read_table() -> list[Row]:
    path = Path(__file__).parents[1] / "data" / "metric_names.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**line) for line in csv.DictReader(file)]


TABLE = read_table()
WITH_DIRECTION = [row for row in TABLE if row.direction != "none"]

# Names with a direction that are refused without a preset: the whole list, so that each new
# refusal is seen.  Most are short or say nothing; the reason stands where it is another one.
REFUSED = {
    "SubgroupAccuracyDifference",  # "difference": of what to what, the name does not say
    "DemographicParityDifference",
    "arniqa",
    "quality_with_no_reference",
    "cramers_v",
    "CP",
    "CR",
    "OP",
    "crowd_human/mMR",
    "crowd_human/JI",
    "motchallenge-metric/MOTP",  # a distance in one benchmark, an overlap in another
    "motchallenge-metric/Frag",
    "reid-metric/R1",  # also the R1 penalty
    "loss_iou",  # "tooth_loss_iou" would be the IoU of a class
    "pts_bbox_NuScenes/mATE",
    "pts_bbox_NuScenes/mAOE",
    "KITTI/Car_3D_moderate_strict",
    "table_rec_0.25",
    "retrieval/R1",
    "retrieval/MdR",
    "d1",  # an accuracy in depth, an error in stereo
    "log10",
    "MultiScaleSSIMMetric",
    "combined_score",
    "nist_mt",
    "charcut_mt",
    "conll_score",
    "consensus_score",
    "fitness",
    "bbox/APl",
    "kitti-f1",  # an error, though it is called F1
}


def inferred(name: str, preset: str | None = None) -> str:
    """Return the rule's word, or ``none`` for a refusal."""
    try:
        return infer_rule(name, preset=preset).value
    except RuleInferenceError:
        return "none"


def test_the_table_is_whole() -> None:
    assert len(TABLE) >= 170
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert {row.direction for row in TABLE} == {"greater", "less", "none"}
    assert {row.source for row in TABLE} >= {
        *("torchmetrics", "ignite", "monai", "huggingface", "sklearn", "sklearn scorer"),
        *("keras", "lightning", "mmocr", *PRESETS),
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_no_name_is_inferred_wrongly(row: Row) -> None:
    assert inferred(row.name) in (row.direction, "none")


def test_exactly_the_listed_names_are_refused_though_they_have_a_direction() -> None:
    assert {row.name for row in WITH_DIRECTION if inferred(row.name) == "none"} == REFUSED


def test_few_names_are_refused() -> None:
    assert len(REFUSED) < 0.10 * len(WITH_DIRECTION)


def test_with_its_projects_preset_a_name_is_refused_only_where_the_list_says() -> None:
    rows = [row for row in WITH_DIRECTION if row.source in PRESETS]
    assert len(rows) > 80
    wrong = {row.name for row in rows if inferred(row.name, row.source) != row.direction}
    assert wrong == {"loss_iou"}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_preset_makes_a_name_of_its_project_without_direction_decide(preset: str) -> None:
    rows = [row for row in TABLE if row.direction == "none" and row.source in (preset, "keras")]
    assert rows
    assert {inferred(row.name, preset) for row in rows} == {"none"}


# -- what the data sets of OpenMMLab's 1.x-era projects return ------------------------------------

NAMES_RETURNED = [
    (preset, rule, name)
    for preset, of_rules in RETURNED.items()
    for rule, names in of_rules.items()
    for name in names
]


def test_there_is_a_list_of_names_for_every_preset() -> None:
    assert set(RETURNED) == set(PRESETS)
    assert all(set(of_rules) == {"greater", "less", "none"} for of_rules in RETURNED.values())
    assert len(set(NAMES_RETURNED)) == len(NAMES_RETURNED) > 250


@pytest.mark.parametrize(("preset", "rule", "name"), NAMES_RETURNED)
def test_a_preset_knows_what_its_projects_data_sets_return(
    preset: str, rule: str, name: str
) -> None:
    assert inferred(name, preset) == rule


def test_a_preset_adds_directions_and_turns_none_round() -> None:
    alone = {(preset, name): inferred(name) for preset, _, name in NAMES_RETURNED}
    lost = {(preset, name) for preset, rule, name in NAMES_RETURNED
            if alone[preset, name] != rule}  # fmt: skip
    assert {alone[key] for key in lost} == {"none"}
    assert {preset for preset, _ in lost} >= {"mmcls", "mmdet", "mmdet3d", "mmseg"}
