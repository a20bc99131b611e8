"""The scenarios of the scoreboard: what is asked of each library, and the truth.

Each truth is computed here, by other means than any of the libraries.  ``ask(library, rank,
folder)`` runs in a process of its own for each rank and returns what the library said; ``judge``
gets what each rank said, or how it ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from scoreboard_peers.parts import Broken, Run, Task, epoch_in, epochs_in, limit_file_size

Said = Any
NAN = math.nan
GREATER = {"acc": "greater"}
VALUES = [0.0, 1.0, 2.0, 3.0, 4.0]
SCORES, LABELS = [0.1, 0.4, 0.35, 0.8, 0.7], [0, 0, 1, 1, 0]
MEAN = math.fsum(VALUES) / len(VALUES)
PAIRS = [(a, b) for a, la in zip(SCORES, LABELS, strict=True) if la
         for b, lb in zip(SCORES, LABELS, strict=True) if not lb]  # fmt: skip
AUC = sum((a > b) + 0.5 * (a == b) for a, b in PAIRS) / len(PAIRS)
DIRECTIONS = {"heatmap_loss": "less", "MAPE": "less", "wer": "less", "perplexity": "less",
              "f1": "greater"}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """One row of the scoreboard.

    Attributes:
        key: Its name in the results.
        title: Its name in the table.
        truth: What is right, in words.
        ask: Runs it: ``ask(library, rank, folder)``.
        judge: Whether what each rank said is right; ``None`` if it shows that there is none.
        needs: The function that a library must offer.
        world: How many processes.
    """

    key: str
    title: str
    truth: str
    ask: Callable[[ModuleType, int, Path], Said]
    judge: Callable[[list[Said]], bool | None]
    needs: str = "fit"
    world: int = 1


def acc(*scores: float) -> list[dict[str, float]]:
    return [{"acc": score} for score in scores]


def fit(library: ModuleType, run: Run) -> dict[str, int | None]:
    """Train, and return the epoch in the file of each best."""
    return {name: epoch_in(path) for name, path in library.fit(run).items()}


def best_epoch(library: ModuleType, folder: Path, *scores: float) -> int | None:
    return fit(library, Run(folder, acc(*scores)))["acc"]


def best_after(*scores: float) -> Callable[[ModuleType, int, Path], Said]:
    return lambda library, rank, folder: best_epoch(library, folder, *scores)


def disk_full(library: ModuleType, rank: int, folder: Path) -> Said:
    said = ""
    try:
        library.fit(Run(folder, acc(0.5, 0.9), full_at=2))
    except BaseException as error:  # noqa: BLE001  # it may end training; the files matter
        said = type(error).__name__
    finally:
        limit_file_size(None)
    return {"loads": sorted(set(epochs_in(folder).values())), "raised": said}


def broken_off(train: Callable[[Run], Said], run: Run, after: int) -> None:
    """Train until it is broken off."""
    try:
        train(replace(run, break_after=after, model=type(run.model)()))
    except Exception as error:
        if not _caused_by(error, Broken):
            raise
    else:
        raise RuntimeError("the run was not broken off")


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind) or kind.__name__ in str(error) or "broken off" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def resumed(library: ModuleType, rank: int, folder: Path) -> Said:
    """Resume; where a library's default forgets and an option does not, say both."""
    said = {}
    for name in ("fit", "fit_with_dirpath"):
        if hasattr(library, name):
            run = Run(folder / name, acc(0.5, 0.9, 0.6), last=True)
            run.folder.mkdir()
            broken_off(getattr(library, name), run, after=2)
            again = replace(run, resume=True, model=type(run.model)())
            said[name] = epoch_in(getattr(library, name)(again)["acc"])
    return said["fit"] if len(said) == 1 else said


def two_metrics(library: ModuleType, rank: int, folder: Path) -> Said:
    script = [{"acc": 0.5, "miou": 60.0}, {"acc": 0.9, "miou": 40.0}, {"acc": 0.6, "miou": 50.0}]
    return fit(library, Run(folder, script, rules={"acc": "greater", "miou": "greater"}))


def directions(library: ModuleType, rank: int, folder: Path) -> Said:
    """Let 0.2, 0.1, 0.3 be said: the file of epoch 2 is the least, of epoch 3 the greatest."""
    said = {}
    for name in DIRECTIONS:
        run = Run(folder / name, [{name: 0.2}, {name: 0.1}, {name: 0.3}], rules={name: None})
        run.folder.mkdir()
        try:
            epoch = fit(library, run)[name]
        except Exception as error:  # noqa: BLE001  # asking is an answer
            said[name] = "asks"
            print(f"{name}: {type(error).__name__}: {error}")
        else:
            said[name] = {2: "less", 3: "greater"}.get(epoch or 0, f"epoch {epoch}")
    return said


def misspelled(library: ModuleType, rank: int, folder: Path) -> Said:
    run = Run(folder, [{"accuracy": 0.5}, {"accuracy": 0.6}], rules={"acuracy": "greater"})
    raised = ""
    try:
        library.fit(run)
    except Exception as error:  # noqa: BLE001  # when it comes is the question
        raised = type(error).__name__
    return {"trained": run.trained, "raised": raised}


def stopped(*scores: float, patience: int = 2) -> Callable[[ModuleType, int, Path], Said]:
    def ask(library: ModuleType, rank: int, folder: Path) -> Said:
        run = Run(folder, acc(*scores), patience=patience)
        library.fit(run)
        return run.trained

    return ask


def stopped_on_two(library: ModuleType, rank: int, folder: Path) -> Said:
    """Let the score rise on rank 0 and fall on rank 1, as scores of shards may do."""
    scores = [0.1 * (epoch + 1) if rank == 0 else 0.9 - 0.1 * epoch for epoch in range(8)]
    run = Run(folder, acc(*scores), patience=2, world=2)
    library.fit(run)
    return run.trained


def stopped_across_restart(library: ModuleType, rank: int, folder: Path) -> Said:
    """Break off with two evaluations without a better one, resume with a patience of five."""
    scores = [0.9, 0.5, 0.5, *(0.6 - 0.01 * k for k in range(9))]
    run = Run(folder, acc(*scores), patience=3, last=True)
    broken_off(library.fit, run, after=3)
    again = replace(run, resume=True, patience=5, model=type(run.model)())
    library.fit(again)
    return again.trained


def loss(task: Task) -> Callable[[ModuleType, int, Path], Said]:
    return lambda library, rank, folder: number(library.losses(replace(task, rank=rank)))


def number(said: Any) -> float | None:
    return None if said is None else float(said)


def auc(library: ModuleType, rank: int, folder: Path) -> Said:
    return number(library.auc(Task(SCORES, LABELS, 1, rank, world=2, shards=True)))


def near(truth: float) -> Callable[[list[Said]], bool]:
    """Rank 0 has the number, and another rank has it too or is told none."""

    def judge(said: list[Said]) -> bool:
        told = [x for x in said if x is not None]
        return (
            said[0] is not None
            and all(isinstance(x, float) for x in told)
            and all(abs(x - truth) < 1e-6 for x in told)
        )

    return judge


def equals(truth: Any) -> Callable[[list[Said]], bool]:
    return lambda said: all(x == truth for x in said)


def same_weights(library: ModuleType, rank: int, folder: Path) -> Said:
    with_it, without, again = (library.weights(evaluate) for evaluate in (True, False, False))
    if without != again:
        raise RuntimeError("two trainings without evaluation differ: nothing can be said")
    return "same bits" if with_it == without else "other weights"


def _raised_everywhere(said: list[Said]) -> bool:
    return all(isinstance(x, str) and "the model has a bug" in x for x in said)


def _no_wrong_direction(said: list[Said]) -> bool | None:
    """Asking is as good as knowing; who asks for each name has no inference."""
    answers = said[0]
    if set(answers.values()) == {"asks"}:
        return None
    return all(answers[name] in (way, "asks") for name, way in DIRECTIONS.items())


PLAIN = Scenario("plain", "0.5, then 0.9", "epoch 2 is kept", best_after(0.5, 0.9), equals(2))
SCENARIOS = (
    Scenario("zero", "first score 0.0, then −0.5", "epoch 1 is kept",
             best_after(0.0, -0.5), equals(1)),
    Scenario("nan", "first score NaN, then numbers", "epoch 3, the greatest number, is kept",
             best_after(NAN, 0.5, 0.9), equals(3)),
    Scenario("disk", "disk full while a better best is written", "the old best loads",
             disk_full, lambda said: 1 in said[0]["loads"]),
    Scenario("resume", "broken off and resumed, then a worse epoch", "epoch 2 stays the best",
             resumed, equals(2)),
    Scenario("two", "two metrics, each its own best", "epochs 2 and 1",
             two_metrics, equals({"acc": 2, "miou": 1})),
    Scenario("names", "direction from the name: "
             "`heatmap_loss`, `MAPE`, `wer`, `perplexity`, `f1`", "less, four times, and greater",
             directions, _no_wrong_direction),
    Scenario("loss", "mean loss of 5 samples, batches of 2", f"{MEAN}",
             loss(Task(VALUES)), near(MEAN), needs="losses"),
    Scenario("loss2", "the same on 2 processes", f"{MEAN} on both",
             loss(Task(VALUES, world=2)), near(MEAN), needs="losses", world=2),
    Scenario("list", "a list of losses: 1, 2", "3, the sum, as in training",
             lambda library, rank, folder: float(library.list_of_losses([1.0, 2.0])),
             near(3.0), needs="list_of_losses"),
    Scenario("auc", "ROC-AUC, 3 and 2 samples on 2 processes", f"{AUC:.4f} on both",
             auc, near(AUC), needs="auc", world=2),
    Scenario("empty", "one of 2 processes has no batch", "the mean loss, 3.0, on both",
             loss(Task([3.0], world=2, shards=True)), near(3.0), needs="losses", world=2),
    Scenario("raises", "the model raises on one of 2 processes", "its error is raised on both",
             loss(Task(VALUES, world=2, broken=1)), _raised_everywhere, needs="losses", world=2),
    Scenario("stop_nan", "early stopping: NaN now and then", "stops after epoch 3, or at the NaN",
             stopped(0.5, NAN, 0.4, NAN, 0.3, NAN, 0.2, NAN), lambda said: said[0] <= 3),
    Scenario("stop_constant", "early stopping: a constant metric", "stops after epoch 3",
             stopped(*[0.5] * 8), equals(3)),
    Scenario("stop_ranks", "early stopping: scores differ on 2 processes",
             "both stop at one epoch", stopped_on_two,
             lambda said: isinstance(said[0], int) and said[0] == said[1], world=2),
    Scenario("stop_restart", "early stopping: restart with more patience",
             "counts on, stops after epoch 6", stopped_across_restart, equals(6)),
    Scenario("frozen", "a frozen BatchNorm after an evaluation", "still frozen",
             lambda library, rank, folder: library.frozen(),
             lambda said: None if said[0][0] else said == [[False, False]],
             needs="frozen"),
    Scenario("weights", "weights with and without evaluation", "bit-identical",
             same_weights, equals("same bits"), needs="weights"),
    Scenario("misspelled", "a misspelled metric", "an error before the first training step",
             misspelled, lambda said: said[0]["trained"] == 0 and said[0]["raised"] != ""),
    Scenario("start", "start=0, interval=2", "evaluates at 0, 2, 4",
             lambda library, rank, folder: library.schedule(), equals([0, 2, 4]),
             needs="schedule"),
)  # fmt: skip
