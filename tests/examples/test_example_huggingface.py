"""What is special to ``examples/huggingface.py``: the perplexity of the whole validation set."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ignite_evalhook import EvalRecord, History, find_best, load_best

pytest.importorskip("transformers")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "huggingface.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_huggingface", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    threads = torch.get_num_threads()
    yield load_script()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(
    example: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EvalRecord]:
    """The folder of a run of one epoch, and the record of its best."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(example, folder)


def run(example: ModuleType, folder: Path, *options: str) -> EvalRecord:
    args = example.parse([f"--out-dir={folder}", "--max-epochs=1", *options])
    record: EvalRecord = example.train(0, args)
    return record


@pytest.fixture(scope="module")
def losses(example: ModuleType, trained: tuple[Path, EvalRecord]) -> list[torch.Tensor]:
    """Return the losses of the best model, for each sentence by itself, in float64."""
    model = example.make_model().double().eval()
    load_best(trained[0], {"model": model})
    found = []
    with torch.no_grad():
        for sentence in example.load_text()[1]:
            ids = example.collate([sentence])["input_ids"]
            logits = model(input_ids=ids).logits
            found.append(F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    return found


@pytest.mark.parametrize("size", [1, 7, 50, 250])
def test_the_perplexity_is_that_of_all_tokens_at_any_batch_size(
    example: ModuleType,
    trained: tuple[Path, EvalRecord],
    losses: list[torch.Tensor],
    size: int,
) -> None:
    record = run(example, trained[0], f"--val-batch={size}")

    wanted = torch.cat(losses).mean().item()
    assert record.metrics["val_loss"] == pytest.approx(wanted, rel=1e-6)
    assert record.metrics["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-6)
    assert record.samples == 250
    # It matters here: a mean over sentences is another number.
    by_sentence = torch.stack([loss.mean() for loss in losses]).mean().item()
    assert abs(by_sentence - wanted) > 1e-3


def test_the_accuracy_counts_each_predicted_token_and_no_filling(
    example: ModuleType, trained: tuple[Path, EvalRecord]
) -> None:
    _, val_text, _ = example.load_text()
    tokens = sum(len(sentence) for sentence in val_text)

    right = trained[1].metrics["accuracy"] * tokens

    assert right == pytest.approx(round(right), abs=1e-6)
    assert 0.5 * tokens < right < tokens


def test_the_best_is_the_least_perplexity_found_by_its_name(
    trained: tuple[Path, EvalRecord],
) -> None:
    folder, record = trained
    history = History.read(folder / "history.jsonl")

    best = find_best(folder)

    assert best.metric == "perplexity"
    assert best.score == min(r.metrics["perplexity"] for r in history)
    assert best.score == record.metrics["perplexity"] == math.exp(record.metrics["val_loss"])


def test_the_grammar_knows_how_likely_its_sentences_are(example: ModuleType) -> None:
    class Scripted:
        """Take the choices that it is given, the last one for ever."""

        def __init__(self, *places: int) -> None:
            self.places = list(places)

        def choice(self, choices: Any) -> Any:
            return choices[self.places.pop(0) if len(self.places) > 1 else self.places[0]]

    shortest, most_likely = example.sentence(Scripted(0))
    longer, less_likely = example.sentence(Scripted(1, 1, 5, 2, 3, 0))

    assert shortest == "the dog sees the dog."
    assert most_likely == pytest.approx(-math.log(2 * 3 * 4 * 4 * 2 * 3 * 4))
    assert longer == "the blue birds like the dog."
    assert less_likely == pytest.approx(most_likely - math.log(6))


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(SystemExit) as stopped:
        load_script()

    assert str(stopped.value).startswith("This example needs Hugging Face's Transformers (")
    assert str(stopped.value).endswith('): pip install "ignite-evalhook[huggingface]"')
    assert "\n" not in str(stopped.value)
