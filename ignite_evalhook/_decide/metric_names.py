"""List the names of metrics of our field, and which way each is better.

Data only; :mod:`ignite_evalhook._decide.rules` says how a metric's name is matched with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "AFTER",
    "BEFORE",
    "DEFAULT_GREATER_KEYS",
    "DEFAULT_LESS_KEYS",
    "DOUBTS",
    "GREATER_WORDS",
    "LESS_WORDS",
    "PRESETS",
]


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
    "top k categorical accuracy, handedness acc, precisions, average precision",
    "mean average precision",
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
    "hinge loss, ranking loss",
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

DOUBTS = _names(
    # these turn a score round: `neg_mse`, `1-ssim`
    "-, 1-, neg, negative, negated, minus, inverse, inverted",
    # these make it another number: `acc_std`, `f1_thresh`, `loss_scale`
    "gap, diff, difference, distance, degradation, decrease, reduction, increase, improvement",
    "acc drop, accuracy drop, std, stdev, stddev, stderr, var, variance, support, curve, curves",
    "threshold, thresholds, thresh, loss scale, loss weight, kl weight",
    # a signed error is best at 0; `F1-all` of optical flow is an error, not an F1
    "mean error, bias error, f1 all, kitti f1",
    # what it takes, not how good it is: `acc_time`, `top10_latency`; `atop` is no `a` and `top`
    "time, latency, duration, seconds, memory, atop",
)

BEFORE = _keys("m a bbox segm macro micro weighted balanced mean avg average overall total")
BEFORE += _keys(r"val valid validation test eval dev train roc pr top\d+")
AFTER = _keys(r"@?\d+ es score mean avg average macro micro weighted bbox segm top\d*")
# Parts of a word that change nothing about the key beside them, as regular expressions: `valAcc`,
# `mPrecision`, `rocauc`, `losses`, `top5`.  Any other rest makes another word: `heatmap`, `stop`.


PRESETS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "mmaction2": (_keys("mAP@ Recall@ AR@AN mean1 R1 R5 R10"), _keys("MdR MnR")),
        "mmcls": (_keys("CP CR CF1 OP OR OF1"), ()),
        "mmdet": (
            _keys("AP AP50 AP75 APs APm APl APr APc APf AR PQ SQ RQ JI R1 R5 R10 R20")
            + _keys("HOTA AssA DetA MOTA MOTP TP MT IDF1 IDTP IDP IDR Rcll Prcn EAO"),
            _keys("mMR FP FN IDSW IDFP IDFN Frag ML num_fails"),
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
            _keys("IoU Acc Dice Fscore mFscore mPrecision mRecall a1 a2 a3 d1 d2 d3")
            + _keys("averageScoreClasses averageScoreInstClasses")
            + _keys("averageScoreCategories averageScoreInstCategories"),
            _keys("abs_rel sq_rel rmse rmse_log log10 log_10 silog loss_dice"),
        ),
    }
)
"""Project -> (greater keys, less keys), as the project's own metrics spell them.

They join the given keys but never act as substrings: ``ar`` or ``or`` is part of many words.
"""
