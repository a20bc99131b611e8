"""Rows that need a GPU: the loop on it, throughput in bf16, ``torch.compile``, memory.

Without a CUDA device each row says so.  The functions take a device, so that a test can run them
small on a CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ignite_evalhook import EvalHook, create_evaluator

from . import loops
from .table import Row, row, skipped
from .timing import Effort, interleaved, ratios

WITHOUT = "skipped: no CUDA device"
PINNED = "throughput, ResNet-50, pinned by a loader"
THROUGHPUT, LOOP, MEMORY = "hand-written loop = 1", "raw loop = 1", "hand-written loop = 1"
Data = list[tuple[Tensor, Tensor]]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.path = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if inside != out or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape but for channels and stride."""
        return torch.relu(self.path(x) + self.shortcut(x))


class Whole(nn.Module):
    """Layers one after another, as one forward: ``nn.Sequential`` itself is never compiled."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (batch, classes)."""
        logits: Tensor = self.layers(x)
        return logits


def resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """Return a ResNet-50; another ``width`` makes it smaller."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inside = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(inside, width << stage, 2 if stage > 0 and block == 0 else 1))
            inside = 4 * (width << stage)
    return Whole(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


class Transformer(nn.Module):
    """A small encoder that classifies sequences of tokens."""

    def __init__(self, width: int = 512, layers: int = 6, words: int = 8192) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(
            width, 8, 4 * width, batch_first=True, norm_first=True, dropout=0.0
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (batch, 16) of tokens (batch, length)."""
        logits: Tensor = self.head(self.encoder(self.words(tokens)).mean(dim=1))
        return logits


def images(count: int, batch: int, size: int) -> Data:
    """Return batches on the host, pinned where there is a GPU."""
    return [pinned((torch.randn(batch, 3, size, size), torch.arange(batch) % 10))] * count


def sentences(count: int, batch: int, length: int) -> Data:
    """Return batches of tokens, likewise."""
    return [pinned((torch.randint(0, 8192, (batch, length)), torch.arange(batch) % 16))] * count


def pinned(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Pin a batch, as ``DataLoader(pin_memory=True)`` does."""
    return (batch[0].pin_memory(), batch[1].pin_memory()) if torch.cuda.is_available() else batch


def by_hand(model: nn.Module, data: Iterable[Any], device: str) -> Callable[[], float]:
    """Return a loop that never waits for the device before its end."""
    criterion = nn.CrossEntropyLoss()

    def evaluate() -> float:
        model.eval()
        total, count = torch.zeros((), dtype=torch.float64, device=device), 0
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            for batch in data:
                x, y = (one.to(device, non_blocking=True) for one in batch)
                total += criterion(model(x), y) * len(x)
                count += len(x)
        model.train()
        return total.item() / count

    return evaluate


def throughput(
    name: str, model: nn.Module, data: Data, effort: Effort, device: str, *, compiled: bool = False
) -> list[Row]:
    """Compare the samples a second, and the most memory, with the hand-written loop."""
    model = model.to(device)
    if compiled:
        model.compile()
    evaluator = create_evaluator(model, loss_fn=nn.CrossEntropyLoss(), amp_dtype=torch.bfloat16)
    hook = EvalHook(data, evaluator)
    contenders: dict[str, Callable[[], Any]] = {
        "ours": hook.evaluate, "by hand": by_hand(model, data, device),
    }  # fmt: skip
    times = interleaved(contenders, effort.repetitions)
    samples = len(data) * len(data[0][0])
    note = f"by hand {samples / statistics.median(times['by hand']):.0f} samples/s, bf16"
    found = [
        row(f"throughput, {name}", THROUGHPUT, ratios(times["by hand"], times["ours"]),
            target=0.98, at_least=True, note=note)
    ]  # fmt: skip
    if device == "cuda":
        peaks = {who: [peak(run) for _ in range(effort.repetitions)]
                 for who, run in contenders.items()}  # fmt: skip
        found.append(
            row(f"memory, {name}", MEMORY, ratios(peaks["ours"], peaks["by hand"]), target=1.02,
                note=f"by hand {statistics.median(peaks['by hand']) / 1e6:.0f} MB at the most")
        )  # fmt: skip
    return found


def pinned_by_loader(
    model: nn.Module, count: int, batch: int, size: int, effort: Effort, device: str
) -> Row:
    """Compare the samples a second where a loader pins the batches, as training does."""
    # Shared memory that is not pinned: workers give it away without a copy, and may read it.
    one = (torch.randn(batch, 3, size, size).share_memory_(), torch.arange(batch) % 10)
    loader: DataLoader[Any] = DataLoader(
        [one] * count,  # type: ignore[arg-type]  # a list serves as a dataset
        batch_size=None, num_workers=2, persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    model = model.to(device)
    evaluator = create_evaluator(model, loss_fn=nn.CrossEntropyLoss(), amp_dtype=torch.bfloat16)
    contenders: dict[str, Callable[[], Any]] = {
        "ours": EvalHook(loader, evaluator).evaluate, "by hand": by_hand(model, loader, device),
    }  # fmt: skip
    times = interleaved(contenders, effort.repetitions)
    note = f"by hand {count * batch / statistics.median(times['by hand']):.0f} samples/s, bf16"
    return row(PINNED, THROUGHPUT, ratios(times["by hand"], times["ours"]),
               target=1.0, at_least=True, note=note)  # fmt: skip


def peak(run: Callable[[], Any]) -> float:
    """Return the most device memory that a call takes, in bytes."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return float(torch.cuda.max_memory_allocated())


def cuda(effort: Effort) -> list[Row]:
    """Measure on a GPU, if there is one."""
    if not torch.cuda.is_available():
        return [
            skipped("loop per batch, tiny model, cuda", LOOP, WITHOUT, target=1.45),
            *(
                skipped(f"throughput, {name}", THROUGHPUT, WITHOUT, target=0.98, at_least=True)
                for name in ("ResNet-50", "ResNet-50, compiled", "transformer")
            ),
            skipped(PINNED, THROUGHPUT, WITHOUT, target=1.0, at_least=True),
            skipped("memory, ResNet-50", MEMORY, WITHOUT, target=1.02),
        ]
    count = effort.of(40, least=4)
    pictures, texts = images(count, 128, 224), sentences(count, 128, 128)
    return [
        *loops.tiny(effort, "cuda"),
        *throughput("ResNet-50", resnet50(), pictures, effort, "cuda"),
        *throughput("ResNet-50, compiled", resnet50(), pictures, effort, "cuda", compiled=True),
        *throughput("transformer", Transformer(), texts, effort, "cuda"),
        pinned_by_loader(resnet50(), count, 128, 224, effort, "cuda"),
    ]
