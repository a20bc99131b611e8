"""What ``evaluation = dict(...)`` said in the configs of OpenMMLab's 1.x-era projects.

Facts only: the values of the blocks, the keywords that the data sets' ``evaluate`` took, and the
names of the metrics that it returned.  ``source`` is the repository and the path of the config.
MMDetection 2.x and MMSegmentation 0.x are read from forks that kept their files (UniverseNet,
Swin Transformer, ViT-Adapter, InternImage, yunchu/mmsegmentation).  The scores are made up.
Nothing here knows which tests use it.
"""

# ruff: noqa: C408 -- a config writes dict(...), and so the lines can be compared

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

EPOCHS = {"type": "EpochBasedRunner"}
ITERATIONS = {"type": "IterBasedRunner"}


class Line(NamedTuple):
    """One ``evaluation`` line.

    Attributes:
        source: Where it stands.
        block: The line.
        dataset: A key of :data:`SIGNATURES`.
        returns: What ``evaluate`` says: metric -> value, in its order.
        passed: The keywords that ``evaluate`` must get.
        due: All steps up to the last of a run, or to where the pattern is clear.
        best: Name of the best file after the evaluation of the first due step; where the line
            follows no metric, with ``save_best="auto"``.  ``None``: the first metric's name has
            no direction.
        runner: The ``runner`` of the config (or of what it inherits from); ``None``: it has none.
        preset: The project's preset, where it has one.
    """

    source: str
    block: Mapping[str, Any]
    dataset: str
    returns: Mapping[str, float]
    passed: Mapping[str, Any]
    due: Iterable[int]
    best: str | None
    runner: Mapping[str, Any] | None
    preset: str | None


# What `evaluate` of the data sets took, `self` left out.
SIGNATURES = {
    "mmcls": "results, metric='accuracy', metric_options=None, indices=None, logger=None",
    "mmcls multi-label": "results, metric='mAP', metric_options=None, indices=None, logger=None",
    "mmcls concat": "results, *args, indices=None, logger=None, **kwargs",
    "mmaction2": (
        "results, metrics='top_k_accuracy', metric_options=dict(top_k_accuracy=dict(topk=(1, 5))),"
        " logger=None, **deprecated_kwargs"
    ),
    "mmaction2 activitynet": (
        "results, metrics='AR@AN', metric_options=None, logger=None, **deprecated_kwargs"
    ),
    "mmaction2 ava": "results, metrics=('mAP',), metric_options=None, logger=None",
    "mmaction2 hvu": (
        "results, metrics='mean_average_precision', metric_options=None, logger=None"
    ),
    "mmpose": "results, res_folder=None, metric='mAP', **kwargs",
    "mmpose PCK": "results, res_folder=None, metric='PCK', **kwargs",
    "mmpose NME": "results, res_folder=None, metric='NME', **kwargs",
    "mmpose h36m": "results, res_folder=None, metric='mpjpe', **kwargs",
    "mmpose campus": (
        "results, res_folder=None, metric='pcp', recall_threshold=500, alpha_error=0.5, **kwargs"
    ),
    "mmpose nvgesture": "results, res_folder=None, metric='AP', **kwargs",
    "mmdet coco": (
        "results, metric='bbox', logger=None, jsonfile_prefix=None, classwise=False,"
        " proposal_nums=(100, 300, 1000), iou_thrs=None, metric_items=None"
    ),
    "mmdet voc": (
        "results, metric='mAP', logger=None, proposal_nums=(100, 300, 1000), iou_thr=0.5,"
        " scale_ranges=None"
    ),
    "mmdet panoptic": (
        "results, metric='PQ', logger=None, jsonfile_prefix=None, classwise=False, nproc=32,"
        " **kwargs"
    ),
    "mmdet concat": "results, logger=None, **kwargs",
    "mmdet3d kitti": (
        "results, metric=None, logger=None, pklfile_prefix=None, submission_prefix=None,"
        " show=False, out_dir=None, pipeline=None"
    ),
    "mmdet3d nuscenes": (
        "results, metric='bbox', logger=None, jsonfile_prefix=None, result_names=['pts_bbox'],"
        " show=False, out_dir=None, pipeline=None"
    ),
    "mmdet3d lyft": (
        "results, metric='bbox', logger=None, jsonfile_prefix=None, csv_savepath=None,"
        " result_names=['pts_bbox'], show=False, out_dir=None, pipeline=None"
    ),
    "mmdet3d indoor": (
        "results, metric=None, iou_thr=(0.25, 0.5), logger=None, show=False, out_dir=None,"
        " pipeline=None"
    ),
    "mmdet3d seg": ("results, metric=None, logger=None, show=False, out_dir=None, pipeline=None"),
    "mmseg": "results, metric='mIoU', logger=None, efficient_test=False, **kwargs",
    "mmseg pre_eval": "results, metric='mIoU', logger=None, gt_seg_maps=None, **kwargs",
    "mmtrack mot": (
        "results, metric='track', logger=None, resfile_path=None, bbox_iou_thr=0.5,"
        " track_iou_thr=0.5"
    ),
    "mmtrack sot": "results, metric=['track'], logger=None",
    "mmtrack vot": "results, metric=['track'], logger=None, interval=None",
    "mmtrack vis": "results, metric=['track_segm'], logger=None",
    "mmocr": "results, metric='hmean-iou', logger=None, score_thr=None, **kwargs",
    "mmocr kie": (
        "results, metric='macro_f1', metric_options=dict(macro_f1=dict(ignores=[])), **kwargs"
    ),
    "mmocr concat": "results, logger=None, **kwargs",
    "mmselfsup": "results, logger=None, topk=(1, 5)",
    "mmfewshot coco": (
        "results, metric='bbox', logger=None, jsonfile_prefix=None, classwise=False,"
        " proposal_nums=(100, 300, 1000), iou_thrs=None, metric_items=None, class_splits=None"
    ),
    "mmfewshot voc": (
        "results, metric='mAP', logger=None, proposal_nums=(100, 300, 1000), iou_thr=0.5,"
        " class_splits=None"
    ),
    "mmediting": "results, logger=None",
    "mmhuman3d": "outputs, res_folder=None, metric='pa-mpjpe', **kwargs",
    "depth": "results, metric='eigen', logger=None, **kwargs",
}

TOP = {"accuracy_top-1": 70.5, "accuracy_top-5": 90.25}
MULTI_LABEL = {"mAP": 81.5, "CP": 80.0, "OP": 79.0, "CR": 78.0, "OR": 77.0, "CF1": 76.0,
               "OF1": 75.0}  # fmt: skip
TOP_K = {"top1_acc": 0.5, "top5_acc": 0.75}
TOP_K_MEAN = {**TOP_K, "mean_class_accuracy": 0.25}
PROPOSALS = {"auc": 67.5, "AR@1": 0.25, "AR@5": 0.5, "AR@10": 0.5625, "AR@100": 0.75}
AVA = {"mAP@0.5IOU": 0.125}
HVU = {"action_mAP": 0.5, "scene_mAP": 0.25}
COCO_POSE = {
    "AP": 0.75, "AP .5": 0.875, "AP .75": 0.8125, "AP (M)": 0.625, "AP (L)": 0.6875,
    "AR": 0.78125, "AR .5": 0.9, "AR .75": 0.85, "AR (M)": 0.6, "AR (L)": 0.7,
}  # fmt: skip
CROWD_POSE = {"AP": 0.65, "AP .5": 0.85, "AP .75": 0.7, "AR": 0.7, "AR .5": 0.9, "AR .75": 0.75,
              "AP(E)": 0.75, "AP(M)": 0.66, "AP(H)": 0.53}  # fmt: skip
PCK_AUC_EPE = {"PCK": 0.9, "AUC": 0.75, "EPE": 12.5}
MPII = {"Head": 96.5, "Shoulder": 95.25, "Elbow": 89.0, "Wrist": 84.0, "Hip": 88.0, "Knee": 84.0,
        "Ankle": 80.0, "PCKh": 88.25, "PCKh@0.1": 33.0}  # fmt: skip
JHMDB = {"Head PCK": 0.96, "Sho PCK": 0.95, "Elb PCK": 0.85, "Wri PCK": 0.8, "Hip PCK": 0.97,
         "Knee PCK": 0.92, "Ank PCK": 0.9, "Mean PCK": 0.90625, "Head tPCK": 0.8,
         "Mean tPCK": 0.65}  # fmt: skip
POSETRACK = {"Head AP": 86.5, "Shou AP": 87.25, "Elb AP": 84.0, "Wri AP": 78.5, "Hip AP": 81.0,
             "Knee AP": 79.25, "Ankl AP": 74.0, "Total AP": 81.5}  # fmt: skip
H36M = {"MPJPE": 43.5, "P-MPJPE": 34.25}
COCO = {
    "bbox_mAP": 0.375, "bbox_mAP_50": 0.5625, "bbox_mAP_75": 0.4, "bbox_mAP_s": 0.2,
    "bbox_mAP_m": 0.41, "bbox_mAP_l": 0.48,
}  # fmt: skip
COCO_SEGM = {
    **COCO, "segm_mAP": 0.34375, "segm_mAP_50": 0.54, "segm_mAP_75": 0.36, "segm_mAP_s": 0.15,
    "segm_mAP_m": 0.37, "segm_mAP_l": 0.5,
}  # fmt: skip
LVIS = {"bbox_AP": 0.25, "bbox_AP50": 0.4, "bbox_AP75": 0.27, "bbox_APs": 0.2, "bbox_APm": 0.3,
        "bbox_APl": 0.35, "bbox_APr": 0.1, "bbox_APc": 0.24, "bbox_APf": 0.3, "segm_AP": 0.23,
        "segm_APr": 0.09}  # fmt: skip
AVERAGE_RECALL = {"AR@100": 0.4375, "AR@300": 0.5, "AR@1000": 0.5625, "AR_s@1000": 0.4,
                  "AR_m@1000": 0.6, "AR_l@1000": 0.7}  # fmt: skip
VOC = {"mAP": 0.78125, "AP50": 0.7812}
OPEN_IMAGES = {"AP50": 0.625, "mAP": 0.625}
CITYSCAPES = {**COCO_SEGM, "mAP": 0.36, "AP@50": 0.61}
PANOPTIC = {"PQ": 51.5, "SQ": 82.25, "RQ": 61.0, "PQ_th": 57.0, "SQ_th": 83.0, "RQ_th": 67.5,
            "PQ_st": 43.0, "SQ_st": 81.0, "RQ_st": 52.0}  # fmt: skip
KITTI = {
    "KITTI/Pedestrian_3D_AP11_easy_strict": 55.5, "KITTI/Pedestrian_BEV_AP40_hard_loose": 51.0,
    "KITTI/Car_3D_AP11_moderate_strict": 77.25, "KITTI/Car_2D_AP40_easy_loose": 95.0,
    "KITTI/Overall_3D_AP11_moderate": 64.0,
}  # fmt: skip
NUSCENES = {
    "pts_bbox_NuScenes/car_AP_dist_0.5": 0.6875, "pts_bbox_NuScenes/car_trans_err": 0.19,
    "pts_bbox_NuScenes/car_scale_err": 0.16, "pts_bbox_NuScenes/car_orient_err": 0.11,
    "pts_bbox_NuScenes/car_vel_err": 0.25, "pts_bbox_NuScenes/car_attr_err": 0.2,
    "pts_bbox_NuScenes/mATE": 0.3, "pts_bbox_NuScenes/mASE": 0.26, "pts_bbox_NuScenes/mAOE": 0.32,
    "pts_bbox_NuScenes/mAVE": 0.27, "pts_bbox_NuScenes/mAAE": 0.2, "pts_bbox_NuScenes/NDS": 0.64,
    "pts_bbox_NuScenes/mAP": 0.56,
}  # fmt: skip
MONO3D = {name.replace("pts", "img", 1): value for name, value in NUSCENES.items()}
LYFT = {"pts_bbox_Lyft/car_AP": 0.5, "pts_bbox_Lyft/bicycle_AP": 0.1, "pts_bbox_Lyft/mAP": 0.17}
INDOOR = {"chair_AP_0.25": 0.5, "mAP_0.25": 0.5625, "chair_rec_0.25": 0.8, "mAR_0.25": 0.85,
          "chair_AP_0.50": 0.3, "mAP_0.50": 0.35, "chair_rec_0.50": 0.5,
          "mAR_0.50": 0.55}  # fmt: skip
SEGMENTED_POINTS = {"wall": 0.7, "floor": 0.9, "miou": 0.5625, "acc": 0.8, "acc_cls": 0.65}
MIOU = {"aAcc": 0.8125, "mIoU": 0.4375, "mAcc": 0.5625, "IoU.road": 0.97, "IoU.traffic light": 0.6,
        "Acc.road": 0.98}  # fmt: skip
OLD_MIOU = {"mIoU": 0.4375, "mAcc": 0.5625, "aAcc": 0.8125}
MDICE = {"aAcc": 0.96875, "mDice": 0.78125, "mAcc": 0.75, "Dice.vessel": 0.8, "Acc.vessel": 0.8}
MOT = {"mAP": 0.75, "IDF1": 0.71, "MOTA": 0.62, "FP": 7000.0, "FN": 26000.0, "IDSw": 600.0,
       "MT": 500.0, "ML": 200.0, "HOTA": 0.55}  # fmt: skip
OPE = {"success": 64.5, "norm_precision": 80.0, "precision": 62.5}
VOT = {"eao": 0.3125, "accuracy": 0.6, "robustness": 0.25, "num_fails": 50.0}
HMEAN = {"0_hmean-iou:recall": 0.75, "0_hmean-iou:precision": 0.875, "0_hmean-iou:hmean": 0.8125}
WORDS = {"0_word_acc": 0.75, "0_word_acc_ignore_case": 0.8125, "0_char_recall": 0.9,
         "0_char_precision": 0.9, "0_1-N.E.D": 0.95}  # fmt: skip
DEPTH = {"a1": 0.96875, "a2": 0.99, "a3": 0.999, "abs_rel": 0.05, "rmse": 2.1, "log_10": 0.02,
         "rmse_log": 0.08, "silog": 7.5, "sq_rel": 0.15}  # fmt: skip

EVAL_PIPELINE = [{"type": "LoadPointsFromFile", "coord_type": "LIDAR"}, {"type": "Collect3D"}]
IGNORES = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25]
METRICS = ["top_k_accuracy", "mean_class_accuracy"]
TOP_1_5 = {"top_k_accuracy": {"topk": (1, 5)}}
BASE_NOVEL = ["BASE_CLASSES_SPLIT1", "NOVEL_CLASSES_SPLIT1"]


def every(interval: int, last: int, first: int | None = None) -> range:
    """Return the steps of a grid up to ``last``."""
    return range(interval if first is None else first, last + 1, interval)


def _mmcls(path: str, block: Any, returns: Any, passed: Any, due: Any, best: str,
           dataset: str = "mmcls") -> Line:  # fmt: skip
    return Line(f"mmclassification {path}", block, dataset, returns, passed, due, best, EPOCHS,
                "mmcls")  # fmt: skip


def _mmaction2(path: str, block: Any, returns: Any, passed: Any, due: Any, best: str,
               dataset: str = "mmaction2") -> Line:  # fmt: skip
    return Line(f"mmaction2 {path}", block, dataset, returns, passed, due, best, None,
                "mmaction2")  # fmt: skip


def _mmpose(path: str, block: Any, returns: Any, passed: Any, due: Any, best: str | None,
            dataset: str = "mmpose") -> Line:  # fmt: skip
    return Line(f"mmpose {path}", block, dataset, returns, passed, due, best, None, "mmpose")


def _mmdet(path: str, block: Any, returns: Any, passed: Any, due: Any, best: str,
           dataset: str = "mmdet coco", runner: Any = EPOCHS) -> Line:  # fmt: skip
    return Line(f"mmdetection {path}", block, dataset, returns, passed, due, best, runner,
                "mmdet")  # fmt: skip


def _mmdet3d(path: str, block: Any, returns: Any, passed: Any, due: Any, best: str | None,
             dataset: str, runner: Any = EPOCHS) -> Line:  # fmt: skip
    return Line(f"mmdetection3d {path}", block, dataset, returns, passed, due, best, runner,
                "mmdet3d")  # fmt: skip


def _mmseg(path: str, block: Any, returns: Any, passed: Any, due: Any, best: str,
           dataset: str = "mmseg", runner: Any = ITERATIONS) -> Line:  # fmt: skip
    return Line(f"mmsegmentation {path}", block, dataset, returns, passed, due, best, runner,
                "mmseg")  # fmt: skip


def _other(source: str, block: Any, returns: Any, passed: Any, due: Any, best: str | None,
           dataset: str, runner: Any = EPOCHS, preset: str | None = None) -> Line:  # fmt: skip
    return Line(source, block, dataset, returns, passed, due, best, runner, preset)


LINES: tuple[Line, ...] = (
    # -- MMClassification 0.x ---------------------------------------------------------------------
    _mmcls("configs/_base_/datasets/cub_bs8_384.py",
           dict(interval=1, metric="accuracy", save_best="auto"),
           TOP, dict(metric="accuracy"), every(1, 100), "best_model_1_accuracy_top-1=70.5.pt"),
    _mmcls("configs/_base_/datasets/imagenet21k_bs128.py",
           dict(interval=1, metric="accuracy"),
           TOP, dict(metric="accuracy"), every(1, 90), "best_model_1_accuracy_top-1=70.5.pt"),
    _mmcls("configs/_base_/datasets/imagenet_bs128_poolformer_medium_224.py",
           dict(interval=10, metric="accuracy"),
           TOP, dict(metric="accuracy"), every(10, 300), "best_model_10_accuracy_top-1=70.5.pt",
           "mmcls concat"),
    _mmcls("configs/_base_/datasets/voc_bs16.py",
           dict(interval=1, metric=["mAP", "CP", "OP", "CR", "OR", "CF1", "OF1"]),
           MULTI_LABEL, dict(metric=["mAP", "CP", "OP", "CR", "OR", "CF1", "OF1"]),
           every(1, 40), "best_model_1_mAP=81.5.pt", "mmcls multi-label"),
    _mmcls("configs/lenet/lenet5_mnist.py",
           dict(interval=5, metric="accuracy", metric_options={"topk": (1,)}),
           {"accuracy_top-1": 98.75}, dict(metric="accuracy", metric_options={"topk": (1,)}),
           every(5, 5), "best_model_5_accuracy_top-1=98.75.pt"),
    # -- MMAction2 0.x ----------------------------------------------------------------------------
    _mmaction2("configs/detection/acrn/slowfast_acrn_kinetics_pretrained_r50_8x8x1_cosine_10e_"
               "ava22_rgb.py",
               dict(interval=1),
               AVA, {}, every(1, 10), "best_model_1_mAP@0.5IOU=0.125.pt", "mmaction2 ava"),
    _mmaction2("configs/detection/ava/slowfast_context_kinetics_pretrained_r50_4x16x1_20e_ava_"
               "rgb.py",
               dict(interval=1, save_best="mAP@0.5IOU"),
               AVA, {}, every(1, 20), "best_model_1_mAP@0.5IOU=0.125.pt", "mmaction2 ava"),
    _mmaction2("configs/localization/bmn/bmn_400x100_2x8_9e_activitynet_feature.py",
               dict(interval=1, metrics=["AR@AN"]),
               PROPOSALS, dict(metrics=["AR@AN"]), every(1, 9), "best_model_1_auc=67.5.pt",
               "mmaction2 activitynet"),
    _mmaction2("configs/recognition/c3d/c3d_sports1m_16x1x1_45e_ucf101_rgb.py",
               dict(interval=5, metrics=METRICS),
               TOP_K_MEAN, dict(metrics=METRICS), every(5, 45), "best_model_5_top1_acc=0.5.pt"),
    _mmaction2("configs/recognition/omnisource/slowonly_r50_8x8x1_256e_minikinetics/slowonly_r50_"
               "8x8x1_256e_minikinetics_googleimage_rgb.py",
               dict(interval=8, metrics=METRICS),
               TOP_K_MEAN, dict(metrics=METRICS), every(8, 256), "best_model_8_top1_acc=0.5.pt"),
    _mmaction2("configs/recognition/slowfast/slowfast_multigrid_r50_8x8x1_358e_kinetics400_rgb.py",
               dict(interval=3, metrics=METRICS),
               TOP_K_MEAN, dict(metrics=METRICS), every(3, 358), "best_model_3_top1_acc=0.5.pt"),
    _mmaction2("configs/recognition/slowfast/slowfast_r50_16x8x1_22e_sthv1_rgb.py",
               dict(interval=1, metrics=["top_k_accuracy"], start=18, gpu_collect=True),
               TOP_K, dict(metrics=["top_k_accuracy"]), every(1, 22, first=18),
               "best_model_18_top1_acc=0.5.pt"),
    _mmaction2("configs/recognition/slowonly/slowonly_imagenet_pretrained_r50_8x4x1_64e_hmdb51_"
               "rgb.py",
               dict(interval=1, metrics=METRICS),
               TOP_K_MEAN, dict(metrics=METRICS), every(1, 64), "best_model_1_top1_acc=0.5.pt"),
    _mmaction2("configs/recognition/tanet/tanet_r50_dense_1x1x8_100e_kinetics400_rgb.py",
               dict(interval=2, metrics=METRICS),
               TOP_K_MEAN, dict(metrics=METRICS), every(2, 100), "best_model_2_top1_acc=0.5.pt"),
    _mmaction2("configs/recognition/tsn/hvu/tsn_r18_1x1x8_100e_hvu_action_rgb.py",
               dict(interval=2, metrics=["mean_average_precision"]),
               HVU, dict(metrics=["mean_average_precision"]), every(2, 100),
               "best_model_2_action_mAP=0.5.pt", "mmaction2 hvu"),
    _mmaction2("configs/recognition/tsn/tsn_r101_1x1x5_50e_mmit_rgb.py",
               dict(interval=5, metrics=["mmit_mean_average_precision"]),
               {"mmit_mean_average_precision": 0.625},
               dict(metrics=["mmit_mean_average_precision"]), every(5, 50),
               "best_model_5_mmit_mean_average_precision=0.625.pt"),
    _mmaction2("configs/recognition/tsn/tsn_r50_1x1x8_50e_hmdb51_imagenet_rgb.py",
               dict(interval=1, metrics=METRICS, topk=(1, 5)),
               TOP_K_MEAN, dict(metrics=METRICS, metric_options=TOP_1_5), every(1, 50),
               "best_model_1_top1_acc=0.5.pt"),
    _mmaction2("configs/skeleton/2s-agcn/2sagcn_80e_ntu60_xsub_bone_3d.py",
               dict(interval=3, metrics=["top_k_accuracy"]),
               TOP_K, dict(metrics=["top_k_accuracy"]), every(3, 80),
               "best_model_3_top1_acc=0.5.pt"),
    _mmaction2("configs/skeleton/posec3d/slowonly_r50_u48_240e_gym_keypoint.py",
               dict(interval=10, metrics=METRICS, topk=(1, 5)),
               TOP_K_MEAN, dict(metrics=METRICS, metric_options=TOP_1_5), every(10, 240),
               "best_model_10_top1_acc=0.5.pt"),
    _mmaction2("configs/skeleton/stgcn/stgcn_80e_ntu60_xsub_keypoint.py",
               dict(interval=5, metrics=["top_k_accuracy"]),
               TOP_K, dict(metrics=["top_k_accuracy"]), every(5, 80),
               "best_model_5_top1_acc=0.5.pt"),
    # -- MMPose 0.x -------------------------------------------------------------------------------
    _mmpose("configs/animal/2d_kpt_sview_rgb_img/topdown_heatmap/animalpose/"
            "hrnet_w32_animalpose_256x256.py",
            dict(interval=10, metric="mAP", save_best="AP"),
            COCO_POSE, dict(metric="mAP"), every(10, 210), "best_model_10_AP=0.75.pt"),
    _mmpose("configs/animal/2d_kpt_sview_rgb_img/topdown_heatmap/fly/res101_fly_192x192.py",
            dict(interval=10, metric=["PCK", "AUC", "EPE"], save_best="AUC"),
            PCK_AUC_EPE, dict(metric=["PCK", "AUC", "EPE"]), every(10, 210),
            "best_model_10_AUC=0.75.pt", "mmpose PCK"),
    _mmpose("configs/animal/2d_kpt_sview_rgb_img/topdown_heatmap/horse10/"
            "hrnet_w32_horse10_256x256-split1.py",
            dict(interval=10, metric="PCK", save_best="PCK"),
            {"PCK": 0.9375}, dict(metric="PCK"), every(10, 210), "best_model_10_PCK=0.9375.pt",
            "mmpose PCK"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/associative_embedding/aic/"
            "higherhrnet_w32_aic_512x512.py",
            dict(interval=50, metric="mAP", save_best="AP"),
            COCO_POSE, dict(metric="mAP"), every(50, 300), "best_model_50_AP=0.75.pt"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/cid/coco/hrnet_w32_coco_512x512.py",
            dict(interval=20, metric="mAP", save_best="AP"),
            COCO_POSE, dict(metric="mAP"), every(20, 140), "best_model_20_AP=0.75.pt"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/deeppose/coco/res101_coco_256x192_rle.py",
            dict(interval=10, metric="mAP", save_best="AP", rle_score=True),
            COCO_POSE, dict(metric="mAP", rle_score=True), every(10, 210),
            "best_model_10_AP=0.75.pt"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/deeppose/mpii/res101_mpii_256x256.py",
            dict(interval=10, metric="PCKh", save_best="PCKh"),
            MPII, dict(metric="PCKh"), every(10, 210), "best_model_10_PCKh=88.25.pt",
            "mmpose PCK"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/topdown_heatmap/crowdpose/"
            "hrnet_w32_crowdpose_256x192.py",
            dict(interval=10, metric="mAP"),
            CROWD_POSE, dict(metric="mAP"), every(10, 210), "best_model_10_AP=0.65.pt"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/topdown_heatmap/h36m/hrnet_w32_h36m_256x256.py",
            dict(interval=10, metric=["PCK", "EPE"], save_best="PCK"),
            {"PCK": 0.9, "EPE": 9.5}, dict(metric=["PCK", "EPE"]), every(10, 210),
            "best_model_10_PCK=0.9.pt", "mmpose PCK"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/topdown_heatmap/jhmdb/cpm_jhmdb_sub1_368x368.py",
            dict(interval=1, metric=["PCK", "tPCK"], save_best="Mean PCK"),
            JHMDB, dict(metric=["PCK", "tPCK"]), every(1, 40),
            "best_model_1_Mean_PCK=0.90625.pt", "mmpose PCK"),
    _mmpose("configs/body/2d_kpt_sview_rgb_img/topdown_heatmap/posetrack18/"
            "hrnet_w32_posetrack18_256x192.py",
            dict(interval=1, metric="mAP", save_best="Total AP"),
            POSETRACK, dict(metric="mAP"), every(1, 20), "best_model_1_Total_AP=81.5.pt"),
    _mmpose("configs/body/3d_kpt_mview_rgb_img/voxelpose/campus/"
            "voxelpose_prn32x32x32_cpn80x80x20_campus_cam3.py",
            dict(interval=1, metric="pcp", save_best="pcp", recall_threshold=500),
            {"Actor 1 Total PCP": 97.5, "pcp": 96.25, "Actor 1 HEAD PCP": 99.0,
             "Average HEAD PCP": 98.0},
            dict(metric="pcp", recall_threshold=500), every(1, 15), "best_model_1_pcp=96.25.pt",
            "mmpose campus"),
    _mmpose("configs/body/3d_kpt_mview_rgb_img/voxelpose/panoptic/"
            "voxelpose_prn64x64x64_cpn80x80x20_panoptic_cam5.py",
            dict(interval=1, metric="mAP", save_best="mAP"),
            {"AP 25": 83.0, "AP 150": 99.0, "mAP": 96.75, "AR 25": 85.0, "mAR": 97.5},
            dict(metric="mAP"), every(1, 15), "best_model_1_mAP=96.75.pt", "mmpose h36m"),
    _mmpose("configs/body/3d_kpt_sview_rgb_img/pose_lift/h36m/simplebaseline3d_h36m.py",
            dict(interval=10, metric=["mpjpe", "p-mpjpe"], save_best="MPJPE"),
            H36M, dict(metric=["mpjpe", "p-mpjpe"]), every(10, 200),
            "best_model_10_MPJPE=43.5.pt", "mmpose h36m"),
    _mmpose("configs/body/3d_kpt_sview_rgb_img/pose_lift/mpi_inf_3dhp/"
            "simplebaseline3d_mpi-inf-3dhp.py",
            dict(interval=10, metric=["mpjpe", "p-mpjpe", "3dpck", "3dauc"], save_best="MPJPE"),
            {**H36M, "3DPCK": 85.0, "3DAUC": 52.0},
            dict(metric=["mpjpe", "p-mpjpe", "3dpck", "3dauc"]), every(10, 200),
            "best_model_10_MPJPE=43.5.pt", "mmpose h36m"),
    _mmpose("configs/body/3d_kpt_sview_rgb_vid/video_pose_lift/h36m/"
            "videopose3d_h36m_27frames_fullconv_semi-supervised.py",
            dict(interval=10, metric=["mpjpe", "p-mpjpe", "n-mpjpe"], save_best="MPJPE"),
            {**H36M, "N-MPJPE": 42.5}, dict(metric=["mpjpe", "p-mpjpe", "n-mpjpe"]),
            every(10, 200), "best_model_10_MPJPE=43.5.pt", "mmpose h36m"),
    _mmpose("configs/face/2d_kpt_sview_rgb_img/deeppose/wflw/res50_wflw_256x256.py",
            dict(interval=1, metric=["NME"], save_best="NME"),
            {"NME": 4.875}, dict(metric=["NME"]), every(1, 210), "best_model_1_NME=4.875.pt",
            "mmpose NME"),
    _mmpose("configs/hand/2d_kpt_sview_rgb_img/deeppose/panoptic2d/res50_panoptic2d_256x256.py",
            dict(interval=10, metric=["PCKh", "AUC", "EPE"], save_best="AUC"),
            {"PCKh": 0.99, "AUC": 0.6875, "EPE": 9.4}, dict(metric=["PCKh", "AUC", "EPE"]),
            every(10, 210), "best_model_10_AUC=0.6875.pt", "mmpose PCK"),
    _mmpose("configs/hand/2d_kpt_sview_rgb_img/topdown_heatmap/freihand2d/"
            "res50_freihand2d_224x224.py",
            dict(interval=1, metric=["PCK", "AUC", "EPE"], save_best="AUC"),
            PCK_AUC_EPE, dict(metric=["PCK", "AUC", "EPE"]), every(1, 100),
            "best_model_1_AUC=0.75.pt", "mmpose PCK"),
    _mmpose("configs/hand/2d_kpt_sview_rgb_img/topdown_heatmap/interhand2d/"
            "res50_interhand2d_all_256x256.py",
            dict(interval=5, metric=["PCK", "AUC", "EPE"], save_best="AUC"),
            PCK_AUC_EPE, dict(metric=["PCK", "AUC", "EPE"]), every(5, 60),
            "best_model_5_AUC=0.75.pt", "mmpose PCK"),
    _mmpose("configs/hand/3d_kpt_sview_rgb_img/internet/interhand3d/"
            "res50_interhand3d_all_256x256.py",
            dict(interval=1, metric=["MRRPE", "MPJPE", "Handedness_acc"], save_best="MPJPE_all"),
            {"MRRPE": 34.5, "MPJPE_all": 17.25, "MPJPE_single": 13.0, "MPJPE_interacting": 18.0,
             "Handedness_acc": 0.99},
            dict(metric=["MRRPE", "MPJPE", "Handedness_acc"]), every(1, 20),
            "best_model_1_MPJPE_all=17.25.pt", "mmpose h36m"),
    _mmpose("configs/hand/gesture_sview_rgbd_vid/mtut/nvgesture/i3d_nvgesture_224x224_fps30.py",
            dict(interval=5, metric="AP", save_best="AP_rgb"),
            {"AP_rgb": 0.71875, "AP_depth": 0.75, "AP_mean": 0.734}, dict(metric="AP"),
            every(5, 75), "best_model_5_AP_rgb=0.71875.pt", "mmpose nvgesture"),
    # ... and before its version 0.16, with the older name.
    _mmpose("(2020-09) configs/top_down/alexnet/coco/alexnet_coco_256x192.py",
            dict(interval=10, metric="mAP", key_indicator="AP"),
            COCO_POSE, dict(metric="mAP"), every(10, 210), "best_model_10_AP=0.75.pt"),
    _mmpose("(2020-09) configs/bottom_up/higherhrnet/coco/higher_hrnet32_coco_512x512.py",
            dict(interval=50, metric="mAP", key_indicator="AP"),
            COCO_POSE, dict(metric="mAP"), every(50, 300), "best_model_50_AP=0.75.pt"),
    _mmpose("(2020-12) configs/top_down/cpm/jhmdb/cpm_jhmdb_sub1_368x368.py",
            dict(interval=1, metric=["PCK", "tPCK"], key_indicator="Mean PCK"),
            JHMDB, dict(metric=["PCK", "tPCK"]), every(1, 40),
            "best_model_1_Mean_PCK=0.90625.pt", "mmpose PCK"),
    _mmpose("(2021-06) configs/hand3d/InterNet/interhand3d/res50_interhand3d_all_256x256.py",
            dict(interval=1, metric=["MRRPE", "MPJPE", "Handedness_acc"],
                 key_indicator="MPJPE_all"),
            {"MRRPE": 34.5, "MPJPE_all": 17.25},
            dict(metric=["MRRPE", "MPJPE", "Handedness_acc"]), every(1, 20),
            "best_model_1_MPJPE_all=17.25.pt", "mmpose h36m"),
    # -- MMDetection 2.x --------------------------------------------------------------------------
    _mmdet("configs/_base_/datasets/coco_detection.py",
           dict(interval=1, metric="bbox"),
           COCO, dict(metric="bbox"), every(1, 12), "best_model_1_bbox_mAP=0.375.pt"),
    _mmdet("configs/_base_/datasets/cityscapes_instance.py",
           dict(metric=["bbox", "segm"]),
           CITYSCAPES, dict(metric=["bbox", "segm"]), every(1, 8),
           "best_model_1_bbox_mAP=0.375.pt"),
    _mmdet("configs/_base_/datasets/coco_panoptic.py",
           dict(interval=1, metric=["PQ"]),
           PANOPTIC, dict(metric=["PQ"]), every(1, 12), "best_model_1_PQ=51.5.pt",
           "mmdet panoptic"),
    _mmdet("configs/_base_/datasets/deepfashion.py",
           dict(interval=5, metric=["bbox", "segm"]),
           COCO_SEGM, dict(metric=["bbox", "segm"]), every(5, 15),
           "best_model_5_bbox_mAP=0.375.pt"),
    _mmdet("configs/_base_/datasets/voc0712.py",
           dict(interval=1, metric="mAP"),
           VOC, dict(metric="mAP"), every(1, 4), "best_model_1_mAP=0.78125.pt", "mmdet voc"),
    _mmdet("configs/common/ssj_270k_coco_instance.py",
           dict(interval=6000, metric=["bbox", "segm"]),
           COCO_SEGM, dict(metric=["bbox", "segm"]), every(6000, 270000),
           "best_model_6000_bbox_mAP=0.375.pt", runner={**ITERATIONS, "max_iters": 270000}),
    _mmdet("configs/faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_90k_coco.py",
           dict(interval=10000, metric="bbox"),
           COCO, dict(metric="bbox"), every(10000, 90000), "best_model_10000_bbox_mAP=0.375.pt",
           runner={"_delete_": True, **ITERATIONS, "max_iters": 90000}),
    _mmdet("configs/fpg/faster_rcnn_r50_fpn_crop640_50e_coco.py",
           dict(interval=2),
           COCO, {}, every(2, 50), "best_model_2_bbox_mAP=0.375.pt", runner={"max_epochs": 50}),
    _mmdet("configs/mask2former/mask2former_r50_lsj_8x2_50e_coco-panoptic.py",
           dict(interval=5000, dynamic_intervals=[(365001, 368750)],
                metric=["PQ", "bbox", "segm"]),
           PANOPTIC, dict(metric=["PQ", "bbox", "segm"]), (*every(5000, 365000), 368750),
           "best_model_5000_PQ=51.5.pt", "mmdet panoptic",
           runner={**ITERATIONS, "max_iters": 368750}),
    _mmdet("configs/rpn/rpn_r50_caffe_c4_1x_coco.py",
           dict(interval=1, metric="proposal_fast"),
           AVERAGE_RECALL, dict(metric="proposal_fast"), every(1, 12),
           "best_model_1_AR@100=0.4375.pt"),
    _mmdet("configs/seesaw_loss/cascade_mask_rcnn_r101_fpn_random_seesaw_loss_mstrain_2x_lvis_v1.py",
           dict(interval=24, metric=["bbox", "segm"]),
           LVIS, dict(metric=["bbox", "segm"]), every(24, 24), "best_model_24_bbox_AP=0.25.pt"),
    _mmdet("configs/yolo/yolov3_d53_mstrain-608_273e_coco.py",
           dict(interval=1, metric=["bbox"]),
           COCO, dict(metric=["bbox"]), every(1, 273), "best_model_1_bbox_mAP=0.375.pt"),
    _mmdet("configs/yolof/yolof_r50_c5_8x8_iter-1x_coco.py",
           dict(interval=4500),
           COCO, {}, every(4500, 22500), "best_model_4500_bbox_mAP=0.375.pt",
           runner={"_delete_": True, **ITERATIONS, "max_iters": 22500}),
    _mmdet("configs/yolox/yolox_s_8x8_300e_coco.py",
           dict(save_best="auto", interval=10, dynamic_intervals=[(285, 1)], metric="bbox"),
           COCO, dict(metric="bbox"), (*every(10, 280), *range(285, 301)),
           "best_model_10_bbox_mAP=0.375.pt", runner={**EPOCHS, "max_epochs": 300}),
    _mmdet("(InternImage) detection/configs/_base_/datasets/coco_instance.py",
           dict(metric=["bbox", "segm"], classwise=True),
           COCO_SEGM, dict(metric=["bbox", "segm"], classwise=True), every(1, 12),
           "best_model_1_bbox_mAP=0.375.pt"),
    _mmdet("(InternImage) detection/configs/coco/dino_4scale_cbinternimage_h_objects365_coco_ss.py",
           dict(interval=200, save_best="auto"),
           COCO, {}, every(200, 20000), "best_model_200_bbox_mAP=0.375.pt", "mmdet concat",
           runner={**ITERATIONS, "max_iters": 20000}),
    _mmdet("(InternImage) detection/configs/openimages/"
           "dino_4scale_cbinternimage_h_objects365_openimages_ss.py",
           dict(interval=2000, metric="mAP", save_best="auto"),
           OPEN_IMAGES, dict(metric="mAP"), every(2000, 100000), "best_model_2000_AP50=0.625.pt",
           "mmdet voc", runner={**ITERATIONS, "max_iters": 100000}),
    _mmdet("(Swin) configs/swin/reppoitsv2_swin_tiny_patch4_window7_mstrain_480_960_giou_gfocal_"
           "bifpn_adamw_3x_coco.py",
           dict(metric=["bbox"]),
           COCO, dict(metric=["bbox"]), every(1, 36), "best_model_1_bbox_mAP=0.375.pt",
           runner={"type": "EpochBasedRunnerAmp", "max_epochs": 36}),
    # -- MMDetection3D 1.0 ------------------------------------------------------------------------
    _mmdet3d("configs/3dssd/3dssd_4x4_kitti-3d-car.py",
             dict(interval=2),
             KITTI, {}, every(2, 80),
             "best_model_2_KITTI_Pedestrian_3D_AP11_easy_strict=55.5.pt", "mmdet3d kitti"),
    _mmdet3d("configs/_base_/datasets/kitti-3d-3class.py",
             dict(interval=1, pipeline=EVAL_PIPELINE),
             KITTI, dict(pipeline=EVAL_PIPELINE), every(1, 40),
             "best_model_1_KITTI_Pedestrian_3D_AP11_easy_strict=55.5.pt", "mmdet3d kitti"),
    _mmdet3d("configs/_base_/datasets/lyft-3d.py",
             dict(interval=24, pipeline=EVAL_PIPELINE),
             LYFT, dict(pipeline=EVAL_PIPELINE), every(24, 24),
             "best_model_24_pts_bbox_Lyft_car_AP=0.5.pt", "mmdet3d lyft"),
    _mmdet3d("configs/_base_/datasets/s3dis-3d-5class.py",
             dict(pipeline=EVAL_PIPELINE),
             INDOOR, dict(pipeline=EVAL_PIPELINE), every(1, 36),
             "best_model_1_chair_AP_0.25=0.5.pt", "mmdet3d indoor"),
    _mmdet3d("configs/centerpoint/centerpoint_01voxel_second_secfpn_4x8_cyclic_20e_nus.py",
             dict(interval=20, pipeline=EVAL_PIPELINE),
             NUSCENES, dict(pipeline=EVAL_PIPELINE), every(20, 20),
             "best_model_20_pts_bbox_NuScenes_car_AP_dist_0.5=0.6875.pt", "mmdet3d nuscenes"),
    _mmdet3d("configs/free_anchor/hv_pointpillars_regnet-1.6gf_fpn_sbn-all_free-anchor_"
             "strong-aug_4x8_3x_nus-3d.py",
             dict(interval=36),
             NUSCENES, {}, every(36, 36),
             "best_model_36_pts_bbox_NuScenes_car_AP_dist_0.5=0.6875.pt", "mmdet3d nuscenes",
             runner={"max_epochs": 36}),
    _mmdet3d("configs/pgd/pgd_r101_caffe_fpn_gn-head_2x16_1x_nus-mono3d.py",
             dict(interval=4),
             MONO3D, {}, every(4, 12),
             "best_model_4_img_bbox_NuScenes_car_AP_dist_0.5=0.6875.pt", "mmdet3d nuscenes",
             runner={"max_epochs": 12}),
    _mmdet3d("configs/pointnet2/pointnet2_msg_16x2_cosine_250e_scannet_seg-3d-20class.py",
             dict(interval=5),
             SEGMENTED_POINTS, {}, every(5, 250), None, "mmdet3d seg"),
    _mmdet3d("configs/pointnet2/pointnet2_msg_xyz-only_16x2_cosine_250e_scannet_seg-3d-20class.py",
             dict(pipeline=EVAL_PIPELINE, interval=5),
             SEGMENTED_POINTS, dict(pipeline=EVAL_PIPELINE), every(5, 250), None, "mmdet3d seg"),
    # -- MMSegmentation 0.x -----------------------------------------------------------------------
    _mmseg("configs/_base_/schedules/schedule_20k.py",
           dict(interval=2000, metric="mIoU", pre_eval=True),
           MIOU, dict(metric="mIoU"), every(2000, 20000), "best_model_2000_aAcc=0.8125.pt",
           "mmseg pre_eval", runner={**ITERATIONS, "max_iters": 20000}),
    _mmseg("configs/_base_/schedules/schedule_40k.py",
           dict(interval=4000, metric="mIoU", pre_eval=True),
           MIOU, dict(metric="mIoU"), every(4000, 40000), "best_model_4000_aAcc=0.8125.pt",
           "mmseg pre_eval", runner={**ITERATIONS, "max_iters": 40000}),
    _mmseg("configs/_base_/schedules/schedule_320k.py",
           dict(interval=32000, metric="mIoU"),
           MIOU, dict(metric="mIoU"), every(32000, 320000), "best_model_32000_aAcc=0.8125.pt",
           runner={**ITERATIONS, "max_iters": 320000}),
    _mmseg("(0.8) configs/_base_/schedules/schedule_160k.py",
           dict(interval=16000, metric="mIoU"),
           OLD_MIOU, dict(metric="mIoU"), every(16000, 160000),
           "best_model_16000_mIoU=0.4375.pt", runner=None),
    _mmseg("configs/unet/deeplabv3_unet_s5-d16_128x128_40k_chase_db1.py",
           dict(metric="mDice"),
           MDICE, dict(metric="mDice"), every(1, 50), "best_model_1_aAcc=0.96875.pt"),
    _mmseg("(yunchu/mmsegmentation) configs/_base_/schedules/schedule_step_700epochs_ml.py",
           dict(by_epoch=True, interval=20, metric="mIoU"),
           OLD_MIOU, dict(metric="mIoU"), every(20, 600), "best_model_20_mIoU=0.4375.pt",
           runner={**EPOCHS, "max_epochs": 600}),
    _mmseg("(ViT-Adapter) segmentation/configs/ade20k/"
           "mask2former_beit_adapter_large_896_80k_ade20k_ms.py",
           dict(interval=8000, metric="mIoU", save_best="mIoU"),
           MIOU, dict(metric="mIoU"), every(8000, 80000), "best_model_8000_mIoU=0.4375.pt"),
    _mmseg("(ViT-Adapter) segmentation/configs/chase_db1/"
           "mask2former_beit_adapter_large_128_40k_chase_db1_ss.py",
           dict(interval=4000, metric="mDice", save_best="mDice"),
           MDICE, dict(metric="mDice"), every(4000, 40000), "best_model_4000_mDice=0.78125.pt"),
    _mmseg("(a fork, whose path was not kept) with efficient_test",
           dict(interval=10000, metric="mIoU", save_best="mIoU", efficient_test=True),
           OLD_MIOU, dict(metric="mIoU"), every(10000, 40000), "best_model_10000_mIoU=0.4375.pt"),
    # -- MMTracking -------------------------------------------------------------------------------
    _other("mmtracking configs/mot/bytetrack/bytetrack_yolox_x_crowdhuman_mot17-private-half.py",
           dict(metric=["bbox", "track"], interval=1),
           MOT, dict(metric=["bbox", "track"]), every(1, 80), "best_model_1_mAP=0.75.pt",
           "mmtrack mot", None, "mmdet"),
    _other("mmtracking configs/mot/qdtrack/qdtrack_faster-rcnn_r101_fpn_24e_lvis.py",
           dict(metric=["bbox"], start=16, interval=2),
           LVIS, dict(metric=["bbox"]), every(2, 24, first=16), "best_model_16_bbox_AP=0.25.pt",
           "mmtrack mot", None, "mmdet"),
    _other("mmtracking configs/sot/siamese_rpn/siamese_rpn_r50_20e_lasot.py",
           dict(metric=["track"], interval=1, start=10, rule="greater", save_best="success"),
           OPE, dict(metric=["track"]), every(1, 20, first=10), "best_model_10_success=64.5.pt",
           "mmtrack sot", None),
    _other("mmtracking configs/sot/siamese_rpn/siamese_rpn_r50_20e_vot2018.py",
           dict(metric=["track"], interval=1, start=10, rule="greater", save_best="eao"),
           VOT, dict(metric=["track"]), every(1, 20, first=10), "best_model_10_eao=0.3125.pt",
           "mmtrack vot", None),
    _other("mmtracking configs/sot/stark/stark_st1_r50_500e_got10k.py",
           dict(metric=["track"], interval=100, start=501, rule="greater", save_best="success"),
           OPE, dict(metric=["track"]), every(100, 801, first=501),
           "best_model_501_success=64.5.pt", "mmtrack sot", None),
    _other("mmtracking configs/vis/masktrack_rcnn/masktrack_rcnn_r50_fpn_12e_youtubevis2019.py",
           dict(metric=["track_segm"], interval=13),
           {"track_segm_mAP": 0.28125, "track_segm_mAP_50": 0.45}, dict(metric=["track_segm"]),
           every(13, 26), "best_model_13_track_segm_mAP=0.28125.pt", "mmtrack vis", None),
    # -- MMOCR 0.x --------------------------------------------------------------------------------
    _other("mmocr configs/kie/sdmgr/sdmgr_novisual_60e_wildreceipt.py",
           dict(interval=1, metric="macro_f1", metric_options=dict(macro_f1=dict(ignores=IGNORES))),
           {"macro_f1": 0.875},
           dict(metric="macro_f1", metric_options=dict(macro_f1=dict(ignores=IGNORES))),
           every(1, 60), "best_model_1_macro_f1=0.875.pt", "mmocr kie"),
    _other("mmocr configs/kie/sdmgr/sdmgr_novisual_60e_wildreceipt_openset.py",
           dict(interval=1, metric="openset_f1", metric_options=None),
           {"edge_openset_f1": 0.75, "node_openset_micro_f1": 0.9, "node_openset_macro_f1": 0.8},
           dict(metric="openset_f1", metric_options=None), every(1, 60),
           "best_model_1_edge_openset_f1=0.75.pt", "mmocr kie"),
    _other("mmocr configs/ner/bert_softmax/bert_softmax_cluener_18e.py",
           dict(interval=1, metric="f1-score"),
           {"f1-score": 0.75}, dict(metric="f1-score"), every(1, 18),
           "best_model_1_f1-score=0.75.pt", "mmocr"),
    _other("mmocr configs/textdet/dbnetpp/dbnetpp_r50dcnv2_fpnc_1200e_icdar2015.py",
           dict(interval=100, metric="hmean-iou", save_best="0_hmean-iou:hmean", rule="greater"),
           HMEAN, dict(metric="hmean-iou"), every(100, 1200),
           "best_model_100_0_hmean-iou_hmean=0.8125.pt", "mmocr concat"),
    _other("mmocr configs/textdet/dbnetpp/dbnetpp_r50dcnv2_fpnc_100k_iter_synthtext.py",
           dict(interval=200000, metric="hmean-iou"),
           HMEAN, dict(metric="hmean-iou"), every(200000, 400000),
           "best_model_200000_0_hmean-iou_recall=0.75.pt", "mmocr concat", ITERATIONS),
    _other("mmocr configs/textrecog/abinet/abinet_academic.py",
           dict(interval=1, metric="acc"),
           WORDS, dict(metric="acc"), every(1, 20), "best_model_1_0_word_acc=0.75.pt",
           "mmocr concat"),
    # -- MMSelfSup, MMFewShot, MMEditing, MMHuman3D, a toolbox for depth --------------------------
    _other("mmselfsup configs/benchmarks/classification/_base_/datasets/cifar10.py",
           dict(interval=10, topk=(1, 5)),
           {"head0_top1": 64.5, "head0_top5": 90.0}, dict(topk=(1, 5)), every(10, 350),
           "best_model_10_head0_top1=64.5.pt", "mmselfsup"),
    _other("mmfewshot configs/detection/_base_/datasets/fine_tune_based/few_shot_coco.py",
           dict(interval=4000, metric="bbox", classwise=True,
                class_splits=["BASE_CLASSES", "NOVEL_CLASSES"]),
           {"bbox_mAP": 0.25, "BASE_CLASSES bbox_mAP": 0.3, "NOVEL_CLASSES bbox_mAP_50": 0.1},
           dict(metric="bbox", classwise=True, class_splits=["BASE_CLASSES", "NOVEL_CLASSES"]),
           every(4000, 160000), "best_model_4000_bbox_mAP=0.25.pt", "mmfewshot coco", ITERATIONS,
           "mmdet"),
    _other("mmfewshot configs/detection/_base_/datasets/fine_tune_based/few_shot_voc.py",
           dict(interval=2000, metric="mAP", class_splits=None),
           {"AP50": 0.5, "mAP": 0.5}, dict(metric="mAP", class_splits=None),
           every(2000, 16000), "best_model_2000_AP50=0.5.pt", "mmfewshot voc", ITERATIONS,
           "mmdet"),
    _other("mmfewshot configs/detection/fsdetview/voc/split1/"
           "fsdetview_r101_c4_8xb4_voc-split1_1shot-fine-tuning.py",
           dict(interval=50, class_splits=BASE_NOVEL),
           {"BASE_CLASSES_SPLIT1: AP50": 0.5, "NOVEL_CLASSES_SPLIT1: mAP": 0.25},
           dict(class_splits=BASE_NOVEL), every(50, 100),
           "best_model_50_BASE_CLASSES_SPLIT1__AP50=0.5.pt", "mmfewshot voc",
           {"max_iters": 100}, "mmdet"),
    _other("mmfewshot configs/classification/_base_/runtime/iter_based_runtime.py",
           dict(by_epoch=False, interval=2000, metric="accuracy"),
           {"accuracy_top-1": 60.5}, dict(metric="accuracy"), every(2000, 60000),
           "best_model_2000_accuracy_top-1=60.5.pt", "mmcls", ITERATIONS, "mmcls"),
    _other("mmediting configs/mattors/gca/baseline_dimaug_r34_4x10_200k_comp1k.py",
           dict(interval=2000, save_image=False, gpu_collect=False),
           {"SAD": 34.5, "MSE": 0.0081, "GRAD": 16.0, "CONN": 31.0}, {}, every(2000, 200000),
           None, "mmediting", ITERATIONS),
    _other("mmediting configs/restorers/edsr/edsr_x2c64b16_g1_300k_div2k.py",
           dict(interval=5000, save_image=True, gpu_collect=True),
           {"PSNR": 30.25, "SSIM": 0.86}, {}, every(5000, 300000), "best_model_5000_PSNR=30.25.pt",
           "mmediting", ITERATIONS),
    _other("mmhuman3d configs/expose/expose.py",
           dict(interval=10, metric=["pa-mpjpe", "pa-pve"],
                body_part=[["body", "right_hand", "left_hand"],
                           ["", "right_hand", "left_hand", "face"]]),
           {"BODY PA-MPJPE": 62.5, "RIGHT_HAND PA-MPJPE": 13.0, "PA-PVE": 55.0},
           dict(metric=["pa-mpjpe", "pa-pve"],
                body_part=[["body", "right_hand", "left_hand"],
                           ["", "right_hand", "left_hand", "face"]]),
           every(10, 100), "best_model_10_BODY_PA-MPJPE=62.5.pt", "mmhuman3d"),
    _other("Monocular-Depth-Estimation-Toolbox configs/_base_/schedules/schedule_24x.py",
           dict(by_epoch=True, interval=6, pre_eval=True),
           DEPTH, {}, every(6, 24), "best_model_6_a1=0.96875.pt", "depth", EPOCHS, "mmseg"),
    _other("Monocular-Depth-Estimation-Toolbox configs/depthformer/"
           "depthformer_swinl_22k_w7_kitti.py",
           dict(by_epoch=False, start=0, interval=1600, pre_eval=True, rule="less",
                save_best="abs_rel", greater_keys=("a1", "a2", "a3"),
                less_keys=("abs_rel", "rmse")),
           DEPTH, {}, every(1600, 38400, first=0), "best_model_0_abs_rel=0.05.pt", "depth",
           {**ITERATIONS, "max_iters": 38400}, "mmseg"),
)  # fmt: skip

# Lines whose first evaluation never came: the run was shorter, and the old hook said nothing.
NEVER_DUE: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any], int], ...] = (
    ("mmocr configs/textdet/dbnet/dbnet_r18_fpnc_100k_iters_synthtext.py",
     dict(interval=999999, metric="hmean-iou"), ITERATIONS, 100000),
    ("mmtracking configs/sot/stark/stark_st2_r50_50e_got10k.py",
     dict(interval=100, start=51), EPOCHS, 50),
)  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split("|"))


# Preset -> direction -> what the project's data sets return, or its training loop logs.
RETURNED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "mmcls": {
        "greater": _names(
            "accuracy | accuracy_top-1 | accuracy_top-5 | accuracy_top-1_thr_0.30 | precision"
            "| recall | f1_score | precision_thr_0.50 | mAP | CP | CR | CF1 | OP | OR | OF1 | top-1"
        ),
        "less": _names("loss | student.loss"),
        "none": _names("support"),
    },
    "mmpretrain": {
        "greater": _names(
            "accuracy/top1 | accuracy/top5 | single-label/precision | single-label/f1-score"
            "| multi-label/mAP | multi-label/CF1 | retrieval/Recall@1 | retrieval/mAP@10 | R@1"
            "| GQA/acc"
        ),
        "less": _names("loss"),
        "none": _names("single-label/support"),
    },
    "mmaction2": {
        "greater": _names(
            "top1_acc | top5_acc | mean_class_accuracy | mean_average_precision"
            "| mmit_mean_average_precision | auc | AR@1 | AR@5 | AR@10 | AR@100 | AR@AN"
            "| mAP@0.5IOU | mAP@0.50 | action_mAP | scene_mAP | Recall@0.5 | acc/top1 | acc/mean1"
        ),
        "less": _names("loss_cls | loss_aux | retrieval/MdR | retrieval/MnR"),
        "none": _names("lr | grad_norm"),
    },
    "mmpose": {
        "greater": _names(
            "AP | AP .5 | AP .75 | AP (M) | AP (L) | AP(E) | AP(H) | AR | AR .5 | AR (M) | PCK"
            "| PCKh | PCKh@0.1 | AUC | Head PCK | Sho PCK | Mean PCK | Ank tPCK | Mean tPCK | tPCK"
            "| Shou AP | Total AP | Skeleton_acc | Contour_acc | pcp | Actor 1 Total PCP"
            "| Average HEAD PCP | RECALL 500mm | AP 25 | AP 150 | mAP | AR 25 | mAR | 3DPCK"
            "| P-3DPCK | 3DAUC | P-3DAUC | Handedness_acc | AP_rgb | AP_depth | AP_mean | acc_pose"
            "| coco/AP | coco/AP .5 | coco/AR (L) | coco-wholebody/AP | posetrack18/Total AP"
            "| jhmdb/Mean PCK | crowdpose/AP(E)"
        ),
        "less": _names(
            "EPE | NME | MPJPE | P-MPJPE | N-MPJPE | MPJPE-PA | MPJPE 500mm | MPJPE_Purchases"
            "| P-MPJPE_Walking | MRRPE | MPJPE_all | MPJPE_single | MPJPE_interacting"
            "| heatmap_loss | reg_loss | mle_loss | paf_loss | regression_heatmap_loss"
            "| loss_pose3d_heatmap | joint_error"
        ),
        "none": _names("Head | Shoulder | Elbow | Wrist | Hip | Knee | Ankle"),
    },
    "mmdet": {
        "greater": _names(
            "bbox_mAP | bbox_mAP_50 | bbox_mAP_s | segm_mAP | segm_mAP_l | AR@100 | AR@1000"
            "| AR_s@1000 | AR_l@1000 | bbox_AP | bbox_AP50 | bbox_APs | bbox_APr | bbox_APc"
            "| bbox_APf | segm_APl | mAP | AP50 | AP75 | AP@50 | recall@100@0.5 | PQ | SQ | RQ"
            "| PQ_th | RQ_th | SQ_st | JI | coco/bbox_mAP | pascal_voc/AP50 | track_segm_mAP"
            "| HOTA | MOTA | IDF1 | Rcll | Prcn | MT | success | norm_precision | precision | eao"
            "| NOVEL_CLASSES bbox_mAP_50 | BASE_CLASSES_SPLIT1: mAP | acc"
        ),
        "less": _names(
            "mMR | FP | FN | IDSw | ML | num_fails | loss_cls | loss_bbox | loss_rpn_cls"
            "| loss_mask | loss_center_heatmap | s0.loss_cls | loss"
        ),
        "none": _names("PT | lr"),
    },
    "mmdet3d": {
        "greater": _names(
            "KITTI/Pedestrian_3D_AP11_easy_strict | KITTI/Car_BEV_AP40_moderate_loose"
            "| KITTI/Overall_2D_AP11_hard | KITTI/Car_3D_moderate_strict"
            "| KITTI/Car_BEV_easy_loose | pts_bbox/KITTI/Car_3D_AP40_easy_strict"
            "| pts_bbox_NuScenes/car_AP_dist_0.5 | pts_bbox_NuScenes/NDS | pts_bbox_NuScenes/mAP"
            "| img_bbox_NuScenes/NDS | pts_bbox_Lyft/car_AP | pts_bbox_Lyft/mAP | Vehicle/L1 mAP"
            "| Overall/L2 mAPH | chair_AP_0.25 | mAP_0.25 | garbagebin_rec_0.50 | mAR_0.50 | miou"
            "| acc | acc_cls | all_ap | all_ap_50% | all_ap_25%"
        ),
        "less": _names(
            "pts_bbox_NuScenes/car_trans_err | pts_bbox_NuScenes/barrier_scale_err"
            "| pts_bbox_NuScenes/car_orient_err | pts_bbox_NuScenes/car_vel_err"
            "| pts_bbox_NuScenes/car_attr_err | pts_bbox_NuScenes/mATE | pts_bbox_NuScenes/mASE"
            "| pts_bbox_NuScenes/mAOE | pts_bbox_NuScenes/mAVE | pts_bbox_NuScenes/mAAE"
            "| task0.loss_heatmap | task0.loss_bbox | loss_dir"
        ),
        "none": _names("wall | floor | grad_norm"),
    },
    "mmseg": {
        "greater": _names(
            "aAcc | mIoU | mAcc | mDice | mFscore | mPrecision | mRecall | IoU.road | Acc.road"
            "| IoU.traffic light | IoU.earth | Dice.vessel | Fscore.vessel | Precision.vessel"
            "| Recall.vessel | averageScoreClasses | averageScoreInstClasses"
            "| averageScoreCategories | averageScoreInstCategories | decode.acc_seg | a1 | a2 | a3"
        ),
        "less": _names(
            "decode.loss_ce | aux.loss_dice | abs_rel | sq_rel | rmse | rmse_log | log_10 | silog"
        ),
        "none": _names("lr"),
    },
}
