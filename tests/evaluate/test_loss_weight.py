"""The loss of the whole set, whatever each batch's mean was taken over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from helpers.private import LossMeter, as_val_loss
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, ValLoss, create_evaluator

Batch = tuple[Tensor, Tensor]

CLASSES = 3
WEIGHT = torch.tensor([1.0, 5.0, 0.25])
IGNORED = torch.tensor([0, 1, 2, 0, 1, -100, -100, -100, -100, 2, 0, 1, -100])
OTHER = torch.tensor([1, 1, 2, 2, 0, 1, 1, 1, 2, 2, 0, 1, 2])


def measure(loss_fn: Any, batches: Any, model: nn.Module | None = None, **options: Any) -> float:
    model = nn.Identity() if model is None else model
    evaluator = create_evaluator(model, loss_fn=loss_fn, device="cpu", **options)
    found = EvalHook(batches, evaluator, model=model).evaluate().metrics["val_loss"]
    assert type(found) is float
    return found


def cut(x: Tensor, y: Tensor, *sizes: int) -> list[Batch]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def mean_of(loss: Any, x: Tensor, y: Tensor) -> float:
    """What torch gives for all at once in float64."""
    options = {"weight": None, "ignore_index": -100, **loss}
    weight = options["weight"]
    options["weight"] = None if weight is None else weight.double()
    target = y.double() if y.is_floating_point() else y
    return F.cross_entropy(x.double(), target, **{**options, "reduction": "mean"}).item()


class Own(nn.CrossEntropyLoss):
    """A subclass that computes the same in a method of its own."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target)


TARGETS: list[tuple[str, tuple[int, ...], Tensor, int]] = [
    ("1-d", (13, CLASSES), IGNORED, -100),
    ("another ignored one", (13, CLASSES), OTHER, 1),
    ("2-d", (13, CLASSES, 4), IGNORED[:, None].expand(13, 4).roll(2, 0), -100),
    ("3-d", (13, CLASSES, 2, 3), IGNORED[:, None, None].repeat(1, 2, 3).roll(1, 1), -100),
    ("bytes", (13, CLASSES), OTHER.to(torch.uint8), 255),
    ("probabilities", (13, CLASSES), torch.rand(13, CLASSES).softmax(1), -100),
    ("2-d probabilities", (13, CLASSES, 4), torch.rand(13, CLASSES, 4).softmax(1), -100),
]
LOSSES: list[dict[str, Any]] = [
    {},
    {"weight": WEIGHT},
    {"label_smoothing": 0.125},
    {"label_smoothing": 0.125, "weight": WEIGHT},
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: " ".join(loss) or "plain")
@pytest.mark.parametrize(("shape", "y", "ignored"), [t[1:] for t in TARGETS],
                         ids=[t[0] for t in TARGETS])  # fmt: skip
def test_cross_entropy_is_that_of_the_whole_set(
    shape: tuple[int, ...], y: Tensor, ignored: int, loss: dict[str, Any], reduction: str
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if y.dtype is torch.uint8:
        loss = {**loss, "label_smoothing": 0.0}  # which torch refuses for bytes
    if not y.is_floating_point():
        loss = {**loss, "ignore_index": ignored}
    right = pytest.approx(mean_of(loss, x, y), rel=3e-7)
    options = {**loss, "reduction": reduction}
    batches = cut(x, y, 1, 4, 4, 4)
    for function in (
        nn.CrossEntropyLoss(**options),
        Own(**options),
        partial(partial(F.cross_entropy, reduction="sum"), **options),
    ):
        assert measure(function, batches) == right, function


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_nll_loss_is_too(reduction: str, weight: Tensor | None) -> None:
    x, y = torch.randn(13, CLASSES).log_softmax(1), IGNORED
    options: dict[str, Any] = {"weight": weight, "reduction": reduction}
    right = pytest.approx(F.nll_loss(x, y, weight=weight).item(), rel=1e-6)
    assert measure(nn.NLLLoss(**options), cut(x, y, 5, 5, 3)) == right
    assert measure(partial(F.nll_loss, **options), cut(x, y, 5, 5, 3)) == right


def test_the_bare_functions_know_their_defaults() -> None:
    x, y = torch.randn(13, CLASSES), IGNORED
    assert measure(F.cross_entropy, cut(x, y, 5, 5, 3)) == pytest.approx(mean_of({}, x, y))
    right = F.nll_loss(x, y).item()
    assert measure(F.nll_loss, cut(x, y, 5, 5, 3)) == pytest.approx(right)


def test_one_target_without_a_batch_and_a_batch_of_ignored_ones() -> None:
    x, y = torch.randn(2, CLASSES), torch.tensor([1, -100])
    right = F.cross_entropy(x[0], y[0]).item()
    for reduction in ("mean", "sum", "none"):
        loss_fn = nn.CrossEntropyLoss(reduction=reduction)
        # The mean of nothing is NaN, and counts nothing.
        assert measure(loss_fn, [(x[0], y[0]), *cut(x, y, 1, 1)]) == pytest.approx(right)


def test_what_a_module_is_set_to_later_counts() -> None:
    x, y = torch.randn(13, CLASSES), OTHER
    loss_fn = nn.CrossEntropyLoss(weight=WEIGHT.half())
    evaluator = create_evaluator(nn.Identity(), loss_fn=loss_fn, device="cpu")
    loss_fn.float()
    loss_fn.ignore_index = 1
    found = evaluator.run(cut(x, y, 5, 5, 3)).metrics["val_loss"]
    assert found == pytest.approx(mean_of({"weight": WEIGHT, "ignore_index": 1}, x, y))


def test_under_autocast_and_compiled_the_weights_are_the_same() -> None:
    model = nn.Linear(4, CLASSES)
    x, y = torch.randn(13, 4), IGNORED
    compiled = torch.compile(nn.CrossEntropyLoss(weight=WEIGHT), backend="eager")
    right = mean_of({"weight": WEIGHT}, model(x).detach(), y)
    assert measure(compiled, cut(x, y, 5, 5, 3), model) == pytest.approx(right)
    loose = pytest.approx(right, rel=0.02)
    for loss_fn in (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"),
                    partial(F.cross_entropy, weight=WEIGHT)):  # fmt: skip
        assert measure(loss_fn, cut(x, y, 5, 5, 3), model, amp_dtype=torch.bfloat16) == loose


class Focal(nn.CrossEntropyLoss):
    """Reduces in a way of its own."""

    def __init__(self) -> None:
        super().__init__(reduction="none")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = super().forward(input, target)
        return ((1 - (-loss).exp()) ** 2 * loss).mean()


class Both(nn.CrossEntropyLoss):
    def forward(self, input: Any, target: Any) -> Any:
        loss = super().forward(input[0], target["class"])
        return ValLoss(loss, weight=7) if target["weighed"] else {"loss_a": loss, "loss_b": loss}


def test_what_reduces_in_a_way_of_its_own_is_taken_at_its_word() -> None:
    x, y = torch.randn(13, CLASSES), OTHER
    loss_fn = Focal()
    right = sum(loss_fn(a, b) * len(b) for a, b in cut(x, y, 5, 5, 3)).item() / 13
    assert measure(loss_fn, cut(x, y, 5, 5, 3)) == pytest.approx(right)
    for weighed in (True, False):
        batches = [((x, x), {"class": y, "weighed": weighed})]
        factor = 1 if weighed else 2
        found = measure(Both(), batches)
        assert found == pytest.approx(factor * F.cross_entropy(x, y).item())


SUMMED: list[Callable[..., Any]] = [
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss,
    nn.PoissonNLLLoss, partial(partial, F.mse_loss),
    partial(partial, F.binary_cross_entropy_with_logits),
]  # fmt: skip


@pytest.mark.parametrize("make", SUMMED)
def test_a_sum_of_any_of_torchs_losses_is_the_mean_of_the_whole_set(make: Any) -> None:
    x, y = torch.randn(13, 2), torch.rand(13, 2)
    right = pytest.approx(make(reduction="mean")(x, y).item(), rel=1e-6)
    for reduction in ("sum", "mean", "none"):
        assert measure(make(reduction=reduction), cut(x, y, 5, 5, 3)) == right


def test_a_summed_divergence_is_the_mean_over_the_samples() -> None:
    x, y = torch.randn(13, 2).log_softmax(1), torch.rand(13, 2)
    right = pytest.approx(F.kl_div(x, y, reduction="batchmean").item(), rel=1e-6)
    for loss_fn in (nn.KLDivLoss(reduction="sum"), partial(F.kl_div, reduction="sum"),
                    nn.KLDivLoss(reduction="batchmean")):  # fmt: skip
        assert measure(loss_fn, cut(x, y, 5, 5, 3)) == right


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, WEIGHT.to("meta")])
def test_no_value_is_read_from_a_device(reduction: str, weight: Tensor | None) -> None:
    # Tensors of the device "meta" have no values: to read one is an error.
    x, y = torch.ones(4, CLASSES, 2, device="meta"), torch.ones(4, 2, device="meta").long()
    meter = LossMeter()
    for loss_fn in (nn.CrossEntropyLoss(weight=weight, reduction=reduction),
                    partial(F.nll_loss, weight=weight, reduction=reduction),
                    nn.MSELoss(reduction=reduction)):  # fmt: skip
        target = x if isinstance(loss_fn, nn.MSELoss) else y
        val_loss = as_val_loss(loss_fn)(x, target)
        assert isinstance(val_loss.loss, Tensor)
        meter.update(val_loss, 4)
        of_target = isinstance(val_loss.weight, Tensor) and val_loss.weight.is_meta
        assert of_target is not isinstance(loss_fn, nn.MSELoss)
    meter = LossMeter()
    for _ in range(2):
        loss = x.mean()
        meter.update(ValLoss({"loss": loss, "loss_a": loss, "total_loss": [x, 0.0]}), 4)


# -- laws ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.integers(-1, CLASSES - 1), min_size=20, max_size=20),
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([None, WEIGHT]),
    st.sampled_from([0.0, 0.25]),
    st.booleans(),
)
def test_law_however_the_set_is_cut_its_loss_is_the_same(
    sizes: list[int],
    classes: list[int],
    reduction: str,
    weight: Tensor | None,
    smoothing: float,
    as_module: bool,
) -> None:
    y = torch.tensor(classes[: sum(sizes)])
    x = torch.randn(len(y), CLASSES, generator=torch.Generator().manual_seed(len(y)))
    options: dict[str, Any] = {
        "weight": weight, "label_smoothing": smoothing, "ignore_index": -1, "reduction": reduction
    }  # fmt: skip
    loss_fn: Any = partial(F.cross_entropy, **options)
    if as_module:
        loss_fn = nn.CrossEntropyLoss(**options)
    right = mean_of(options, x, y)
    assert measure(loss_fn, cut(x, y, *sizes)) == pytest.approx(right, rel=3e-6, nan_ok=True)


def _loss_of_rank(rank: int) -> list[float]:
    x = torch.randn(13, CLASSES, generator=torch.Generator().manual_seed(0))
    y = torch.randn(13, 2, generator=torch.Generator().manual_seed(1))
    losses: list[Any] = [
        nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss(reduction="sum"), F.cross_entropy
    ]  # fmt: skip
    found = [measure(loss_fn, cut(x, IGNORED, 5, 5, 3)) for loss_fn in losses]
    found.append(measure(nn.MSELoss(reduction="sum"), cut(x[:, :2], y, 5, 5, 3)))
    loader = DataLoader([(a, b) for a, b in zip(x, y, strict=True)], batch_size=5,
                        collate_fn=time_first)  # fmt: skip
    return [*found, measure(lambda p, y: p.mean(), loader)]


def test_two_ranks_find_the_same_bits() -> None:
    one, other = on_ranks(2, _loss_of_rank)
    assert one == other == _loss_of_rank(0)


# -- how many samples a mean is of -----------------------------------------------------------------


def time_first(rows: Sequence[Batch]) -> Batch:
    """Put time before the batch: ``(2, batch, ...)``."""
    x, y = (torch.stack(part, dim=0) for part in zip(*rows, strict=True))
    return torch.stack([x, x]), torch.stack([y, y])


ROWS = [(torch.tensor([float(i)]), torch.tensor([0.0])) for i in range(7)]
MEAN = 3.0


def loaders() -> dict[str, Any]:
    rows: Any = ROWS
    batches = BatchSampler(SequentialSampler(range(7)), 3, drop_last=False)

    class Mine(BatchSampler):
        def __iter__(self) -> Any:
            return iter([[0, 1, 2, 3], [4], [5, 6]])

    return {
        "in order": DataLoader(rows, batch_size=4, collate_fn=time_first),
        "drawn": DataLoader(rows, batch_size=2, sampler=RandomSampler(rows), collate_fn=time_first),
        "its own batch sampler": DataLoader(rows, batch_sampler=batches, collate_fn=time_first),
        "lists": DataLoader(rows, batch_sampler=[[0], [1, 2, 3, 4, 5], [6]], collate_fn=time_first),
        "a class": DataLoader(
            rows, batch_sampler=Mine(range(7), 3, drop_last=False), collate_fn=time_first
        ),
        "workers that persist": DataLoader(
            rows, batch_sampler=[[0], [1, 2, 3, 4, 5], [6]], collate_fn=time_first, num_workers=1,
            persistent_workers=True, multiprocessing_context="fork",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", loaders())
@pytest.mark.parametrize("collects", [False, True])
def test_the_loader_says_how_many_samples_a_batch_has_with_one_warning(
    kind: str, collects: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Identity()
    evaluator = create_evaluator(model, loss_fn=lambda p, y: p.mean(), device="cpu")
    compute: Any = {"compute_metrics": lambda results: {"n": len(results)}} if collects else {}
    hook = EvalHook(loaders()[kind], evaluator, model=model, **compute)
    with caplog.at_level(logging.WARNING, "ignite_evalhook"):
        for _ in range(2):
            record = hook.evaluate()
            assert record.metrics["val_loss"] == MEAN
            assert record.samples == 7
    assert [message[:28] for message in caplog.messages] == ["an output has 2 rows, but th"]


@pytest.mark.parametrize("collects", [False, True])
def test_a_loader_without_a_batch_size_does_not_tell(collects: bool) -> None:
    batches: Any = [(torch.ones(3, 1), torch.zeros(3)), (torch.zeros(1, 1), torch.zeros(1))]
    evaluator = create_evaluator(nn.Identity(), loss_fn=lambda p, y: p.mean(), device="cpu")
    compute: Any = {"compute_metrics": lambda results: {"n": len(results)}} if collects else {}
    for sampler in (None, [1, 0]):
        loader = DataLoader(batches, batch_size=None, sampler=sampler)
        record = EvalHook(loader, evaluator, model=nn.Identity(), **compute).evaluate()
        assert (record.metrics["val_loss"], record.samples) == (0.75, 4)


def test_drop_last_and_a_limit_leave_the_right_counts() -> None:
    loader: Any = DataLoader(ROWS, batch_size=3, drop_last=True, collate_fn=time_first)  # type: ignore[arg-type]
    assert measure(lambda p, y: p.mean(), loader) == 2.5
    evaluator = create_evaluator(nn.Identity(), loss_fn=lambda p, y: p.mean(), device="cpu")
    hook = EvalHook(loaders()["lists"], evaluator, model=nn.Identity(), limit_batches=2)
    assert hook.evaluate().metrics["val_loss"] == 2.5


@pytest.mark.parametrize(
    "step",
    [
        lambda engine, batch: (batch[0], ValLoss(batch[0].mean(), weight=1)),
        lambda engine, batch: (batch[0], ValLoss(batch[0].mean((0, 2)))),
        lambda engine, batch: (batch[0].transpose(0, 1), ValLoss(batch[0].mean())),
    ],
)
def test_no_warning_where_nothing_is_in_doubt(step: Any, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = create_evaluator(nn.Identity(), step=step)
    EvalHook(loaders()["in order"], evaluator, model=nn.Identity()).evaluate()
    assert caplog.messages == []


def test_of_a_list_of_batches_torchs_losses_know_what_they_are_the_mean_of() -> None:
    batches = [(torch.zeros(3, 4, 1), torch.ones(3, 4, 1)),
               (torch.zeros(3, 1, 1), torch.full((3, 1, 1), 10**0.5))]  # fmt: skip
    for loss_fn in (nn.MSELoss(), nn.MSELoss(reduction="sum"), F.mse_loss):
        assert measure(loss_fn, batches) == pytest.approx(2.8)


# -- an entry that is the sum of the others --------------------------------------------------------


def total_of(*losses: dict[str, Any], **options: Any) -> float:
    script = iter(losses)
    engine = Engine(lambda e, batch: (batch, ValLoss(next(script), **options)))
    hook = EvalHook([torch.zeros(2)] * len(losses), engine, model=nn.Identity())
    return hook.evaluate().metrics["val_loss"]  # type: ignore[no-any-return]


def t(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=dtype)


@pytest.mark.parametrize(
    ("losses", "total"),
    [
        ([{"loss": 3, "loss_cls": 1, "loss_box": 2}], 3.0),
        ([{"total_loss": t(3.0), "loss_cls": 1, "loss_box": t(2.0), "acc": t(9.0)}], 3.0),
        ([{"loss": t(3.0), "loss_cls": t(0.0, 2.0), "loss_box": [t(1.0), t(1.0)]}], 3.0),
        ([{"loss": t(2.0, 4.0), "loss_cls": t(1.0, 2.0), "loss_box": t(1.0, 2.0)}], 3.0),
        ([{"loss": 3, "loss_a": 3}] * 2, 3.0),
        ([{"loss": -1, "loss_kl": 2, "loss_nll": -3}], -1.0),
        # in every batch
        ([{"loss": 3, "loss_a": 3}, {"loss": 3, "loss_a": 2}], 5.5),
        ([{"loss": 3, "loss_a": 3}, {"loss_a": 2}], 4.0),
        ([{"loss": 3, "loss_a": 1, "loss_b": 2}, {"loss": 1, "loss_a": 1}], 2.0),
        # no total at all
        ([{"loss": 3}], 3.0),
        ([{"loss": 3, "acc": 3}], 3.0),
        ([{"loss": 3.001, "loss_a": 1, "loss_b": 2}], 6.001),
        ([{"loss": 1, "loss_a": 0}], 1.0),
        ([{"loss_all": 3, "loss_a": 1, "loss_b": 2}], 6.0),
        ([{"loss": 6, "total_loss": 6, "loss_a": 2}], 14.0),
        # NaN tells nothing, also as the mean of nothing
        ([{"loss": 3, "loss_a": 3}, {"loss": t(float("nan")), "loss_a": 1}], float("nan")),
        ([{"loss": float("inf"), "loss_a": t(float("inf"))}], float("inf")),
    ],
)
def test_an_entry_that_is_the_sum_of_the_others_is_the_total(
    losses: list[dict[str, Any]], total: float
) -> None:
    assert total_of(*losses) == pytest.approx(total, nan_ok=True)


def test_weights_and_names_of_the_users_own_are_obeyed() -> None:
    losses = {"loss": 3.0, "loss_a": 1.0, "loss_b": 2.0}
    assert total_of(losses, total="loss_a") == 1.0
    assert total_of(losses, weight=4) == 3.0
    assert total_of(losses, losses, weight={"loss": 4, "loss_a": t(2.0)}) == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rounding_of_the_losses_own_type_hides_no_total(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in (2, 7):
        for _ in range(50):
            exact = (torch.randn(number, generator=generator) * 3).unbind()
            parts = [part.to(dtype) for part in exact]
            for total in (sum(parts), sum(exact).to(dtype), sum(reversed(parts))):
                meter = LossMeter()
                others = {f"loss_{i}": part for i, part in enumerate(parts)}
                meter.update(ValLoss({"loss": total, **others}), 2)
                assert meter.compute()["val_loss"] == total.item()
                assert meter.found_total == "loss"


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    loss = {"loss": 3, "loss_a": 1, "loss_b": 2}
    engine = Engine(lambda e, batch: (batch, ValLoss(loss)))
    hook = EvalHook([torch.zeros(2)], engine, model=nn.Identity())
    for _ in range(2):
        assert hook.evaluate().metrics["val_loss"] == 3.0
    ours = [record for record in caplog.records if record.name == "ignite_evalhook"]
    assert [record.getMessage()[:54] for record in ours] == [
        "the loss 'loss' is the sum of the other losses in ever"
    ]


def _total_of_rank(rank: int) -> float:
    losses = [{"loss": 3, "loss_a": 3}, {"loss": 3, "loss_a": 3}, {"loss": 3, "loss_a": 1}]
    engine = Engine(lambda e, batch: (batch, ValLoss(losses[int(batch[0])])))
    data = [torch.full((2,), float(i)) for i in range(3)]
    model = nn.Identity()
    return (
        EvalHook(data, engine, model=model).evaluate().metrics["val_loss"]
        + 100 * EvalHook(data[:2], engine, model=model).evaluate().metrics["val_loss"]
    )


def test_it_has_to_be_so_in_the_batches_of_every_rank() -> None:
    assert on_ranks(2, _total_of_rank) == [pytest.approx(300 + 16 / 3)] * 2
