"""Decide whether a greater or a smaller score is better.

A metric arrives as a name and a number, and only the name tells which of two numbers is
better.  This module turns the name into a :class:`Rule`: no state, no torch, no engine.  It
never guesses: a name that could mean both, or says nothing, is an error that asks for ``rule=``.

Source:
    The order of matching and the default keys are those of ``EvalHook`` in MMCV 1.x
    (open-mmlab/mmcv#739; case-insensitive since #1076); whole words before substrings, the
    names of our field and the words that cast doubt are ours.  The code is our own.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from itertools import combinations
from types import MappingProxyType
from typing import NamedTuple

from .exceptions import RuleInferenceError

__all__ = [
    "DEFAULT_GREATER_KEYS",
    "DEFAULT_LESS_KEYS",
    "GREATER_WORDS",
    "LESS_WORDS",
    "PRESETS",
    "Rule",
    "check_keys",
    "infer_rule",
    "match_rule",
]


class Rule(str, Enum):
    """Direction of improvement: ``Rule("greater")`` or ``Rule("less")``."""

    GREATER = "greater"
    LESS = "less"

    @classmethod
    def _missing_(cls, value: object) -> Rule:
        raise ValueError(f"rule must be 'greater' or 'less', got {value!r}")

    def __str__(self) -> str:
        return self.value

    def is_better(self, score: float, best: float | None) -> bool:
        """Return whether ``score`` strictly improves on ``best`` (``None``: nothing yet).

        A NaN or infinite ``score`` never does, so a diverged epoch is never kept; a ``best``
        that is NaN or infinite counts as nothing yet, so it cannot stay for ever.
        """
        if best is None:
            return math.isfinite(score)
        return self.signed(score) > self.signed(best)

    def signed(self, score: float) -> float:
        """Return ``score`` signed so that higher is better; NaN and infinity become ``-inf``.

        Anything that ``float()`` takes is a score, NumPy scalars and 0-d tensors included.
        """
        score = float(score)
        if not math.isfinite(score):
            return -math.inf
        return score if self is Rule.GREATER else -score


def _keys(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _names(*topics: str) -> frozenset[str]:
    return frozenset(name.strip() for topic in topics for name in topic.split(","))


DEFAULT_GREATER_KEYS = _keys("acc top AR@ auc precision mAP mDice mIoU mAcc aAcc")
"""MMCV's own keys for ``greater``, used at all three stages."""

DEFAULT_LESS_KEYS = ("loss",)
"""MMCV's own key for ``less``, used at all three stages."""

GREATER_WORDS = _names(
    # right and wrong answers
    "accuracy, accuracies, exact, exact match, em, success, hit, hits, hit rate, win rate",
    "pass@, p@, r@, h@, hr@, recall, recalls, mrecall, sensitivity, selectivity, specificity",
    "tpr, tnr, ppv, npv, positive predictive value, negative predictive value, true positive",
    "true positives, true negative, true negatives, positive likelihood ratio, threat score",
    "critical success index, informedness, markedness, youden, uar, gmean, hmean, cf1, of1",
    "f1, f2, f beta, f score, mfscore, f measure",
    # agreement and correlation
    "kappa, cohen kappa, fleiss kappa, qwk, mcc, matthews corrcoef, matthews correlation",
    "correlation, corrcoef, corr, pearson, pearsonr, pearson corrcoef, pearson correlation, plcc",
    "spearman, spearmanr, spearman corrcoef, spearman rank correlation, srcc, kendall, kendalltau",
    "kendall rank corrcoef, kendall rank correlation, krcc, concordance, concordance corrcoef, ccc",
    # ranking, detection, tracking
    "ap, ap11, ap25, ap40, ap50, ap75, map25, map50, map75, maph, ar, mar, average recall, froc",
    "auroc, logauc, auprc, aupr, area under curve, area under the curve, area under roc curve",
    "ndcg, normalized dcg, dcg, mrr, reciprocal rank, hota, mota, amota, idf1, nds",
    # overlap and pose
    "iou, mean io u, giou, diou, ciou, fwiou, intersection over union, jaccard",
    "complete intersection over union, distance intersection over union",
    "generalized intersection over union, pq, sq, rq, panoptic quality, modified panoptic quality",
    "dice, dsc, dice coefficient, generalized dice, surface dice, nsd, normalized surface distance",
    "pck, pckh, tpck, 3dpck, p-3dpck, 3dauc, p-3dauc, pcp, oks, lddt, gdt, tm score",
    # text and speech
    "bleu, bleu 1, bleu 2, bleu 3, bleu 4, sacre bleu, gleu, rouge, rouge 1, rouge 2, rouge l",
    "rouge n, rouge lsum, meteor, chrf, bert score, bleurt, comet, cider, ciderd, spice, sari",
    "mauve, anls, teds, 1-n e d, wip, word info preserved, word information preserved",
    "pesq, perceptual evaluation speech quality, stoi, estoi, short time objective intelligibility",
    "mos, dnsmos, nisqa, srmr, snr, si snr, sdr, si sdr, signal noise ratio, signal to noise ratio",
    "scale invariant signal noise ratio, scale invariant signal distortion ratio",
    "signal distortion ratio",
    # images
    "psnr, peak signal noise ratio, peak signal to noise ratio, ssim, ms ssim",
    "structural similarity, structural similarity index measure, vif, visual information fidelity",
    "multi scale structural similarity index measure, universal image quality, uqi, qnr, vmaf",
    "cosine similarity, clip score, inception score",
    # regression, clustering, reinforcement
    "r2, r squared, nse, explained variance, explained deviance, log likelihood, brier skill score",
    "d2 absolute error score, d2 brier score, d2 log loss score, d2 pinball score",
    "d2 tweedie score, nmi, ami, ari, rand score, rand index, adjusted rand, mutual info",
    "mutual information, adjusted mutual info, normalized mutual info, v measure, homogeneity",
    "completeness, fowlkes mallows, silhouette, calinski harabasz, dunn, purity",
    "reward, return, spl",
    # scikit-learn's scorers
    "neg brier score, neg log loss, neg max error, neg mean absolute error",
    "neg mean absolute percentage error, neg mean gamma deviance, neg mean poisson deviance",
    "neg mean squared error, neg mean squared log error, neg median absolute error",
    "neg negative likelihood ratio, neg root mean squared error, neg root mean squared log error",
)
"""Names of our field for ``greater``, used as whole words only."""

LESS_WORDS = _names(
    # errors
    "error, errors, err, top 1 error, top 5 error, top k error, top 1 err, top 5 err",
    "mae, imae, medae, mape, smape, wmape, wape, mdape, mapd, mase, mse, nmse, msle, rmse, nrmse",
    "irmse, rmsle, rmspe, rmsd, rse, rae, mre, abs rel, sq rel, silog, inaccuracy, imprecision",
    # likelihood and what training minimises
    "nll, nlpd, neg log likelihood, negative log likelihood, ce, bce, xent, cross entropy",
    "categorical cross entropy, sparse categorical cross entropy, perplexity, ppl, bpc, bpd, bpb",
    "bits per byte, bits per dim, hinge, squared hinge, categorical hinge, log cosh, poisson",
    "pinball, deviance, crps, continuous ranked probability score, brier, ece, mce, cost, regret",
    # wrong answers
    "fpr, fpr95, fnr, fdr, frr, false positive, false positives, false negative, false negatives",
    "false alarm, false acceptance rate, false rejection rate, false discovery rate, fall out",
    "false omission rate, miss rate, miss rates, negative likelihood ratio, eer, hter, acer, apcer",
    "bpcer, min dcf, aurc, eaurc, mean rank, median rank, amotp, idsw, id switches",
    # text and speech
    "wer, cer, mer, ter, eed, der, jer, wil, word error rate, char error rate",
    "character error rate, match error rate, word info lost, word information lost",
    "translation edit rate, edit distance, extended edit distance, levenshtein distance",
    # distances and divergences
    "kl, kld, jsd, divergence, kl divergence, js divergence, jensen shannon divergence",
    "wasserstein, wasserstein distance, emd, earth mover distance, mmd, maximum mean discrepancy",
    "hd95, hausdorff, hausdorff distance, assd, masd, surface distance, chamfer, chamfer distance",
    "average surface distance, pairwise distance, mean pairwise distance, euclidean distance",
    "manhattan distance, minkowski distance, cosine distance, hamming distance, canberra",
    "wave hedges distance, absolute volume difference, procrustes disparity, davies bouldin",
    # images
    "fid, sfid, kid, fvd, fad, frechet distance, frechet inception distance",
    "frechet audio distance, kernel inception distance, perceptual path length, lpips",
    "learned perceptual image patch similarity, deep image structure and texture similarity, niqe",
    "brisque, piqe, ergas, spectral angle mapper, d lambda, spectral distortion",
    "spatial distortion, total variation",
    # pose and motion; `accel` is the acceleration error
    "epe, nme, mpjpe, p-mpjpe, n-mpjpe, pa-mpjpe, mpvpe, pve, mrrpe, accel, min ade, min fde, fde",
    # losses called after the score they stand for
    "dice loss, dice ce loss, dice bce loss, dice focal loss, iou loss, giou loss, diou loss",
    "ciou loss, jaccard loss, ssim loss, ms ssim loss, ap loss, snr loss, si snr loss, sdr loss",
    "si sdr loss, cosine similarity loss",
)
"""Names of our field for ``less``, used as whole words only."""

_DOUBTS = _names(
    # these turn a score round: `neg_mse`, `1-ssim`
    "-, 1-, neg, negative, negated, minus, inverse, inverted",
    # these make it another number: `acc_std`, `f1_thresh`, `loss_scale`
    "gap, diff, difference, distance, degradation, decrease, reduction, increase, improvement",
    "acc drop, accuracy drop, std, stdev, stddev, stderr, var, variance, support, curve, curves",
    "threshold, thresholds, thresh, loss scale, loss weight, kl weight",
    # a signed error is best at 0; `F1-all` of optical flow is an error, not an F1
    "mean error, bias error, f1 all, kitti f1",
)
# The same for substrings, where MMCV's `top` and `mAP` match: `top1err`, `valmape`.
_DOUBTFUL_PARTS = ("err", "mape")


PRESETS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "mmaction2": (_keys("mAP@ Recall@ AR@AN mean1 R1 R5 R10"), _keys("MdR MnR")),
        "mmcls": (_keys("CP CR CF1 OP OR OF1"), ()),
        "mmdet": (
            _keys("AP AP50 AP75 APs APm APl APr APc APf AR PQ SQ RQ JI R1 R5 R10 R20")
            + _keys("HOTA AssA DetA MOTA MOTP TP MT IDF1 IDTP IDP IDR"),
            _keys("mMR FP FN IDSW IDFP IDFN Frag ML"),
        ),
        "mmdet3d": (
            _keys("NDS mAP mAPH mAR AP AP11 AP40 rec easy moderate hard"),
            _keys("mATE mASE mAOE mAVE mAAE err"),
        ),
        "mmpose": (
            _keys("AP AR AUC 3DAUC P-3DAUC PCP PCK PCKh tPCK 3DPCK P-3DPCK"),
            _keys("EPE NME MPJPE P-MPJPE N-MPJPE MRRPE"),
        ),
        "mmpretrain": (_keys("CP CR CF1 OP OR OF1 R@"), ()),
        "mmseg": (
            _keys("IoU Acc Dice Fscore mFscore mPrecision mRecall d1 d2 d3"),
            _keys("abs_rel sq_rel rmse rmse_log log10 silog"),
        ),
    }
)
"""Project -> (greater keys, less keys), as the project's own metrics spell them.

They join the given keys but never act as substrings: ``ar`` or ``or`` is part of many words.
"""


def check_keys(keys: Iterable[str], argument: str) -> tuple[str, ...]:
    """Return ``keys`` as a tuple; ``argument`` is the name that an error gives them.

    Raises:
        TypeError: If ``keys`` is one string, or no iterable, or an item is no string.
        ValueError: If a key holds no letter and no digit, since it would match anything.
    """
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        hint = f"; write ({keys!r},)" if isinstance(keys, str) else ""
        raise TypeError(f"{argument} must be a list or tuple of strings, got {keys!r}{hint}")
    checked = tuple(keys)
    for key in checked:
        if not isinstance(key, str):
            raise TypeError(f"{argument} must hold only strings, got {key!r}")
        if not any(map(str.isalnum, key)):
            raise ValueError(f"{argument} must hold keys with a letter or a digit, got {key!r}")
    return checked


def infer_rule(
    name: str,
    greater_keys: Iterable[str] = DEFAULT_GREATER_KEYS,
    less_keys: Iterable[str] = DEFAULT_LESS_KEYS,
    *,
    preset: str | None = None,
) -> Rule:
    """Infer the rule for the metric called ``name``; see :func:`match_rule`."""
    return match_rule(name, greater_keys, less_keys, preset=preset)[0]


def match_rule(
    name: str,
    greater_keys: Iterable[str] = DEFAULT_GREATER_KEYS,
    less_keys: Iterable[str] = DEFAULT_LESS_KEYS,
    *,
    preset: str | None = None,
) -> tuple[Rule, str]:
    """Infer the rule for the metric called ``name``, and say which key decided.

    Case is ignored.  The first stage that finds something decides:

    1. the name is a key (``greater_keys``, then ``less_keys``);
    2. a key is a whole word of the name (split at anything that is no letter or digit), or a
       run of whole words (``p-mpjpe``; ``AR@`` is the word with its sign); here the names of our
       field (:data:`GREATER_WORDS`, :data:`LESS_WORDS`) and the preset's keys count too;
    3. a key is a substring of the name: only ``greater_keys`` and ``less_keys``, as MMCV does.

    A longer match hides the shorter ones inside it: ``neg_log_loss`` is not a ``loss``.  Keys
    beyond the defaults win over the preset's, and those over the built-in ones.

    Args:
        name: The metric's name as it stands in the results, such as ``"coco/bbox_mAP_50"``.
        greater_keys: Keys of metrics that improve upwards; they replace the default ones.
        less_keys: Keys of metrics that improve downwards; they replace the default ones.
        preset: A name in :data:`PRESETS`, whose keys are added.

    Returns:
        The rule, and the key that decided as its list spells it.

    Raises:
        RuleInferenceError: If a stage finds both directions, or a word that casts doubt on the
            direction (``neg``, ``gap``, ``std``), or no stage finds anything.
        ValueError: If there is no such preset.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric must be a string, got {name!r}")
    keys = list(_all_keys(greater_keys, less_keys, preset))
    for stage in (_exact_match, _word_matches, _substring_matches):
        matches = _not_hidden(stage(name, keys))
        if matches:
            return _decide(name, matches)
    raise _refusal(name, "no key matches")


class _Key(NamedTuple):
    """One key: its rule (``None``: it casts doubt), and who says so (0 caller to 2 built-in)."""

    text: str
    rule: Rule | None
    rank: int
    is_given: bool


class _Match(NamedTuple):
    """Where a key was found: the half-open span of words, or of characters."""

    start: int
    stop: int
    key: _Key

    def hides(self, other: _Match) -> bool:
        """Return whether ``other`` lies within, is no stronger, and is not the same again."""
        within = self.start <= other.start and other.stop <= self.stop
        same = (self.start, self.stop, self.key.rank) == (other.start, other.stop, other.key.rank)
        return within and self.key.rank <= other.key.rank and not same


def _all_keys(
    greater_keys: Iterable[str], less_keys: Iterable[str], preset: str | None
) -> Iterator[_Key]:
    """Yield all keys, the strongest first, ``greater`` before ``less`` where equally strong."""
    given = [
        (Rule.GREATER, check_keys(greater_keys, "greater_keys"), DEFAULT_GREATER_KEYS),
        (Rule.LESS, check_keys(less_keys, "less_keys"), DEFAULT_LESS_KEYS),
    ]
    for rule, keys, defaults in given:
        yield from (_Key(key, rule, 0, True) for key in keys if key not in defaults)
    for rule, keys in zip((Rule.GREATER, Rule.LESS), _preset_keys(preset), strict=True):
        yield from (_Key(key, rule, 1, False) for key in keys)
    for rule, keys, defaults in given:
        yield from (_Key(key, rule, 2, True) for key in keys if key in defaults)
    for known, words in ((Rule.GREATER, GREATER_WORDS), (Rule.LESS, LESS_WORDS), (None, _DOUBTS)):
        yield from (_Key(word, known, 2, False) for word in words)


def _preset_keys(preset: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if preset is None:
        return (), ()
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(sorted(PRESETS))}, got {preset!r}")
    return PRESETS[preset]


def _exact_match(name: str, keys: list[_Key]) -> list[_Match]:
    equal = (key for key in keys if _fold(key.text) == _fold(name))
    return [_Match(0, 1, key) for key in equal][:1]


def _word_matches(name: str, keys: list[_Key]) -> list[_Match]:
    words = _words(name)
    spans: dict[str, list[tuple[int, int]]] = {}
    for start, stop in combinations(range(len(words) + 1), 2):
        spans.setdefault(" ".join(words[start:stop]), []).append((start, stop))
    matches = []
    for key in keys:
        key_words = _words(key.text)
        # A class name writes several words as one: `MeanIoU` is `mean iou`.
        glued_words = _words("".join(key_words))
        for spelling in {" ".join(key_words), " ".join(glued_words)}:
            matches += [_Match(*span, key) for span in spans.get(spelling, [])]
    return matches


def _substring_matches(name: str, keys: list[_Key]) -> list[_Match]:
    parts = [key for key in keys if key.is_given]
    parts += [_Key(part, None, 2, False) for part in _DOUBTFUL_PARTS]
    return [
        _Match(found.start(), found.end(), key)
        for key in parts
        for found in re.finditer(re.escape(_fold(key.text)), _fold(name))
    ]


def _not_hidden(matches: list[_Match]) -> list[_Match]:
    return [match for match in matches if not any(other.hides(match) for other in matches)]


def _decide(name: str, matches: list[_Match]) -> tuple[Rule, str]:
    matches = sorted(matches, key=lambda match: (match.key.rank, match.start, match.key.text))
    rule = matches[0].key.rule
    if rule is None or any(match.key.rule is not rule for match in matches):
        said = [f"{match.key.text!r} {_SAYS[match.key.rule]}" for match in matches]
        raise _refusal(name, ", ".join(dict.fromkeys(said)))
    return rule, matches[0].key.text


_SAYS = {Rule.GREATER: "says greater", Rule.LESS: "says less", None: "leaves it open"}


def _refusal(name: str, reason: str) -> RuleInferenceError:
    return RuleInferenceError(
        f"cannot infer whether a greater or a smaller {name!r} is better: {reason}; "
        "pass rule='greater' or rule='less'"
    )


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


_WORD = re.compile(r"(?:^|(?<=/))\s*(?:1\s*)?-|[^\W_]+|@")
# A word, or `@` (`AR@100`), or the sign that turns the whole name round (`-mse`, `1-ssim`).

_GLUED = re.compile(
    r"(binary|multiclass|multilabel|retrieval)?"
    r"(.+?)"
    r"(score|metric|index|curve|error|difference|gap)?"
)
# Class names carry the task before and the kind after the word that counts: `BinaryF1Score`.


@lru_cache(maxsize=2048)
def _words(text: str) -> tuple[str, ...]:
    words: list[str] = []
    for word in _WORD.findall(_fold(text)):
        glued = _GLUED.fullmatch("".join(word.split()))
        words += [part for part in glued.groups() if part] if glued else [word]
    return tuple(words)
