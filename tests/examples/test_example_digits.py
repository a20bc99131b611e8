"""``examples/digits.py``, run as a newcomer runs it."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ignite_evalhook import History, find_best, load_best

pytest.importorskip("sklearn")

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"
EPOCH = 38  # iterations: 1197 images, 32 at a time

Main = Callable[[list[str]], None]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("example_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def main(example: ModuleType) -> Main:
    function: Main = example.main
    return function


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a run of four epochs in a process of its own."""
    folder = tmp_path_factory.mktemp("unbroken")
    process = run(folder, "--max-epochs=4")
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), f"--out-dir={folder}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def table_in(output: str) -> list[list[str]]:
    """Return the cells of the table of evaluations, without the seconds that they took."""
    lines = output[output.index("epoch  iteration") :].split("\n\n")[0].splitlines()
    rows = [line.split() for line in lines]
    column = rows[0].index("seconds")
    return [[*row[:column], *row[column + 1 :]] for row in rows]


def accuracy_in(output: str) -> float:
    found = re.search(r"Test accuracy of that model: ([\d.]+)% of 300 images", output)
    assert found is not None, output
    return float(found[1])


def accuracy_of_best(example: ModuleType) -> float:
    """Return the percentage of test images that the best model of ./runs/digits gets right."""
    model = example.make_model().eval()
    load_best("runs/digits", {"model": model})
    with torch.no_grad():
        right = [model(x).argmax(1) == y for x, y in example.load_data(seed=0)[2]]
    return 100 * torch.cat(right).double().mean().item()


def best_file(folder: Path) -> Path:
    path = find_best(folder).path
    assert isinstance(path, Path)
    return path


def load(path: Path) -> dict[str, dict[str, object]]:
    state: dict[str, dict[str, object]] = torch.load(path, weights_only=True)
    return state


def tensors(state: object, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, dict):
        for name, value in state.items():
            yield from tensors(value, f"{path}.{name}")


def test_default_settings_reach_97_percent_and_stop_early_and_ending_again_says_the_same(
    example: ModuleType,
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    main([])

    first = capsys.readouterr().out
    history = History.read(tmp_path / "runs" / "digits" / "history.jsonl")
    best = find_best(tmp_path / "runs" / "digits")
    assert accuracy_in(first) > 97
    assert 5 < len(history) < 30
    assert best.epoch == len(history) - 5
    assert best.score == min(record.metrics["val_loss"] for record in history)
    assert str(best.path) in first
    assert len(table_in(first)) == 1 + len(history)
    assert accuracy_in(first) == pytest.approx(accuracy_of_best(example), abs=0.005)

    main([])

    again = capsys.readouterr().out
    assert f"Found runs/digits/last.pt: going on after epoch {len(history)}." in again
    assert again[again.index("epoch  iteration") :] == first[first.index("epoch  iteration") :]
    assert History.read(tmp_path / "runs" / "digits" / "history.jsonl") == history


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_killed_in_mid_epoch_and_started_again_ends_as_an_unbroken_one(
    tmp_path: Path, unbroken: tuple[Path, str]
) -> None:
    folder, wanted = unbroken

    killed = run(tmp_path, "--max-epochs=4", "--kill-at-epoch=3")

    assert killed.returncode == -signal.SIGKILL
    middle = 2 * EPOCH + EPOCH // 2
    assert f"Killed on purpose at iteration {middle}, in the middle of epoch 3." in killed.stdout
    assert len(History.read(tmp_path / "history.jsonl")) == 2
    assert load(tmp_path / "last.pt")["trainer"]["iteration"] == 2 * EPOCH

    resumed = run(tmp_path, "--max-epochs=4")

    assert resumed.returncode == 0, resumed.stderr
    assert f"Found {tmp_path}/last.pt: going on after epoch 2." in resumed.stdout
    assert table_in(resumed.stdout) == table_in(wanted)
    assert len(table_in(wanted)) == 1 + 4
    assert accuracy_in(resumed.stdout) == accuracy_in(wanted)
    assert best_file(tmp_path).name == best_file(folder).name
    assert best_file(tmp_path).read_bytes() == best_file(folder).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in folder.iterdir()}
    # The last weights and moments too, since the best could be of an epoch before the kill.
    states, wanted_states = (
        {**dict(tensors(last["model"])), **dict(tensors(last["optimizer"], "optimizer"))}
        for last in (load(tmp_path / "last.pt"), load(folder / "last.pt"))
    )
    assert len(states) > 20
    assert states.keys() == wanted_states.keys()
    assert all(torch.equal(states[name], wanted_states[name]) for name in states)


def test_tensorboard_shows_each_evaluation_and_not_the_test_images(
    unbroken: tuple[Path, str],
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = unbroken
    history = History.read(folder / "history.jsonl")

    events = EventAccumulator(str(folder / "tensorboard")).Reload()

    for metric in ("accuracy", "val_loss"):
        points = events.Scalars(f"validation/{metric}")
        assert [point.step for point in points] == [1, 2, 3, 4]
        wanted = [record.metrics[metric] for record in history]
        assert [point.value for point in points] == pytest.approx(wanted)
    losses = events.Scalars("training/loss")
    assert [point.step for point in losses] == list(range(10, 4 * EPOCH + 1, 10))


def test_no_validate_trains_without_evaluating_and_says_so(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--no-validate", "--max-epochs=1", f"--out-dir={tmp_path}"])

    output = capsys.readouterr().out
    assert "1 epochs without any evaluation (--no-validate)." in output
    assert f"Trained 1 epochs, evaluated none; see {tmp_path}/last.pt." in output
    assert load(tmp_path / "last.pt")["trainer"]["iteration"] == EPOCH
    assert not (tmp_path / "history.jsonl").exists()
    assert not list(tmp_path.glob("best*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-best=acuracy"], "cannot infer whether a greater or a smaller 'acuracy' is"),
        (["--eval-interval=often"], "argument --eval-interval: must be an integer, .* 'often'"),
        (["--eval-interval=0"], "interval must be a positive .*0"),
        (["--max-epochs=0"], "argument --max-epochs: must be a positive integer, got '0'"),
        (["--patience=-1"], "argument --patience: must be a positive integer, got '-1'"),
        (["--epochs=3"], "unrecognized arguments: --epochs=3"),
    ],
)
def test_a_bad_option_is_answered_in_words_before_anything_is_written(
    main: Main,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*options, f"--out-dir={tmp_path / 'run'}"])

    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "run").exists()


def test_a_folder_with_more_epochs_or_another_metric_is_refused_and_left_alone(
    main: Main, unbroken: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = unbroken
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    for option, message in (
        ("--max-epochs=3", "holds a run of 4 epochs already"),
        ("--save-best=accuracy", "followed val_loss"),
    ):
        with pytest.raises(SystemExit):
            main([option, f"--out-dir={folder}"])
        assert message in capsys.readouterr().err

    after = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert after == before
