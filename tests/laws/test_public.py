"""What the package promises to its users: names, arguments, and a cheap import."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import pytest
from ignite.engine import Engine, EventEnum
from ignite.handlers import Checkpoint

import ignite_evalhook
from ignite_evalhook import (
    Best,
    EvalEvents,
    EvalHook,
    EvalHookError,
    EvalRecord,
    Rule,
    openmmlab,
)

NAMES = {
    "Best",
    "BestCheckpoint",
    "CheckpointError",
    "DistEvalHook",
    "EvalEvents",
    "EvalHook",
    "EvalHookError",
    "EvalRecord",
    "EvaluationError",
    "History",
    "Rule",
    "RuleInferenceError",
    "Schedule",
    "StateError",
    "ValLoss",
    "add_eval_args",
    "create_evaluator",
    "create_mmcv_evaluator",
    "eval_hook_from_config",
    "find_best",
    "infer_rule",
    "load_best",
    "shard_batches",
    "split_val_loss",
}


# -- names ----------------------------------------------------------------------------------------


def test_the_exported_names_are_sorted_and_complete() -> None:
    assert ignite_evalhook.__all__ == sorted(NAMES)


def test_nothing_else_is_public() -> None:
    found = {
        name
        for name, value in vars(ignite_evalhook).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert found - {"annotations"} == NAMES
    modules = {n for n, v in vars(ignite_evalhook).items() if isinstance(v, ModuleType)}
    assert {name for name in modules if not name.startswith("_")} == {"exceptions", "openmmlab"}


def test_the_names_for_openmmlab_are_sorted_and_complete() -> None:
    assert openmmlab.__all__ == sorted(openmmlab.__all__)
    assert {name for name in vars(openmmlab) if not name.startswith("_")} == {
        *openmmlab.__all__,
        "annotations",
    }


@pytest.mark.parametrize("name", openmmlab.__all__)
def test_everything_for_openmmlab_says_what_it_does(name: str) -> None:
    assert (inspect.getdoc(getattr(openmmlab, name)) or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_everything_public_is_there_and_says_what_it_does(name: str) -> None:
    item = getattr(ignite_evalhook, name)
    assert item.__module__.startswith("ignite_evalhook.")
    lines = (inspect.getdoc(item) or "").splitlines()
    assert lines
    assert lines[0].endswith(".")


METHODS = [name for name in vars(EvalHook) if not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
def test_every_public_method_says_what_it_does(name: str) -> None:
    item = inspect.getattr_static(EvalHook, name)
    if callable(item) or isinstance(item, (property, classmethod)):
        assert (inspect.getdoc(item) or "").strip()


def test_the_version_is_that_of_the_distribution() -> None:
    try:
        installed = version("ignite-evalhook")
    except PackageNotFoundError:
        pytest.skip("the package is on the path, but not installed")
    assert ignite_evalhook.__version__ == installed


def test_any_other_attribute_is_missing_in_the_usual_words() -> None:
    with pytest.raises(AttributeError, match="module 'ignite_evalhook' has no attribute 'zorp'"):
        _ = ignite_evalhook.zorp


# -- arguments ------------------------------------------------------------------------------------

CONTRACT = """
def EvalHook(dataloader, evaluator, *, model=None,
             start=None, interval=1, by_epoch=True, dynamic_intervals=None, at_end=False,
             limit_batches=None, save_best=None, rule=None, preset=None, greater_keys=None,
             less_keys=None, out_dir=None, to_save=None, n_saved=1, checkpoint=None,
             compute_metrics=None, pre_eval=None, derive=None, context=None,
             on_bad_score="raise", preflight=True, shard=True, sync_buffers="broadcast",
             name="val", broadcast_bn_buffer=None, tmpdir=None, gpu_collect=False,
             lazy_results=False, **eval_kwargs): ...
def EvalHook_attach(self, trainer): ...
def EvalHook_detach(self): ...
def EvalHook_reset(self): ...
def EvalHook_evaluate(self, dataloader=None, *, track=None): ...
def EvalHook_on(self, event, handler=None): ...
def EvalHook_state_dict(self): ...
def EvalHook_load_state_dict(self, state): ...
def EvalHook_score_function(self, engine): ...
def EvalHook_score_function_for(self, metric): ...
def EvalHook_early_stopping(self, patience, *, metric=None, rule=None, **ignite_options): ...
def EvalHook_step_on_plateau(self, scheduler, *, metric=None): ...
def EvalHook_keep_last(self, to_save, *, every=1, resume=True): ...
def EvalHook_load_best(self, metric=None, *, to_load=None): ...
def EvalHook_global_step(self, engine, event): ...
def EvalHook_from_args(args, dataloader, evaluator, **more): ...
def find_best(out_dir, metric=None, *, name=None): ...
def load_best(out_dir, to_load, *, metric=None, name=None): ...
def EvalRecord(epoch, iteration, metrics, best_of, is_best, samples, seconds): ...
def Best(metric, score, epoch, iteration, path): ...
def create_evaluator(model, metrics=None, *, loss_fn=None, device=None, non_blocking=True,
                     prepare_batch=None, amp_dtype=None, inference_mode=False, step=None): ...
def ValLoss(loss, *, weight=None, total=None): ...
def split_val_loss(outputs): ...
def BestCheckpoint(to_save, out_dir, *, n_saved=1, alias=None, async_save=False,
                   on_save_error="raise", filename_pattern=None): ...
def Schedule(interval=1, *, start=None, by_epoch=True, dynamic_intervals=None): ...
def Schedule_is_due(self, step): ...
def Schedule_next_due(self, after): ...
def infer_rule(name, greater_keys, less_keys): ...
def Rule_is_better(self, score, best): ...
def History(records=()): ...
def History_append(self, record): ...
def History_table(self): ...
def add_eval_args(parser): ...
"""


def promised() -> dict[str, inspect.Signature]:
    namespace: dict[str, Any] = {}
    exec(CONTRACT, namespace)
    return {name: inspect.signature(f) for name, f in namespace.items() if name[0] != "_"}


def find(name: str) -> Callable[..., Any]:
    if name in NAMES:
        return getattr(ignite_evalhook, name)  # type: ignore[no-any-return]
    owner, _, method = name.partition("_")
    return getattr(getattr(ignite_evalhook, owner), method)  # type: ignore[no-any-return]


Kind = inspect.Parameter


@pytest.mark.parametrize(("name", "wanted"), promised().items())
def test_arguments_are_those_of_the_contract(name: str, wanted: inspect.Signature) -> None:
    found = inspect.signature(find(name))
    for argument, parameter in wanted.parameters.items():
        if parameter.kind is Kind.VAR_KEYWORD:
            assert any(p.kind is Kind.VAR_KEYWORD for p in found.parameters.values())
            continue
        assert argument in found.parameters
        there = found.parameters[argument]
        assert there.kind is parameter.kind
        if parameter.default is not Kind.empty:
            assert there.default == parameter.default
    positional = [p.name for p in wanted.parameters.values() if p.kind is not Kind.KEYWORD_ONLY]
    first = [n for n in positional if wanted.parameters[n].kind is Kind.POSITIONAL_OR_KEYWORD]
    assert list(found.parameters)[: len(first)] == first


@pytest.mark.parametrize("name", promised())
def test_everything_beyond_the_contract_is_a_keyword(name: str) -> None:
    wanted, found = promised()[name], inspect.signature(find(name))
    for argument, parameter in found.parameters.items():
        if argument not in wanted.parameters and parameter.kind is not Kind.VAR_KEYWORD:
            is_optional = parameter.default is not Kind.empty
            assert is_optional or parameter.kind is Kind.VAR_POSITIONAL


@pytest.mark.parametrize("name", [n for n in promised() if not n.startswith(("History", "Eval"))])
def test_no_more_than_two_arguments_go_without_a_name(name: str) -> None:
    values = {"EvalRecord", "Best"}  # these are values with fields
    source = {"infer_rule", "Schedule_is_due", "Schedule_next_due"}  # two and what they look up
    found = inspect.signature(find(name)).parameters.values()
    unnamed = [p.name for p in found if p.kind is Kind.POSITIONAL_OR_KEYWORD and p.name != "self"]
    assert name in values | source or len(unnamed) <= 2


@pytest.mark.parametrize("name", ["evaluator", "history", "best", "bests"])
def test_what_is_read_only_is_a_property(name: str) -> None:
    item = inspect.getattr_static(EvalHook, name)
    assert isinstance(item, property)
    assert item.fset is None


@pytest.mark.parametrize("name", ["greater_keys", "less_keys", "rule_map", "init_value_map"])
def test_what_a_subclass_may_override_is_an_attribute_of_the_class(name: str) -> None:
    assert name in vars(EvalHook)


# -- kinds ----------------------------------------------------------------------------------------


def test_events_are_ignites_kind_of_events() -> None:
    assert [event.name for event in EvalEvents] == ["EVAL_STARTED", "EVAL_COMPLETED", "NEW_BEST"]
    assert issubclass(EvalEvents, EventEnum)


def test_the_checkpoint_and_the_evaluator_are_ignites_too() -> None:
    from torch import nn

    assert issubclass(ignite_evalhook.BestCheckpoint, Checkpoint)
    assert isinstance(ignite_evalhook.create_evaluator(nn.Identity()), Engine)


def test_a_rule_is_one_of_two_words() -> None:
    assert [rule.value for rule in Rule] == ["greater", "less"]
    assert Rule("less") == "less"


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("RuleInferenceError", ValueError),
        ("StateError", RuntimeError),
        ("EvaluationError", RuntimeError),
        ("CheckpointError", OSError),
    ],
)
def test_every_error_is_of_the_package_and_of_the_usual_kind(
    name: str, also: type[Exception]
) -> None:
    assert issubclass(getattr(ignite_evalhook, name), (EvalHookError, also))
    assert {EvalHookError, also} <= set(getattr(ignite_evalhook, name).__mro__)


def test_values_cannot_be_changed() -> None:
    for value in (EvalRecord(1, 2, {}), Best("acc", 0.5, 1, 2)):
        with pytest.raises(AttributeError):
            value.epoch = 3  # type: ignore[misc]


# -- import ---------------------------------------------------------------------------------------

LIST_MODULES = """
import json, sys
import torch, torch.utils.data
import ignite.engine, ignite.handlers, ignite.metrics, ignite.distributed
before = set(sys.modules)
import ignite_evalhook
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_it_brings_nothing_beyond_torch_ignite_and_the_standard_library() -> None:
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIST_MODULES],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = json.loads(shown.stdout)
    assert "ignite_evalhook._hook.hook" in modules
    others = {name.split(".")[0] for name in modules} - {"ignite_evalhook"}
    assert others <= set(sys.stdlib_module_names)
    # What costs tens of milliseconds, and is needed by few.
    assert not others & {"asyncio", "http", "importlib.metadata", "multiprocessing", "sqlite3"}
    assert "ignite_evalhook.__main__" not in modules


def test_importing_it_says_nothing_and_changes_no_random_generator() -> None:
    code = (
        "import random, torch, ignite.handlers, ignite.metrics;"
        "before = random.getstate(), torch.get_rng_state().tolist();"
        "import ignite_evalhook;"
        "assert before == (random.getstate(), torch.get_rng_state().tolist())"
    )
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert (shown.stdout, shown.stderr) == ("", "")
