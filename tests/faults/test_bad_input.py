"""Every argument of a hook with values that make no sense: refused at once, in words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.private import FOREIGN
from ignite_evalhook import (
    BestCheckpoint,
    EvalHook,
    RuleInferenceError,
    create_evaluator,
)

DATASET = TensorDataset(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
LOADER = DataLoader(DATASET, batch_size=2)
MODEL = nn.Linear(2, 2)


class Dataset(TensorDataset):
    """A dataset of OpenMMLab's kind, which evaluates its predictions."""

    def evaluate(self, results: list[Any], metric: str = "acc", thr: float = 0.5) -> dict[str, Any]:
        return {metric: 0.25, "thr": thr}


EVALUATING = DataLoader(Dataset(*DATASET.tensors), batch_size=2)


class Indexed:
    """Batches by number, the oldest way to be iterable."""

    def __getitem__(self, index: int) -> Any:
        return [DATASET[:2], DATASET[2:]][index]


@contextmanager
def swap() -> Any:
    yield


def compute(results: list[Any]) -> dict[str, float]:
    return {}


def nothing() -> dict[str, float]:
    return {}


def hook(dataloader: Any = LOADER, evaluator: Any = MODEL, **options: Any) -> EvalHook:
    return EvalHook(dataloader, evaluator, **options)


# -- one table ------------------------------------------------------------------------------------

Row = tuple[dict[str, Any], type[Exception], str]
T, V = TypeError, ValueError
BAD: dict[str, list[Row]] = {
    "dataloader": [
        ({"dataloader": 3}, T, "dataloader must be a DataLoader or a re-iterable .*got int"),
        ({"dataloader": iter([1])}, T, "must be re-iterable: a list_iterator is used up by the"),
        ({"dataloader": (b for b in [1])}, T, "a generator is used up by the first evaluation"),
        ({"dataloader": "val"}, T, "dataloader must be one DataLoader .*got 'val'"),
        ({"dataloader": {"a": LOADER}}, T, "several loaders need one hook each"),
        ({"dataloader": DATASET}, T, "got the dataset TensorDataset; wrap it: DataLoader"),
    ],
    "evaluator": [
        ({"evaluator": None}, T, "must be an ignite Engine or a torch.nn.Module .*got NoneType"),
        ({"evaluator": len}, T, "got builtin_function_or_method"),
        ({"dataloader": None}, T, "without a dataloader, evaluator must be a .*got Linear"),
        ({"dataloader": None, "evaluator": Engine(print)}, T, "got Engine"),
        ({"dataloader": None, "evaluator": 3}, T, "got int"),
    ],
    "model": [
        ({"model": 3}, T, "model must be a torch.nn.Module or a mapping .*got 3"),
        ({"model": {}}, T, "model must be a torch.nn.Module or a mapping"),
        ({"model": {"a": 3}}, T, "model must be a torch.nn.Module or a mapping"),
        ({"model": [MODEL]}, T, "model must be a torch.nn.Module or a mapping"),
        ({"evaluator": Engine(print)}, V, "the evaluator does not tell its model.*pass model="),
        ({"dataloader": None, "evaluator": lambda trainer: {}}, V, "pass model="),
    ],
    "start": [
        ({"start": -1}, V, "start must be a non-negative integer, got -1"),
        ({"start": 1.5}, T, "start must be a non-negative integer, got 1.5"),
        ({"start": True}, T, "start must be a non-negative integer, got True"),
        ({"start": 3, "interval": [1, 2]}, V, "start=3 leaves none of the steps in interval"),
        ({"start": 1, "interval": None}, V, "on demand only and takes no start, got start=1"),
    ],
    "interval": [
        ({"interval": 0}, V, "interval must be a positive integer, got 0"),
        ({"interval": -2}, V, "interval must be a positive integer, got -2"),
        ({"interval": True}, T, "interval must be a positive integer, .*got True"),
        ({"interval": "1"}, T, "interval must be a positive integer, .*got '1'"),
        ({"interval": 1.0}, V, "between 0 and 1, got 1.0; pass the integer 1"),
        ({"interval": float("nan")}, V, "got nan"),
        ({"interval": []}, V, "interval must name at least one step"),
        ({"interval": [2, 1]}, V, r"must be strictly increasing, got \[2, 1\]"),
        ({"interval": timedelta(0)}, V, "interval must be a positive time"),
        ({"interval": 0.5, "by_epoch": False}, V, "a fraction of an epoch and needs by_epoch=True"),
    ],
    "by_epoch": [({"by_epoch": 1}, T, "by_epoch must be True or False, got 1")],
    "dynamic_intervals": [
        ({"dynamic_intervals": [1]}, T, "must be a list of pairs"),
        ({"dynamic_intervals": [(1, 0)]}, V, r"dynamic_intervals\[0\]\[1\] must be a positive"),
        ({"dynamic_intervals": [(3, 1), (2, 1)]}, V, "strictly increasing"),
        ({"dynamic_intervals": [(3, 1)], "interval": 0.5}, V, "needs an integer interval"),
    ],
    "at_end": [({"at_end": "yes"}, V, r"at_end must be one of \[True, False\], got 'yes'")],
    "limit_batches": [
        ({"limit_batches": 0}, V, "limit_batches must be a positive integer or None, got 0"),
        ({"limit_batches": 2.0}, V, "limit_batches must be a positive integer or None, got 2.0"),
        ({"limit_batches": True}, V, "limit_batches must be a positive integer or None, got True"),
        (
            {"dataloader": None, "evaluator": compute, "model": MODEL, "limit_batches": 1},
            V,
            "limit_batches= is about the batches of a dataloader, and dataloader is None",
        ),
    ],
    "save_best": [
        ({"save_best": 3}, T, "save_best must be a metric name, a list of names, .*got 3"),
        ({"save_best": ""}, V, "save_best must name at least one metric, got ''"),
        ({"save_best": []}, V, "save_best must name at least one metric"),
        ({"save_best": [["acc"]]}, V, "save_best must name at least one metric"),
        ({"save_best": ["acc", "acc"]}, V, "names a metric twice"),
        ({"save_best": {"acc": 0}}, V, "n_saved must be a positive integer or None .*got 0"),
        ({"save_best": ["auto", "acc"]}, V, "cannot be in a list of names"),
        ({"save_best": "acc"}, V, "save_best='acc' needs out_dir='…'; out_dir=False follows"),
        ({"save_best": "zorp", "out_dir": False}, RuleInferenceError, "smaller 'zorp' is better"),
    ],
    "rule": [
        ({"rule": "max"}, V, "rule must be 'greater' or 'less', got 'max'"),
        ({"rule": 1}, V, "rule must be 'greater' or 'less', got 1"),
        ({"rule": ["less"] * 3}, V, "rule must have one item for each metric of save_best"),
        ({"rule": ["min"]}, V, "rule must be 'greater' or 'less', got 'min'"),
        ({"rule": {"acc": "min"}}, V, "rule must be 'greater' or 'less', got 'min'"),
    ],
    "preset": [
        ({"preset": "mmzorp"}, V, "preset must be one of .*'mmpose'.*got 'mmzorp'"),
        ({"preset": ["mmpose"]}, V, "preset must be one of"),
    ],
    "greater_keys": [
        ({"greater_keys": b"acc"}, T, "greater_keys must be a list or tuple of strings, got b"),
        ({"greater_keys": ""}, V, "greater_keys must hold keys with a letter or a digit, got ''"),
        ({"greater_keys": [3]}, T, "greater_keys must hold only strings, got 3"),
        ({"greater_keys": ["_"]}, V, "greater_keys must hold keys with a letter or a digit"),
    ],
    "less_keys": [
        ({"less_keys": 3}, T, "less_keys must be a list or tuple of strings, got 3"),
        ({"less_keys": [""]}, V, "less_keys must hold keys with a letter or a digit, got ''"),
    ],
    "out_dir": [
        ({"out_dir": 3}, T, "out_dir must be a folder, a URL, a save handler or False, got 3"),
        ({"out_dir": True}, T, "out_dir must be a folder, a URL, .*got True"),
        ({"out_dir": ""}, V, "out_dir must be a folder or a URL, got ''"),
        ({"out_dir": "zorp://bucket"}, V, "zorp"),
        (
            {"out_dir": "runs", "checkpoint": BestCheckpoint({"model": MODEL}, "runs")},
            V,
            "out_dir= and checkpoint= both say where files go; pass one",
        ),
        (
            {"evaluator": Engine(print), "model": {"a": MODEL}, "to_save": {}, "out_dir": "runs"},
            T,
            "to_save must be a mapping name -> object, got {}",
        ),
    ],
    "to_save": [
        ({"to_save": MODEL}, T, "to_save must be a mapping name -> object, got Linear"),
        ({"to_save": {"model": 3}}, T, r"to_save\['model'\] must be an object with a state_"),
        ({"to_save": {3: MODEL}}, T, "to_save must have strings as names, got 3"),
        (
            {"to_save": {"model": MODEL}, "checkpoint": BestCheckpoint({"model": MODEL}, "runs")},
            V,
            "to_save= belongs into the BestCheckpoint; pass one of the two",
        ),
    ],
    "n_saved": [
        ({"n_saved": 0}, V, r"n_saved must be a positive integer or None \(keep all\), got 0"),
        ({"n_saved": 1.0}, V, "n_saved must be a positive integer or None .*got 1.0"),
        ({"n_saved": True}, V, "n_saved must be a positive integer or None .*got True"),
        (
            {"n_saved": 3, "checkpoint": BestCheckpoint({"model": MODEL}, "runs")},
            V,
            "n_saved= belongs into the BestCheckpoint; pass one of the two",
        ),
    ],
    "checkpoint": [
        ({"checkpoint": "runs"}, T, "checkpoint must be a BestCheckpoint, got str"),
        (
            {"checkpoint": BestCheckpoint({"model": MODEL}, "runs")},
            V,
            "checkpoint= needs save_best='…', which says what is best",
        ),
        (
            {"checkpoint": lambda d: Checkpoint({"model": MODEL}, DiskSaver(d))},
            T,
            "got Checkpoint; attach any other Ignite Checkpoint to EvalEvents.NEW_BEST",
        ),
    ],
    "compute_metrics": [
        ({"compute_metrics": 3}, T, "compute_metrics must be a function, got int"),
        (
            {"compute_metrics": lambda results, thr: {}},
            T,
            r"compute_metrics\(results, thr\) cannot be called .*missing .* argument: 'thr'",
        ),
        ({"compute_metrics": nothing}, T, r"compute_metrics\(\) cannot be .*: too many"),
        (
            {"dataloader": None, "evaluator": compute, "model": MODEL, "compute_metrics": compute},
            V,
            "compute_metrics= is about the batches of a dataloader",
        ),
    ],
    "pre_eval": [
        ({"pre_eval": compute}, V, "reduces what compute_metrics gets; pass compute_metrics= too"),
        ({"pre_eval": True, "compute_metrics": compute}, V, "needs a dataset with a method"),
        ({"pre_eval": 3, "compute_metrics": compute}, T, "pre_eval must be a function, got int"),
        (
            {"dataloader": None, "evaluator": compute, "model": MODEL, "pre_eval": compute},
            V,
            "pre_eval= is about the batches of a dataloader",
        ),
    ],
    "derive": [
        ({"derive": len}, T, "derive must map names to functions, got <built-in"),
        ({"derive": {"a": 3}}, T, "derive must map names to functions, got 'a': 3"),
        ({"derive": {3: len}}, T, "derive must map names to functions, got 3: <built-in"),
    ],
    "context": [
        ({"context": 3}, T, "context must be a function, got int"),
        ({"context": swap()}, T, "got the context manager _GeneratorContextManager itself.*lambda"),
        ({"context": torch.no_grad()}, T, "got the context manager no_grad itself"),
    ],
    "on_bad_score": [
        ({"on_bad_score": "ignore"}, V, r"on_bad_score must be one of \['raise', 'skip'\], got 'ig")
    ],
    "preflight": [({"preflight": 1}, V, r"preflight must be one of \[True, False\], got 1")],
    "shard": [({"shard": "no"}, V, r"shard must be one of \[True, False\], got 'no'")],
    "sync_buffers": [
        ({"sync_buffers": "sum"}, V, r"must be one of \['broadcast', 'mean', None\], got 'sum'")
    ],
    "name": [
        ({"name": ""}, V, "name must be a non-empty string, got ''"),
        ({"name": "  "}, V, "name must be a non-empty string, got '  '"),
        ({"name": 3}, V, "name must be a non-empty string, got 3"),
    ],
    "broadcast_bn_buffer": [
        ({"broadcast_bn_buffer": "x"}, V, "broadcast_bn_buffer must be one of .*got 'x'")
    ],
    "tmpdir": [({"tmpdir": 3}, T, "tmpdir must be a folder or None, got 3")],
    "gpu_collect": [({"gpu_collect": 3}, V, "gpu_collect must be one of .*got 3")],
    "lazy_results": [
        (
            {"lazy_results": 1, "compute_metrics": compute},
            V,
            r"lazy_results must be one of \[True, False\], got 1",
        ),
        (
            {"lazy_results": True},
            V,
            "lazy_results= is about what compute_metrics gets; pass compute_metrics= too",
        ),
        (
            {"dataloader": None, "evaluator": compute, "model": MODEL, "lazy_results": True},
            V,
            "lazy_results= is about the batches of a dataloader",
        ),
        (
            {"lazy_result": True, "compute_metrics": compute},
            T,
            r"EvalHook has no argument 'lazy_result'; did you mean lazy_results=\?",
        ),
    ],
    "clock": [
        ({"clock": 3}, T, "clock must be a function, got int"),
        ({"clock": None}, T, "clock must be a function, got None"),
    ],
    "eval_kwargs": [
        ({"zorp": 3}, T, "EvalHook has no argument 'zorp', and there is no compute_metrics"),
        (
            {"dataloader": EVALUATING, "zorp": 3},
            T,
            r"neither EvalHook nor compute_metrics has an argument 'zorp'; compute_metrics takes "
            r"\['metric', 'results', 'thr'\]",
        ),
        (
            {"dataloader": EVALUATING, "results": []},
            T,
            "cannot be called with .*multiple values for argument 'results'",
        ),
    ],
}  # fmt: skip
ROWS = [pytest.param(*row, id=f"{name}-{i}") for name in BAD for i, row in enumerate(BAD[name])]


@pytest.mark.parametrize(("options", "error", "words"), ROWS)
def test_a_bad_value_is_refused_at_construction_and_nothing_is_touched(
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = options.get("checkpoint")
    if callable(checkpoint) and not isinstance(checkpoint, Checkpoint):
        options = {**options, "checkpoint": checkpoint(tmp_path)}
    modes = [module.training for module in MODEL.modules()]
    with pytest.raises(error, match=words):
        hook(**options)
    assert list(tmp_path.iterdir()) == []
    assert [module.training for module in MODEL.modules()] == modes


def test_the_table_has_every_argument() -> None:
    assert set(inspect.signature(EvalHook).parameters) == set(BAD)


def test_no_third_argument_goes_without_its_name() -> None:
    with pytest.raises(TypeError, match="positional arguments"):
        EvalHook(LOADER, MODEL, MODEL)  # type: ignore[misc]


def test_a_hook_can_be_made_after_one_was_refused(tmp_path: Path) -> None:
    checkpoint = BestCheckpoint({"model": MODEL}, tmp_path)
    with pytest.raises(ValueError, match="on_bad_score"):
        hook(save_best="val_loss", checkpoint=checkpoint, on_bad_score="ignore")
    assert hook(save_best="val_loss", checkpoint=checkpoint).best is None


# -- what is fine ---------------------------------------------------------------------------------

GOOD: list[dict[str, Any]] = [
    {},
    {"dataloader": [1, 2]},
    {"dataloader": Indexed()},
    {"dataloader": None, "evaluator": lambda trainer: {}, "model": {"a": MODEL, "b": MODEL}},
    {"evaluator": Engine(print), "to_save": {"net": MODEL}},
    {"save_best": "zorp", "rule": "less", "out_dir": False},
    {"save_best": {"acc": None, "loss": 2}, "out_dir": False},
    {"save_best": ("acc", "loss"), "rule": {"acc": "less"}, "out_dir": False},
    {"save_best": "auto", "out_dir": False},
    {"preset": "mmpose"},
    {"greater_keys": [], "less_keys": ["zorp"], "save_best": "zorp", "out_dir": False},
    {"n_saved": None, "save_best": "acc", "out_dir": False},
    {"context": swap},
    {"context": torch.no_grad},
    {"derive": {}},
    {"pre_eval": False},
    {"lazy_results": False},
    {"sync_buffers": None, "broadcast_bn_buffer": False, "tmpdir": "x", "gpu_collect": True},
    {"interval": timedelta(minutes=5), "clock": lambda: 0.0},
]


@pytest.mark.parametrize(
    "options", GOOD, ids=lambda options: re.sub(" at 0x[0-9a-f]+", "", str(options))
)
def test_what_makes_sense_is_taken(options: dict[str, Any], tmp_path: Path) -> None:
    assert len(hook(**options).history) == 0


def test_batches_by_number_are_evaluated() -> None:
    assert hook(Indexed()).evaluate().samples == 4


def test_the_number_of_files_is_the_checkpoints_own(tmp_path: Path) -> None:
    scores = iter([0.1, 0.2, 0.3, 0.4])
    trainer = Engine(lambda engine, batch: None)
    checkpoint = BestCheckpoint({"model": MODEL}, tmp_path, n_saved=3)
    made = hook(
        None,
        lambda trainer: {"acc": next(scores)},
        model=MODEL,
        save_best="acc",
        checkpoint=checkpoint,
    ).attach(trainer)
    trainer.run([0], max_epochs=4)
    assert [best.epoch for best in made.bests["acc"]] == [4, 3, 2]


# -- names of other libraries ---------------------------------------------------------------------

CONTRACT = {
    "monitor": "save_best=",
    "mode": "rule=",
    "dirpath": "out_dir=",
    "output_dir": "out_dir=",
    "work_dir": "out_dir=",
    "save_top_k": "n_saved=",
    "patience": "hook.early_stopping",
    "metrics": "create_evaluator",
    "loss_fn": "create_evaluator",
    "device": "create_evaluator",
    "eval_steps": "interval=",
    "val_interval": "interval=",
    "key_indicator": "save_best=",
    "test_fn": "create_mmcv_evaluator",
    "compute_on": "compute_metrics= alone: it runs on rank 0",
}


def test_all_foreign_names_have_an_answer() -> None:
    assert set(CONTRACT) <= set(FOREIGN)


def takes_any(results: list[Any], **options: Any) -> dict[str, float]:
    return {"n": len(options)}


@pytest.mark.parametrize("compute_metrics", [None, compute, takes_any])
@pytest.mark.parametrize(("name", "answer"), CONTRACT.items())
def test_a_name_from_another_library_gets_the_answer_its_user_needs(
    name: str, answer: str, compute_metrics: Any
) -> None:
    with pytest.raises(TypeError, match=f"EvalHook has no argument '{name}'; use {answer}"):
        hook(compute_metrics=compute_metrics, **{name: 3})


@pytest.mark.parametrize("name", CONTRACT)
def test_unless_compute_metrics_itself_names_it(name: str) -> None:
    # A function with just this argument, whatever it is called.
    namespace: dict[str, Any] = {}
    exec(f"def own(results, {name}=None): return {{'given': {name}}}", namespace)
    made = hook(compute_metrics=namespace["own"], **{name: 3})
    assert made.evaluate().metrics == {"given": 3.0}


# -- near misses ----------------------------------------------------------------------------------

NEAR = {
    "saved_best": "save_best",
    "savebest": "save_best",
    "save_bests": "save_best",
    "intervals": "interval",
    "eval_interval": "interval",
    "by_epochs": "by_epoch",
    "outdir": "out_dir",
    "rules": "rule",
    "limit_batch": "limit_batches",
    "compute_metric": "compute_metrics",
    "dynamic_interval": "dynamic_intervals",
    "nsaved": "n_saved",
    "preflights": "preflight",
    "on_badscore": "on_bad_score",
    "starts": "start",
}


@pytest.mark.parametrize("compute_metrics", [None, compute, takes_any])
@pytest.mark.parametrize(("name", "meant"), NEAR.items())
def test_a_near_miss_is_refused_also_where_any_keyword_is_taken(
    name: str, meant: str, compute_metrics: Any
) -> None:
    options = {} if compute_metrics is None else {"compute_metrics": compute_metrics}
    with pytest.raises(TypeError, match=f"no argument '{name}'; did you mean {meant}="):
        hook(**options, **{name: 3})


def test_a_near_miss_that_compute_metrics_names_is_its_own() -> None:
    def own(results: list[Any], rules: int = 0, starts: int = 0) -> dict[str, float]:
        return {"sum": rules + starts}

    assert hook(compute_metrics=own, rules=1, starts=2).evaluate().metrics == {"sum": 3.0}


def test_self_is_never_what_was_meant() -> None:
    with pytest.raises(TypeError, match="no argument 'selfs', and there is no compute_metrics"):
        hook(selfs=3)


# -- keywords for compute_metrics -----------------------------------------------------------------


def positional_only(results: list[Any], /, thr: float = 0.5) -> dict[str, float]:
    return {"thr": thr}


def keyword_only(results: list[Any], *, thr: float) -> dict[str, float]:
    return {"thr": thr}


class Computer:
    def __call__(self, results: list[Any], thr: float = 0.5) -> dict[str, float]:
        return {"thr": thr}

    def method(self, results: list[Any], thr: float = 0.5) -> dict[str, float]:
        return {"thr": thr}


def with_any(results: list[Any], **options: Any) -> Mapping[str, float]:
    return options


FUNCTIONS: list[Callable[..., Mapping[str, float]]] = [
    positional_only,
    keyword_only,
    Computer(),
    Computer().method,
    with_any,
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_keywords_reach_functions_of_every_make(function: Callable[..., Any]) -> None:
    assert hook(compute_metrics=function, thr=0.75).evaluate().metrics == {"thr": 0.75}


@pytest.mark.parametrize("function", FUNCTIONS[:-1])
def test_an_unknown_keyword_is_refused_by_functions_of_every_make(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(TypeError, match=r"neither EvalHook nor compute_metrics has .*'threshold'"):
        hook(compute_metrics=function, threshold=0.75)


def test_a_function_without_a_signature_is_believed() -> None:
    class Compiled(Computer):
        __signature__ = "none"  # as some compiled functions have none

    assert hook(compute_metrics=Compiled(), thr=0.75).evaluate().metrics == {"thr": 0.75}


# -- a config of OpenMMLab ------------------------------------------------------------------------


def test_a_config_works_as_it_stands(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    evaluator = create_evaluator(MODEL)
    made = EvalHook(
        EVALUATING,
        evaluator,
        out_dir=tmp_path,
        **dict(interval=1, metric="mIoU", save_best="mIoU"),  # type: ignore[arg-type]  # noqa: C408
    ).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert [record.metrics for record in made.history] == [{"mIoU": 0.25, "thr": 0.5}] * 2
    assert made.best is not None
    assert made.best.metric == "mIoU"
    assert made.best.epoch == 1


def test_a_config_with_a_misspelled_keyword_does_not() -> None:
    with pytest.raises(TypeError, match=r"neither EvalHook nor compute_metrics has .*'metirc'"):
        hook(EVALUATING, **dict(interval=1, metirc="mIoU"))  # noqa: C408


# -- later calls ----------------------------------------------------------------------------------

CALLS: list[tuple[Callable[[EvalHook], Any], type[Exception], str]] = [
    (lambda h: h.attach("trainer"), T, "trainer must be an ignite Engine, got str"),
    (lambda h: h.attach(h.evaluator), V, "the trainer cannot be the evaluator"),
    (lambda h: h.evaluate(3), T, "dataloader must be a DataLoader or a re-iterable"),
    (lambda h: h.evaluate(iter([1])), T, "dataloader must be re-iterable"),
    (lambda h: h.evaluate(track=True), V, r"call hook.attach\(trainer\) first"),
    (lambda h: h.on("eval_completed", print), V, "event must be one of"),
    (lambda h: h.early_stopping(0, metric="loss"), V, "patience must be a positive integer, got 0"),
    (lambda h: h.early_stopping(3), V, "early_stopping needs metric='…'"),
    (lambda h: h.early_stopping(3, metric="zorp"), RuleInferenceError, "'zorp' is better"),
    (lambda h: h.early_stopping(3, metric="acc", patient=1), T, "has no option"),
    (lambda h: h.step_on_plateau(3, metric="acc"), T, "scheduler"),
    (lambda h: h.step_on_plateau(3), V, "step_on_plateau needs metric='…'"),
    (lambda h: h.keep_last({"model": MODEL}), V, r"call hook.attach\(trainer\) first"),
    (lambda h: h.load_state_dict(3), T, "state must be a mapping, got int"),
    (lambda h: h.score_function_for("zorp"), RuleInferenceError, "'zorp' is better"),
    (lambda h: h.score_function(), V, "no metric is followed: save_best names no metric"),
]


@pytest.mark.parametrize(("call", "error", "words"), CALLS)
def test_bad_arguments_of_methods_are_refused_in_words(
    call: Callable[[EvalHook], Any], error: type[Exception], words: str
) -> None:
    made = hook()
    before = made.state_dict()
    with pytest.raises(error, match=words):
        call(made)
    assert made.state_dict() == before
