"""The rule: which of two scores is better, and what a metric's name tells about it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from helpers.private import (
    DEFAULT_GREATER_KEYS,
    DEFAULT_LESS_KEYS,
    GREATER_WORDS,
    LESS_WORDS,
    PRESETS,
    Rule,
    _rules,
    check_keys,
    infer_rule,
    match_rule,
)
from ignite_evalhook import exceptions

GREATER, LESS = Rule.GREATER, Rule.LESS
NAN, INF = math.nan, math.inf


# ------------------------------------------------------------------------------ the Rule itself


def test_a_rule_is_made_from_its_word_and_prints_as_it() -> None:
    assert Rule("greater") is GREATER
    assert Rule("less") is LESS
    assert [str(rule) for rule in Rule] == [f"{rule}" for rule in Rule] == ["greater", "less"]


@pytest.mark.parametrize("value", ["max", "GREATER", "", None, 1])
def test_another_word_is_refused_with_the_two_that_are_allowed(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rule must be 'greater' or 'less', got .*") as caught:
        Rule(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "score", "best", "better"),
    [
        (GREATER, 0.5, None, True),
        (LESS, 0.5, None, True),
        (GREATER, 0.0, None, True),
        (LESS, 0.0, None, True),
        (GREATER, 0.0, -0.5, True),
        (GREATER, -0.5, 0.0, False),
        (LESS, 0.0, 0.5, True),
        (LESS, -0.5, 0.0, True),
        (LESS, 0.5, 0.0, False),
        (GREATER, 0.5, 0.5, False),
        (LESS, 0.5, 0.5, False),
        (GREATER, 0.0, -0.0, False),
        (LESS, -0.0, 0.0, False),
        (GREATER, 3, 2, True),
        (LESS, 2, 3, True),
    ],
)
def test_only_a_strict_gain_is_better(rule: Rule, score: Any, best: Any, better: bool) -> None:
    assert rule.is_better(score, best) is better


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("best", [None, 0.0, -1.0, NAN, INF, -INF])
@pytest.mark.parametrize("score", [NAN, INF, -INF])
def test_nan_and_infinity_are_never_better(rule: Rule, score: float, best: float | None) -> None:
    assert rule.is_better(score, best) is False


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("best", [NAN, INF, -INF])
def test_a_best_that_is_no_number_gives_way_to_the_first_number(rule: Rule, best: float) -> None:
    assert rule.is_better(0.0, best) is True


@pytest.mark.parametrize(
    ("score", "greater", "less"),
    [(2.0, 2.0, -2.0), (-1, -1.0, 1.0), (NAN, -INF, -INF), (INF, -INF, -INF), (-INF, -INF, -INF)],
)
def test_a_signed_score_is_higher_where_it_is_better(
    score: float, greater: float, less: float
) -> None:
    assert (GREATER.signed(score), LESS.signed(score)) == (greater, less)


class FloatOnly:
    """A score that, like a tensor of some shapes, must not be asked for its truth."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def __bool__(self) -> bool:
        raise AssertionError("the truth of a score was asked for")


def test_whatever_gives_a_float_is_a_score_and_its_truth_is_never_asked() -> None:
    zero: Any = FloatOnly(0.0)
    half: Any = FloatOnly(0.5)
    assert GREATER.is_better(zero, None) is True
    assert GREATER.is_better(half, zero) is True
    assert LESS.is_better(half, zero) is False
    assert type(LESS.signed(half)) is float


finite = st.floats(allow_nan=False, allow_infinity=False)
rules = st.sampled_from(Rule)


@given(rules, finite)
def test_law_no_score_is_better_than_itself(rule: Rule, score: float) -> None:
    assert not rule.is_better(score, score)


@given(rules, finite, finite)
def test_law_of_two_different_scores_exactly_one_is_better(
    rule: Rule, one: float, two: float
) -> None:
    assert [rule.is_better(one, two), rule.is_better(two, one)].count(True) == (one != two)


@given(rules, st.lists(finite, min_size=3, max_size=6))
def test_law_better_than_better_is_better(rule: Rule, scores: list[float]) -> None:
    for one, two, three in itertools.permutations(scores, 3):
        if rule.is_better(one, two) and rule.is_better(two, three):
            assert rule.is_better(one, three)


@given(rules, st.floats(), st.floats())
def test_law_better_means_signed_higher(rule: Rule, score: float, best: float) -> None:
    assert rule.is_better(score, best) == (rule.signed(score) > rule.signed(best))


@given(finite, finite)
def test_law_the_two_rules_are_mirror_images(one: float, two: float) -> None:
    assert GREATER.is_better(one, two) == LESS.is_better(two, one)


# -------------------------------------------------------------- what a name tells, stage by stage


@pytest.mark.parametrize(
    ("name", "rule", "key"),
    [
        # The name is a key.
        ("acc", GREATER, "acc"),
        ("LOSS", LESS, "loss"),
        ("MAP", GREATER, "mAP"),
        ("perplexity", LESS, "perplexity"),
        # A whole word of the name is a key, and beats every substring.
        ("top1_loss", LESS, "loss"),
        ("heatmap_loss", LESS, "loss"),
        ("stop_loss", LESS, "loss"),
        ("accumulated_loss", LESS, "loss"),
        ("topology_error", LESS, "error"),
        ("accel_err", LESS, "accel"),
        ("val_mape", LESS, "mape"),
        ("MAPE", LESS, "mape"),
        ("glossary_f1", GREATER, "f1"),
        ("AR@100", GREATER, "AR@"),
        ("mAP@0.5IOU", GREATER, "mAP"),
        ("accuracy_top-1", GREATER, "accuracy"),
        ("val/dice-mean", GREATER, "dice"),
        ("erreur.µ.mse", LESS, "mse"),
        # A key of several words is a run of whole words.
        ("val P MPJPE", LESS, "p-mpjpe"),
        ("word_information_lost", LESS, "word information lost"),
        ("word_information_preserved", GREATER, "word information preserved"),
        ("Hits@10", GREATER, "hits"),
        ("P@1", GREATER, "p@"),
        # A longer match hides the shorter ones inside it.
        ("neg_mean_squared_error", GREATER, "neg mean squared error"),
        ("val_neg_log_loss", GREATER, "neg log loss"),
        ("neg_log_likelihood", LESS, "neg log likelihood"),
        ("log_likelihood", GREATER, "log likelihood"),
        ("d2_log_loss_score", GREATER, "d2 log loss score"),
        ("top-1 error", LESS, "top 1 error"),
        ("val_dice_loss", LESS, "dice loss"),
        ("normalized_surface_distance", GREATER, "normalized surface distance"),
        ("1-N.E.D", GREATER, "1-n e d"),
        # Names of classes write several words as one.
        ("MeanSquaredError", LESS, "error"),
        ("WordInfoPreserved", GREATER, "word info preserved"),
        ("BinaryF1Score", GREATER, "f1"),
        ("RetrievalFallOut", LESS, "fall out"),
        ("DunnIndex", GREATER, "dunn"),
        ("Top5Error", LESS, "top 5 error"),
        ("R²", GREATER, "r2"),
        # A key is a part of a word, and the rest of it changes nothing.
        ("top5", GREATER, "top"),
        ("valAcc", GREATER, "acc"),
        ("rocauc", GREATER, "auc"),
        ("valmAP50", GREATER, "mAP"),
        ("losses", LESS, "loss"),
        ("totalLoss/2", LESS, "loss"),
        ("mPrecision", GREATER, "precision"),
        ("top5acc", GREATER, "acc"),
        ("val/meanTop5", GREATER, "top"),
        ("accTop1", GREATER, "acc"),
        ("valAR@100", GREATER, "AR@"),
        ("macroAUC", GREATER, "auc"),
    ],
)
def test_the_name_tells_the_rule_and_the_key_that_decided(name: str, rule: Rule, key: str) -> None:
    assert match_rule(name) == (rule, key)
    assert infer_rule(name) is rule


PIECES = [
    "heatmap_dist",
    "heatmaploss",
    "vmAP50x",
    "bitmap_size",
    "roadmap",
    "remap",
    "maple",
    "feature_maps",
    "mapping_quality",
    "stop",
    "stopped",
    "desktop",
    "laptop",
    "topic",
    "topology",
    "backtop2",
    "accident",
    "account_age",
    "accumulated_steps",
    "acceptance_rate",
    "vaccine",
    "occlusion",
    "auction",
    "bauc",
    "imprecision2",
    "lossless_ratio",
    "glossary",
    "gloss",
    "blossom",
    "top1err2",
    "valMAPE",
    "accloss",
    "hingelosses",
    "autoprecision",
    "smap",
    "myaccx",
    "top10k",
    "nacc",
]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        # One stage finds both.
        ("acc_loss", "'acc' says greater, 'loss' says less"),
        ("recall_error", "'recall' says greater, 'error' says less"),
        ("loss/val/dice", "'loss' says less, 'dice' says greater"),
        ("valAcc_valLoss", "'acc' says greater, 'loss' says less"),
        # Something turns the score round or takes its direction away.
        ("neg_mse", "'neg' leaves it open, 'mse' says less"),
        ("negative_iou", "'negative' leaves it open, 'iou' says greater"),
        ("neg_top5", "'neg' leaves it open"),
        ("-mse", "'-' leaves it open, 'mse' says less"),
        ("1 - SSIM", "'1-' leaves it open, 'ssim' says greater"),
        ("val/1-dice", "'1-' leaves it open, 'dice' says greater"),
        ("acc_std", "'acc' says greater, 'std' leaves it open"),
        ("best_f1_thresh", "'f1' says greater, 'thresh' leaves it open"),
        ("loss_scale", "'loss scale' leaves it open"),
        ("acc/acc_loss", "'acc' says greater, 'loss' says less"),
        ("AccuracyDrop", "'accuracy drop' leaves it open"),
        ("AccuracyGap", "'accuracy' says greater, 'gap' leaves it open"),
        ("PrecisionRecallCurve", "'curve' leaves it open"),
        ("mean_error", "'mean error' leaves it open"),
        ("F1-all", "'f1 all' leaves it open"),
        ("acc_time", "'acc' says greater, 'time' leaves it open"),
        ("top10_latency", "'latency' leaves it open"),
        ("atop_level", "'atop' leaves it open"),
        # No stage finds any: a key is only a piece of another word.
        *((name, "no key matches") for name in PIECES),
        ("score", "no key matches"),
        ("grad_norm", "no key matches"),
        ("warp", "no key matches"),
        ("garage", "no key matches"),
        ("éiou", "no key matches"),
        ("iou²", "no key matches"),
        ("", "no key matches"),
        ("@/_ ", "no key matches"),
    ],
)
def test_a_name_that_does_not_tell_is_refused_with_what_was_found(name: str, reason: str) -> None:
    with pytest.raises(exceptions.RuleInferenceError) as caught:
        infer_rule(name)
    assert str(caught.value) == (
        f"cannot infer whether a greater or a smaller {name!r} is better: {reason}; "
        "pass rule='greater' or rule='less'"
    )


def test_the_refusal_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="pass rule='greater' or rule='less'"):
        infer_rule("score")


@pytest.mark.parametrize("key", DEFAULT_GREATER_KEYS)
def test_mmcvs_greater_keys_act_at_all_three_stages(key: str) -> None:
    word = key.rstrip("@")
    assert infer_rule(key) is GREATER
    assert infer_rule(f"val/{key}_100") is GREATER
    assert infer_rule(f"val{key}50") is GREATER
    assert infer_rule(f"val_{word}@5") is GREATER


def test_the_words_of_our_field_are_no_substrings() -> None:
    for name in ["compare", "remainder", "capital", "mosaic", "exactly", "cerium", "killer"]:
        with pytest.raises(exceptions.RuleInferenceError, match="no key matches"):
            infer_rule(name)


def test_the_lists_of_words_do_not_contradict_one_another() -> None:
    given = {key.lower() for key in (*DEFAULT_GREATER_KEYS, *DEFAULT_LESS_KEYS)}
    assert not GREATER_WORDS & LESS_WORDS
    assert not (GREATER_WORDS | LESS_WORDS) & given
    assert all(word == word.strip().lower() and word for word in GREATER_WORDS | LESS_WORDS)


def test_each_listed_word_decides_by_itself_and_inside_a_name() -> None:
    for rule, listed in ((GREATER, GREATER_WORDS), (LESS, LESS_WORDS)):
        for word in sorted(listed):
            assert match_rule(word) == (rule, word)
            # `1-N.E.D` is known as a whole only: elsewhere a leading 1 may be a class or a rank.
            inside = word if word.startswith("1-") else f"val_{word.replace(' ', '_')}_0"
            assert match_rule(inside.upper()) == (rule, word)


# --------------------------------------------------------------------------- the caller's own keys


def test_the_callers_keys_replace_the_default_ones() -> None:
    with pytest.raises(exceptions.RuleInferenceError, match="no key matches"):
        infer_rule("val_acc", greater_keys=["mIoU"])
    with pytest.raises(exceptions.RuleInferenceError, match="no key matches"):
        infer_rule("loss", less_keys=[])


@pytest.mark.parametrize(
    ("name", "greater", "less", "rule", "key"),
    [
        # At all three stages.
        ("Quux", ["quux"], [], GREATER, "quux"),
        ("val.quux", [], ["Quux"], LESS, "Quux"),
        ("meanQuuxes", [], ["quux"], LESS, "quux"),
        ("mquux@5", ["quux"], [], GREATER, "quux"),
        # Exactly in both lists: greater first, as MMCV.
        ("Quux", ["quux"], ["quux"], GREATER, "quux"),
        # A key is no pattern.
        ("vala+b5", ["a+b"], [], GREATER, "a+b"),
        # One string is one key, as in MMEngine.
        ("val_quux", "quux", (), GREATER, "quux"),
        ("quux1", "acc", "quux", LESS, "quux"),
        # A word of ours that the caller names is no longer ours, nor is a doubt.
        ("val_mae", ["mae"], ["loss"], GREATER, "mae"),
        ("val_iou", ["acc"], ["iou"], LESS, "iou"),
        ("iou_mae", ["iou", "mae"], [], GREATER, "iou"),
        ("acc_gap", [], ["gap"], LESS, "gap"),
        # A default key that the caller puts on the other side goes there.
        ("acc", DEFAULT_GREATER_KEYS, ["loss", "acc"], LESS, "acc"),
        ("val_acc", DEFAULT_GREATER_KEYS, ["loss", "acc"], LESS, "acc"),
        ("val_loss", ["loss"], DEFAULT_LESS_KEYS, GREATER, "loss"),
        # The caller's longer key hides our shorter ones, wherever they point.
        ("val_neg_mse", ["neg_mse"], ["loss"], GREATER, "neg_mse"),
        ("fpr_at_95_tpr", [], ["fpr at 95 tpr"], LESS, "fpr at 95 tpr"),
        ("val_fpr@95_tpr", [], ["fpr@95 tpr"], LESS, "fpr@95 tpr"),
        ("valmape", [], ["mape"], LESS, "mape"),
    ],
)
def test_the_callers_keys_win_over_the_built_in_words(
    name: str, greater: list[str], less: list[str], rule: Rule, key: str
) -> None:
    assert match_rule(name, greater, less) == (rule, key)


@pytest.mark.parametrize(
    ("name", "greater", "less", "reason"),
    [
        ("val_quux", ["quux"], ["quux"], "'quux' says greater, 'quux' says less"),
        ("meanquux", ["quux"], ["quux"], "'quux' says greater, 'quux' says less"),
        ("myquux", ["quux"], [], "no key matches"),
        # A word of ours beside the caller's is still counted: both are in the name.
        ("quux_error", ["quux"], ["loss"], "'quux' says greater, 'error' says less"),
        # Our longer name may not hide what the caller said.
        ("brier_skill_score", ["acc"], ["skill"], "'skill' says less, 'brier skill score' says gr"),
        ("quux_std", ["quux"], [], "'quux' says greater, 'std' leaves it open"),
        ("xaabx", ["a+b"], [], "no key matches"),
    ],
)
def test_the_callers_keys_do_not_silence_what_else_the_name_says(
    name: str, greater: list[str], less: list[str], reason: str
) -> None:
    with pytest.raises(exceptions.RuleInferenceError, match=reason):
        infer_rule(name, greater, less)


@pytest.mark.parametrize("argument", ["greater_keys", "less_keys"])
@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ("", ValueError, r"keys with a letter or a digit, got ''$"),
        (b"FID", TypeError, r"list or tuple of strings, got b'FID'$"),
        (None, TypeError, r"list or tuple of strings, got None$"),
        (3, TypeError, r"list or tuple of strings, got 3$"),
        (["FID", 3], TypeError, r"only strings, got 3$"),
        (["FID", None], TypeError, r"only strings, got None$"),
        (["FID", ""], ValueError, r"keys with a letter or a digit, got ''$"),
        ([" "], ValueError, r"keys with a letter or a digit, got ' '$"),
        (["_@"], ValueError, r"keys with a letter or a digit, got '_@'$"),
    ],
)
def test_wrong_keys_are_refused_by_the_name_of_their_argument(
    argument: str, keys: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{argument} must .*{words}"):
        check_keys(keys, argument)
    with pytest.raises(error, match=f"^{argument} must "):
        infer_rule("acc", **{argument: keys})


def test_keys_come_back_as_a_tuple_in_their_order() -> None:
    assert check_keys(["b", "a"], "less_keys") == ("b", "a")
    assert check_keys((key for key in "ba"), "less_keys") == ("b", "a")
    assert check_keys([], "less_keys") == ()


@pytest.mark.parametrize("name", [None, 3, b"acc", ["acc"]])
def test_a_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="the name of a metric must be a string, got "):
        infer_rule(name)


# --------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "name", "rule"),
    [
        ("mmaction2", "retrieval/R5", GREATER),
        ("mmaction2", "retrieval/MnR", LESS),
        ("mmaction2", "Recall@0.5", GREATER),
        ("mmcls", "CF1", GREATER),
        ("mmcls", "OR", GREATER),
        ("mmdet", "bbox_mAP", GREATER),
        ("mmdet", "lvis/bbox_APr", GREATER),
        ("mmdet", "crowd_human/mMR", LESS),
        ("mmdet3d", "pts_bbox_NuScenes/NDS", GREATER),
        ("mmdet3d", "pts_bbox_NuScenes/mATE", LESS),
        ("mmdet3d", "pts_bbox_NuScenes/mASE", LESS),
        ("mmdet3d", "pts_bbox_NuScenes/mAOE", LESS),
        ("mmdet3d", "pts_bbox_NuScenes/mAVE", LESS),
        ("mmdet3d", "pts_bbox_NuScenes/mAAE", LESS),
        ("mmdet3d", "KITTI/Car_3D_moderate_strict", GREATER),
        ("mmpose", "PCK", GREATER),
        ("mmpose", "coco/AP", GREATER),
        ("mmpose", "Mean PCK", GREATER),
        ("mmpose", "P-3DAUC", GREATER),
        ("mmpose", "EPE", LESS),
        ("mmpose", "NME", LESS),
        ("mmpose", "MPJPE_all", LESS),
        ("mmpretrain", "visual-dialog/R@5", GREATER),
        ("mmseg", "IoU.road", GREATER),
        ("mmseg", "d1", GREATER),
        ("mmseg", "log10", LESS),
    ],
)
def test_a_preset_knows_its_projects_metrics(preset: str, name: str, rule: Rule) -> None:
    assert infer_rule(name, preset=preset) is rule


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_keys_of_a_preset_are_whole_words_and_keep_the_given_ones(preset: str) -> None:
    greater, less = PRESETS[preset]
    for key in (*check_keys(greater, "greater_keys"), *check_keys(less, "less_keys")):
        assert infer_rule(f"val/{key}", preset=preset) is (GREATER if key in greater else LESS)
    for name in ["warp", "garage", "tapered", "orbit"]:
        with pytest.raises(exceptions.RuleInferenceError, match="no key matches"):
            infer_rule(name, preset=preset)
    assert infer_rule("val_top1", preset=preset) is GREATER
    assert infer_rule("val_loss", preset=preset) is LESS
    with pytest.raises(exceptions.RuleInferenceError, match="'loss' says less"):
        infer_rule("acc_loss", preset=preset)


def test_the_callers_keys_win_over_a_presets() -> None:
    assert infer_rule("val_NDS", preset="mmdet3d") is GREATER
    assert infer_rule("val_NDS", less_keys=["NDS"], preset="mmdet3d") is LESS


def test_a_preset_wins_over_the_built_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert match_rule("val_rmse", preset="mmseg") == (LESS, "rmse")
    assert match_rule("depth_rmse_log", preset="mmseg") == (LESS, "rmse_log")
    assert match_rule("coco/AP", preset="mmpose") == (GREATER, "AP")
    monkeypatch.setattr(_rules, "PRESETS", {"mine": (("mae",), ("iou",))})
    assert match_rule("val_mae", preset="mine") == (GREATER, "mae")
    assert match_rule("val_iou", preset="mine") == (LESS, "iou")


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    known = "mmaction2, mmcls, mmdet, mmdet3d, mmpose, mmpretrain, mmseg"
    with pytest.raises(ValueError, match=f"preset must be one of {known}, got 'mmocr'"):
        infer_rule("acc", preset="mmocr")


def test_the_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["mine"] = ((), ())  # type: ignore[index]


# ------------------------------------------------------------------------------------------ laws

GREATER_NAMES = sorted({*DEFAULT_GREATER_KEYS, *GREATER_WORDS})
LESS_NAMES = sorted({*DEFAULT_LESS_KEYS, *LESS_WORDS})
OTHERS = ["val", "x", "1", "-", "neg", "std", "heatmap", "top1", "ÉÀ", "score"]
words = st.sampled_from([*GREATER_NAMES, *LESS_NAMES, *OTHERS])
names = st.one_of(
    st.text(max_size=12),
    st.lists(words, min_size=1, max_size=4).map("_".join),
    st.lists(words, min_size=1, max_size=3).map("".join),
    st.lists(words, min_size=1, max_size=3).map("/".join),
)


def direction(name: str, **keys: Any) -> Rule | None:
    """Return the rule inferred, or ``None`` for a refusal."""
    try:
        return infer_rule(name, **keys)
    except exceptions.RuleInferenceError:
        return None


@given(names)
@example("topLOSS")
@example("valMAPE")
def test_law_case_does_not_matter(name: str) -> None:
    for other in (name.upper(), name.lower(), name.swapcase(), name.casefold()):
        # A few letters, such as the dotless i, are not the same in both cases to Python itself.
        if other.casefold() == name.casefold():
            assert direction(other) is direction(name)


@given(names, rules)
@example("acc", LESS)
@example("loss", GREATER)
@example("neg_loss", GREATER)
def test_law_an_explicit_key_equal_to_the_name_decides(name: str, rule: Rule) -> None:
    assume(any(map(str.isalnum, name)))
    if rule is GREATER:
        assert infer_rule(name, greater_keys=[*DEFAULT_GREATER_KEYS, name]) is GREATER
    else:
        assert infer_rule(name, less_keys=[*DEFAULT_LESS_KEYS, name]) is LESS


@given(names, st.permutations(DEFAULT_GREATER_KEYS))
def test_law_the_order_of_the_keys_does_not_matter(name: str, keys: list[str]) -> None:
    assert direction(name, greater_keys=keys) is direction(name)


@given(st.sampled_from(GREATER_NAMES), st.sampled_from(LESS_NAMES))
def test_law_words_of_both_directions_are_refused(greater: str, less: str) -> None:
    assert direction(f"{greater}/quux/{less}") is None


@given(names, st.sampled_from(sorted(PRESETS)))
def test_law_a_preset_adds_what_it_knows_and_turns_nothing_round(name: str, preset: str) -> None:
    plain = direction(name)
    assert plain is None or direction(name, preset=preset) in (plain, None)
