"""Train a small Llama of Hugging Face's Transformers, and know its perplexity exactly.

    python examples/huggingface.py               one process
    python examples/huggingface.py --nproc 2     two, started by Ignite

Nothing is downloaded: the model is made from a config, and the text by a small grammar.  Sentences
have different lengths and are padded, so a batch counts by the tokens it predicts, not by its
sentences: ``ValLoss(loss, weight=tokens)``.  The perplexity is that of the whole validation set,
at any batch size and on any number of processes, and of two the smaller one is the better.

The grammar knows how likely its own sentences are.  Its perplexity, which the last line shows as
well, is what a perfect model would have.

Kill it whenever you like: the same command goes on where it was.  Delete its folder,
runs/huggingface, to start anew.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, DistributedSampler

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

try:
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as error:
    raise SystemExit(
        f"This example needs Hugging Face's Transformers ({error}): "
        'pip install "ignite-evalhook[huggingface]"'
    ) from error

TRAIN, VAL = 768, 250  # sentences
BATCH = 16  # sentences to train with at once, of all processes together
LETTERS = "#_ .abcdefghijklmnopqrstuvwxyz"  # the tokens: "#" fills up, "_" begins a sentence
IGNORED = -100  # Transformers' label for what is not to be predicted

ADJECTIVES = ("big", "small", "old", "young", "red", "blue")
NOUNS = ("dog", "cat", "bird", "horse")
VERBS = ("see", "hear", "follow", "like")

Batch = dict[str, Tensor]


def sentence(rng: random.Random) -> tuple[str, float]:
    """Return a sentence of the grammar, and the logarithm of how likely it is."""
    log_likely = 0.0

    def choose(choices: Any) -> Any:
        nonlocal log_likely
        log_likely -= math.log(len(choices))
        return rng.choice(choices)

    def noun_phrase(many: bool) -> str:
        adjectives = [choose(ADJECTIVES) for _ in range(choose((0, 1, 2)))]
        return " ".join(["the", *adjectives, choose(NOUNS) + "s" * many])

    many = choose((False, True))
    subject, verb = noun_phrase(many), choose(VERBS) + "s" * (not many)  # which has to agree
    return f"{subject} {verb} {noun_phrase(choose((False, True)))}.", log_likely


def load_text() -> tuple[Any, Any, float]:
    """Return lists of sentences to train and to validate with, and a perfect model's perplexity."""
    rng = random.Random(0)
    text = [sentence(rng) for _ in range(TRAIN + VAL)]
    train_text, val_text = [s for s, _ in text[:TRAIN]], [s for s, _ in text[TRAIN:]]
    nats = -sum(log_likely for _, log_likely in text[TRAIN:])
    return train_text, val_text, math.exp(nats / sum(map(len, val_text)))


def collate(sentences: list[str]) -> Batch:
    """Return what Transformers' models take: three tensors (sentences, letters of the longest)."""
    rows = [torch.tensor([LETTERS.index(letter) for letter in "_" + s]) for s in sentences]
    ids = pad_sequence(rows, batch_first=True)
    labels = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return {"input_ids": ids, "attention_mask": (labels != IGNORED).long(), "labels": labels}


def make_model() -> nn.Module:
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=LETTERS.index("#"),
        bos_token_id=LETTERS.index("_"),
        eos_token_id=LETTERS.index("."),
        use_cache=False,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-any-return]


def to_device(batch: Batch) -> Batch:
    return {name: value.to(idist.device()) for name, value in batch.items()}


def val_step(engine: Any, batch: Batch) -> tuple[Tensor, Tensor, ValLoss]:
    batch = to_device(batch)
    output = engine.model(**batch)
    tokens = (batch["labels"][:, 1:] != IGNORED).sum()  # the first one is given, not predicted
    return output.logits, batch["labels"], ValLoss(output.loss, weight=tokens)


def predictions(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Turn logits (sentences, letters, tokens) into a row for each token that was predicted."""
    logits, labels = output[0][:, :-1], output[1][:, 1:]
    return logits[labels != IGNORED], labels[labels != IGNORED]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small language model.")
    add = parser.add_argument
    add("--nproc", type=int, metavar="N", help="start so many processes on this machine")
    add("--out-dir", default="runs/huggingface", metavar="DIR", help="default: runs/huggingface")
    add("--max-epochs", type=int, default=5, metavar="N", help="default: 5")
    add("--val-batch", type=int, default=50, metavar="N", help="sentences at once; default: 50")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {}  # one process
        if args.nproc is not None:  # they find each other by a file, so no port is needed
            how["backend"] = "nccl" if torch.cuda.is_available() else "gloo"
            how |= {"nproc_per_node": args.nproc, "init_method": f"file://{folder}/rendezvous"}
        with idist.Parallel(**how) as parallel:  # type: ignore[attr-defined]  # Ignite's star import
            parallel.run(train, args)


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; each does the same, with its part of every batch."""
    rank, world = idist.get_rank(), idist.get_world_size()
    if BATCH % world != 0:
        raise ValueError(f"{BATCH} sentences cannot be shared out evenly to {world} processes")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with a model this small, more threads only wait for each other

    # What a training script with Transformers has.
    train_text, val_text, perfect = load_text()
    sampler: DistributedSampler[str] = DistributedSampler(train_text, world, rank, seed=0)
    train_loader = DataLoader(train_text, BATCH // world, sampler=sampler, collate_fn=collate)
    model = idist.auto_model(make_model())  # in DistributedDataParallel, if need be
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def step(engine: Engine, batch: Batch) -> float:
        model.train()
        loss = model(**to_device(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch)
    )

    # The hook, as on one process: it deals the batches of this loader out to the processes.
    evaluator = create_evaluator(model, {"accuracy": Accuracy(predictions)}, step=val_step)
    hook = EvalHook(
        DataLoader(val_text, args.val_batch, collate_fn=collate),
        evaluator,
        derive={"perplexity": lambda metrics: math.exp(metrics["val_loss"])},
        save_best="perplexity",
        out_dir=args.out_dir,
    )
    hook.attach(trainer)
    hook.early_stopping(patience=3)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)

    best = hook.load_best()
    record = hook.evaluate(track=False)
    if rank == 0:
        print(hook.history.table())
        print(
            f"Best of {len(hook.history)} epochs: epoch {best.epoch}, perplexity "
            f"{record.metrics['perplexity']:.4f} of {record.samples} sentences; a perfect model "
            f"would have {perfect:.4f}."
        )
    return record


if __name__ == "__main__":
    main()
