"""Print the speed table: ``python -m benchmarks``; README.md says how to read it.

python -m benchmarks                  everything, in about a quarter of an hour
python -m benchmarks --quick          a short look: a tenth of the sizes, three repetitions
python -m benchmarks --only loop      the parts whose name holds "loop"
python -m benchmarks --save           also write benchmarks/results/<date>.json and .md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from . import collect, gpu, idle, loops, memory, ranks, scale, timing, workers
from . import saving as saves
from .peers import quieten, version, versions
from .table import Row, lines, markdown, skipped, to_json
from .timing import FULL, QUICK, Effort

RESULTS = Path(__file__).parent / "results"

Part = Callable[[Effort], list[Row]]


def saving(effort: Effort) -> list[Row]:
    """Measure saving, whose sizes are megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        megabytes = 400 if effort.scale == 1.0 else 40
        return list(saves.rows(effort.repetitions, megabytes, Path(folder)))


#: In the order of the table.
PARTS: dict[str, Part] = {
    "loop": loops.tiny,
    "loop-accuracy": loops.accuracy,
    "loop-5ms": loops.five_ms,
    "modes": loops.modes,
    "one-batch": loops.one_batch,
    "accumulator": scale.accumulator,
    "batches": scale.batches,
    "growth": scale.memory,
    "evaluations": scale.evaluations,
    "idle": idle.idle,
    "collect": collect.collect,
    "ranks": ranks.ranks,
    "memory": memory.memory,
    "workers": workers.workers,
    "saving": saving,
    "cuda": gpu.cuda,
}


def machine() -> dict[str, str]:
    """Return what was measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":", 1)[1].strip() if named else model
    load = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),)
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load before": f"{load[0]:.1f} processes waiting for {os.cpu_count()} cores",
    }


def measured(name: str, part: Part, effort: Effort) -> list[Row]:
    """Run a part.  One that raises becomes a row that says so, and the others still run."""
    print(f"... {name}", file=sys.stderr, flush=True)
    try:
        return part(effort)
    except Exception as error:  # noqa: BLE001  # shown, and the exit code is 1
        traceback.print_exc()
        return [skipped(name, "-", f"FAILED: {type(error).__name__}: {error}")]


def main(argv: list[str] | None = None) -> int:
    """Print the table; return 1 if a part failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Print the speed table."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a tenth of the sizes, three repetitions")
    add("--only", action="append", metavar="NAME", help=f"parts with this in {', '.join(PARTS)}")
    add("--repetitions", type=int, metavar="N", help=f"default: {FULL.repetitions}")
    add("--cpu-time", action="store_true", help="CPU time, for a machine that is busy otherwise")
    add("--save", action="store_true", help="write results/<date>.json and .md")
    args = parser.parse_args(argv)
    chosen = [
        name for name in PARTS if args.only is None or any(only in name for only in args.only)
    ]
    if not chosen:
        parser.error(f"--only must be part of one of {', '.join(PARTS)}")
    effort = QUICK if args.quick else FULL
    if args.repetitions is not None:
        if args.repetitions < 1:
            parser.error("--repetitions must be positive")
        effort = dataclasses.replace(effort, repetitions=args.repetitions)
    torch.set_num_threads(1)
    quieten()
    if args.cpu_time:
        timing.use_cpu_time()
    about = {
        **machine(),
        "clock": "CPU time" if args.cpu_time else "wall clock",
        "sizes": "full" if effort.scale == 1.0 else f"{effort.scale:g} of full: a look, no result",
        "repetitions": f"{effort.repetitions}, interleaved; median [quartiles]",
        "ignite-evalhook": version("ignite-evalhook") or "from its source",
        **versions(),
    }
    begin = time.monotonic()
    rows: list[Row] = []
    print("\n".join(f"{what}: {value}" for what, value in about.items()), "\n", flush=True)
    for name in chosen:
        found = measured(name, PARTS[name], effort)
        print("\n".join(line for one in found for line in lines(one)), flush=True)
        rows += found
        if args.save:
            save(about, rows)  # after each part, so that a stop loses nothing
    about["took"] = f"{time.monotonic() - begin:.0f} s"
    judged = [one.met for one in rows if one.met is not None]
    print(f"\n{sum(judged)} of {len(judged)} targets met; took {about['took']}")
    if args.save:
        save(about, rows)
    return int(any(one.note.startswith("FAILED") for one in rows))


def save(about: dict[str, str], rows: list[Row]) -> None:
    """Write the table as JSON and as Markdown."""
    RESULTS.mkdir(exist_ok=True)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    where = "-cuda" if torch.cuda.is_available() else ""
    content = {"date": date, "about": about, "rows": [to_json(one) for one in rows]}
    path = RESULTS / f"{date}{where}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    facts = "\n".join(f"- {what}: {value}" for what, value in about.items())
    path.with_suffix(".md").write_text(f"# Speed, {date}\n\n{facts}\n\n{markdown(rows)}")
    print(f"written to {path} and .md")


if __name__ == "__main__":
    sys.exit(main())
