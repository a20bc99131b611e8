"""Layers that change their weights in eval mode are saved and loaded as training has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import EMAHandler
from torch import Tensor, nn

from ignite_evalhook import BestCheckpoint, EvalHook, create_evaluator, load_best

LOSS = nn.MSELoss()


class LowRank(nn.Linear):
    """Adds its low-rank part to the frozen weight in eval mode, and takes it off in train mode."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(4, 1))
        self.merged = False

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ (self.b @ self.a).T


class MergesIntoChild(nn.Module):
    """Holds the weight that it changes in a child, and assigns it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.randn(4, 1))
        self.merged = False

    def train(self, mode: bool = True) -> MergesIntoChild:
        super().train(mode)
        if self.merged == mode:
            factor = self.scale.exp()
            self.base.weight.data = self.base.weight.data * (1 / factor if mode else factor)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.base(x)
        return nn.functional.linear(x, self.base.weight * self.scale.exp(), self.base.bias)


class Fused(nn.Module):
    """Has one layer in place of two in eval mode, and does not make two of it again by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> Fused:
        super().train(mode)
        if not mode and self.norm is not None:
            scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
            fused = nn.Linear(4, 4)
            fused.weight = nn.Parameter(self.layer.weight * scale[:, None])
            fused.bias = nn.Parameter(
                (self.layer.bias - self.norm.running_mean) * scale + self.norm.bias
            )
            self.layer, self.norm = fused, None
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.norm is None else self.norm(self.layer(x))


LAYERS: list[Callable[[], nn.Module]] = [LowRank, MergesIntoChild]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 4, generator=generator)


def made(layer: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(layer(), nn.ReLU(), layer())


def score(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return LOSS(model(data()[0]), data()[1]).item()


def trained(model: nn.Module, out_dir: Path, epochs: int = 3, **options: Any) -> EvalHook:
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainer = create_supervised_trainer(model, torch.optim.SGD(own, 0.05), LOSS)
    if "checkpoint" not in options:
        options.setdefault("out_dir", out_dir)
    hook = EvalHook(
        [data()], create_evaluator(model, loss_fn=LOSS), save_best="val_loss", **options
    )
    hook.attach(trainer)
    hook.keep_last({"model": model}, resume=False)
    trainer.run([data()], max_epochs=epochs)
    return hook


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("how", ["at once", "in the background", "the best two"])
def test_a_file_loads_into_every_model_and_gives_its_score(
    layer: Callable[[], nn.Module], how: str, tmp_path: Path
) -> None:
    model = made(layer)
    options: dict[str, Any] = {}
    if how == "in the background":
        options["checkpoint"] = BestCheckpoint({"model": model}, tmp_path, async_save=True)
    elif how == "the best two":
        options["n_saved"] = 2
    hook = trained(model, tmp_path, **options)
    best = hook.best
    assert best is not None
    for stands_in_eval in (False, True):
        fresh = made(layer).train(not stands_in_eval)
        load_best(tmp_path, {"model": fresh})
        assert score(fresh) == pytest.approx(best.score, rel=1e-5)
        model.train(not stands_in_eval)
        hook.load_best()
        assert hook.evaluate(track=False).metrics["val_loss"] == pytest.approx(best.score, rel=1e-6)
    files = [best.path, tmp_path / "last.pt"]
    for file in files:
        fresh = made(layer)
        content = torch.load(file, weights_only=True)
        fresh.load_state_dict(content.get("model", content))
        assert score(fresh) == pytest.approx(best.score, rel=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_weights_do_not_move_by_one_bit(
    layer: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = made(layer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hook = EvalHook(
        [data()], create_evaluator(model, loss_fn=LOSS), save_best="val_loss", out_dir=tmp_path
    ).attach(Engine(lambda engine, batch: None))
    for _ in range(20):
        hook.evaluate(track=False)
    hook.evaluate()
    saved = torch.load(hook.best.path, weights_only=True)  # type: ignore[union-attr]
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
        assert torch.equal(saved[name], value), name


def test_a_fused_layer_is_whole_again_when_it_is_saved(tmp_path: Path) -> None:
    model = made(Fused)
    names = list(model.state_dict())
    hook = trained(model, tmp_path)
    assert list(model.state_dict()) == names
    saved = torch.load(hook.best.path, weights_only=True)  # type: ignore[union-attr]
    assert list(saved) == names
    fresh = made(Fused)
    load_best(tmp_path, {"model": fresh})
    assert score(fresh) == pytest.approx(hook.best.score, rel=1e-5)  # type: ignore[union-attr]


def test_a_layer_that_training_keeps_in_eval_mode_is_saved_apart_too(tmp_path: Path) -> None:
    model = made(LowRank)
    model[0].eval()
    before = model[0].weight.clone()
    hook = EvalHook(
        [data()], create_evaluator(model, loss_fn=LOSS), save_best="val_loss", out_dir=tmp_path
    ).attach(Engine(lambda engine, batch: None))
    recorded = hook.evaluate().metrics["val_loss"]
    assert model[0].merged
    assert torch.equal(model[0].weight, before)
    fresh = made(LowRank)
    load_best(tmp_path, {"model": fresh})
    assert score(fresh) == pytest.approx(recorded, rel=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_averaged_weights_are_merged_and_not_those_of_training(
    layer: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = made(layer)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainer = create_supervised_trainer(model, torch.optim.SGD(own, 0.2), LOSS)
    ema = EMAHandler(model, momentum=0.5)
    ema.attach(trainer)
    hook = EvalHook(
        [data()], create_evaluator(model, loss_fn=LOSS), save_best="val_loss",
        out_dir=tmp_path, context=ema,
    ).attach(trainer)  # fmt: skip
    averaged: list[Any] = []

    def check(engine: Engine) -> None:
        if averaged:
            for name, value in ema.ema_model.state_dict().items():
                assert torch.equal(value, averaged[-1][name]), name

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: averaged.append(
        {name: value.clone() for name, value in ema.ema_model.state_dict().items()}
    ))  # fmt: skip
    trainer.add_event_handler(Events.EPOCH_COMPLETED, check)
    trainer.run([data()], max_epochs=3)
    for record, state in zip(hook.history, averaged, strict=True):
        fresh = made(layer)
        fresh.load_state_dict(state)
        assert record.metrics["val_loss"] == pytest.approx(score(fresh), rel=1e-5)
    fresh = made(layer)
    best = load_best(tmp_path, {"model": fresh})
    assert score(fresh) == pytest.approx(best.score, rel=1e-5)


def test_a_context_may_set_flags_beside_layers_that_merge() -> None:
    model = nn.Sequential(LowRank(), nn.Dropout(0.5))
    seen: list[list[bool]] = []

    @contextmanager
    def with_dropout() -> Iterator[None]:
        seen.append([model[0].merged, model[1].training])
        model[1].train()
        yield
        seen.append([model[0].merged, model[1].training])

    def step(engine: Engine, batch: Any) -> Any:
        seen.append([model[0].merged, model[1].training])
        return model(batch)

    EvalHook([data()[0]], create_evaluator(model, step=step), context=with_dropout).evaluate()
    assert seen == [[False, False], [True, True], [False, True]]
    assert [module.training for module in model.modules()] == [True] * 3


@pytest.mark.parametrize("layer", LAYERS)
def test_an_evaluation_that_raises_leaves_weights_apart(layer: Callable[[], nn.Module]) -> None:
    model = made(layer)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fail(engine: Engine, batch: Any) -> Any:
        raise ValueError("no")

    hook = EvalHook([data()], create_evaluator(model, step=fail))
    with pytest.raises(ValueError, match="no"):
        hook.evaluate()
    assert not model[0].merged
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
