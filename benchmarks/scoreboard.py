"""Run the same small scenarios on every library, and print who is right, and what the others say.

``python benchmarks/scoreboard.py`` prints a table; ``--markdown`` prints the one of the README,
``--save`` keeps all that was said, with versions, in ``benchmarks/results/scoreboard.json``.
Scenarios and truths are in ``scoreboard_peers/scenarios.py``, each library in a file beside it,
used as its documentation recommends.  A library that is not installed says so and fails nothing
(``make scoreboard`` installs all that can be).

Each scenario runs in processes of its own, forked from one that has imported the library; two
processes meet in a gloo group through a file.  What takes longer than the limit hangs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from scoreboard_peers.scenarios import DIRECTIONS, PLAIN, SCENARIOS, Scenario

LIBRARIES = {
    "ours": "ignite-evalhook",
    "mmcv1": "MMCV",
    "mmengine1": "MMEngine",
    "monai1": "MONAI",
    "ignite_alone": "Ignite alone",
    "lightning2": "Lightning",
    "huggingface": "HF Trainer",
    "keras3": "Keras",
    "tnt": "TorchTNT",
    "composer1": "Composer",
}
RESULTS = Path(__file__).parent / "results" / "scoreboard.json"
SAYS = 60  # characters of an error that are kept


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="only these")
    parser.add_argument("--scenario", action="append", choices=[s.key for s in SCENARIOS])
    parser.add_argument("--limit", type=float, default=60.0, help="seconds before it hangs")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")
    parser.add_argument("--stored", action="store_true", help="print the last saved run")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.into is not None:
        run_library(args.library[0], args.scenario, args.limit, args.into, args.verbose)
        return 0
    if args.save and (args.library or args.scenario):
        parser.error("--save keeps whole runs only, without --library and --scenario")
    results = json.loads(RESULTS.read_text("utf-8")) if args.stored else run_all(args)
    if args.save:
        RESULTS.parent.mkdir(exist_ok=True)
        text = json.dumps(results, indent=1, ensure_ascii=False)
        RESULTS.write_text(text + "\n", "utf-8")
    print(markdown(results) if args.markdown else plain(results))
    own = results["libraries"].get("ours", {"rows": {}})["rows"]
    return int(any(row["verdict"] != "right" for row in own.values()))


# ---------------------------------------------------------------------------------------- running


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run each library in a process of its own, one after the other."""
    results: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "truths": {s.key: s.truth for s in SCENARIOS},
        "libraries": {},
    }
    for key in args.library or LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            into = Path(folder) / "rows.json"
            command = [sys.executable, __file__, "--library", key, "--into", str(into)]
            command += ["--limit", str(args.limit)] + ["--verbose"] * args.verbose
            command += [word for s in args.scenario or () for word in ("--scenario", s)]
            subprocess.run(command, check=True)
            results["libraries"][key] = json.loads(into.read_text("utf-8"))
        print(f"{LIBRARIES[key]}: done", file=sys.stderr)
    return results


def run_library(
    key: str, scenarios: list[str] | None, limit: float, into: Path, verbose: bool
) -> None:
    """Run the scenarios on one library, and write what it said into a file."""
    try:
        library = importlib.import_module(f"scoreboard_peers.{key}")
        version = importlib.metadata.version(library.PACKAGE)
    except ImportError as error:
        into.write_text(json.dumps({"missing": str(error), "rows": {}}), "utf-8")
        return
    plain_run = row_of(library, PLAIN, limit, verbose)
    if plain_run["verdict"] != "right":
        raise RuntimeError(f"{key} fails a plain run, its file here is wrong: {plain_run}")
    wanted = [s for s in SCENARIOS if scenarios is None or s.key in scenarios]
    rows = {s.key: row_of(library, s, limit, verbose) for s in wanted}
    document = {"package": library.PACKAGE, "version": version, "rows": rows}
    into.write_text(json.dumps(document), "utf-8")


def row_of(library: ModuleType, scenario: Scenario, limit: float, verbose: bool) -> dict[str, Any]:
    """Run one scenario on one library."""
    reason = getattr(library, "NONE", {}).get(scenario.key)
    if reason is None and not hasattr(library, scenario.needs):
        reason = "has none"
    if reason is not None:
        return {"verdict": "none", "said": reason}
    started = time.monotonic()
    said, printed = on_processes(library, scenario, limit)
    verdict = "right" if all(x[0] == "said" for x in said) else "wrong"
    answers = [x[1] for x in said]
    if verdict == "right" or scenario.key == "raises":
        verdict = {True: "right", False: "wrong", None: "none"}[scenario.judge(answers)]
    if verbose:
        print(f"--- {scenario.key}: {verdict} {answers}\n{printed}", file=sys.stderr)
    row = {"verdict": verdict, "said": answers[0] if len(answers) == 1 else answers}
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def on_processes(
    library: ModuleType, scenario: Scenario, limit: float
) -> tuple[list[tuple[str, Any]], str]:
    """Return how each process ended (``said``, ``raised``, ``died``), with what, and its prints."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "files").mkdir()
        processes = [
            context.Process(target=work, args=(library, scenario, rank, folder))
            for rank in range(scenario.world)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + limit
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        hanging = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
            process.join()
        ends = [
            ("died", "hangs") if hangs else end_of(folder / f"{rank}.json", process.exitcode)
            for rank, (process, hangs) in enumerate(zip(processes, hanging, strict=True))
        ]
        printed = "\n".join(p.read_text(errors="replace") for p in sorted(folder.glob("*.log")))
    return ends, printed


def end_of(file: Path, code: int | None) -> tuple[str, Any]:
    """Return how a process that ended has ended."""
    if file.exists():
        kind, said = json.loads(file.read_text("utf-8"))
        return kind, said
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return "died", f"aborts: {name}"


def work(library: ModuleType, scenario: Scenario, rank: int, folder: Path) -> None:
    """Be one process of a scenario."""
    log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    files = folder / "files"
    os.chdir(files)
    if scenario.world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": scenario.world,
                 "LOCAL_WORLD_SIZE": scenario.world, "GROUP_RANK": 0, "NODE_RANK": 0,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500,
                 "TORCHELASTIC_RUN_ID": "scoreboard"}  # fmt: skip
        # As torchrun sets them; the group itself meets in a file, and opens no port.
        os.environ.update({name: str(value) for name, value in names.items()})
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet",
            rank=rank,
            world_size=scenario.world,
            timeout=timedelta(minutes=30),
        )
    try:
        kind, said = "said", plain_value(scenario.ask(library, rank, files))
    except BaseException as error:  # noqa: BLE001  # how it ends is the result
        traceback.print_exc()
        kind, said = "raised", f"{type(error).__name__}: {first_line(error)}"
    part = folder / f"{rank}.part"
    part.write_text(json.dumps([kind, said]), "utf-8")
    part.rename(folder / f"{rank}.json")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without the clean-up of a group whose other process may be gone


def first_line(error: BaseException) -> str:
    """Return the start of an error's words, with the model's own error if they hold it."""
    words = " ".join(str(error).split())
    cut = words[:SAYS]
    inner = "the model has a bug"
    return f"{cut} … {inner}" if inner in words and inner not in cut else cut


def plain_value(said: Any) -> Any:
    """Return a value as JSON has it, NaN as a word."""
    if isinstance(said, float) and not math.isfinite(said):
        return str(said)
    return json.loads(json.dumps(said))


# ---------------------------------------------------------------------------------------- showing


def brief(key: str, row: dict[str, Any]) -> str:
    """Return the cell of a row: short, and what was said where it is wrong."""
    if row["verdict"] == "none":
        return "–"
    return "✓" if row["verdict"] == "right" else f"✗ {words_of(key, row['said'])}"


def words_of(key: str, said: Any) -> str:
    """Say in a few words what was wrong."""
    if key == "raises":
        lost = "loses the connection" if "RuntimeError" in str(said[0]) else str(said[0])
        return f"rank 0 {lost if isinstance(said[0], str) else 'goes on'}"
    if key == "resume" and isinstance(said, dict):
        return f"keeps {said['fit']}; {said['fit_with_dirpath']} with `dirpath`"
    if isinstance(said, str):
        return "raises" if "Error" in said.partition(":")[0] else said
    if isinstance(said, list) and key == "frozen":
        return "thawed"
    if isinstance(said, list) and key != "start":
        parts = [words_of(key, x) for x in said]
        return parts[0] if len(set(parts)) == 1 else " / ".join(parts)
    if isinstance(said, dict) and key == "names":
        wrong = [n for n, way in said.items() if way not in (DIRECTIONS[n], "asks")]
        return f"{', '.join(wrong)}: {said[wrong[0]]}"
    if isinstance(said, dict) and key == "two":
        return "; ".join(f"{name} {epoch or 'lost'}" for name, epoch in said.items())
    if key == "disk":
        return "no best left"
    if key == "misspelled":
        return f"told after epoch {said['trained']}" if said["raised"] else "never told"
    if said is None:
        return "nothing kept"
    if key in ("zero", "nan", "resume"):
        return f"keeps {said}"
    if key == "start":
        return "at " + ", ".join(map(str, said))
    if key.startswith("stop"):
        return f"stops at {said}" if said != 8 else "never"
    return f"{said:.4g}" if isinstance(said, float) else str(said)


def title_of(key: str, library: dict[str, Any]) -> str:
    """Return the head of a library's column."""
    return f"{LIBRARIES[key]} {library['version']}"


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the README."""
    present = {k: v for k, v in results["libraries"].items() if "missing" not in v}
    heads = [title_of(key, library) for key, library in present.items()]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for s in SCENARIOS:
        cells = [brief(s.key, v["rows"][s.key]) if s.key in v["rows"] else ""
                 for v in present.values()]  # fmt: skip
        if any(cells):
            lines.append(f"| {s.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, *missing(results)])


def missing(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each library that could not be run."""
    away = {k: v for k, v in results["libraries"].items() if "missing" in v}
    return [f"\n{LIBRARIES[key]}: not installed ({v['missing']})." for key, v in away.items()]


def plain(results: dict[str, Any]) -> str:
    """Return a list by scenario, with all that each library said."""
    lines = [f"Python {results['python']}, torch {results['torch']}, {results['machine']}"]
    for s in SCENARIOS:
        rows = {k: v["rows"].get(s.key) for k, v in results["libraries"].items()}
        if any(row is not None for row in rows.values()):
            lines.append(f"\n{s.title}\n  right: {s.truth}")
        for key, row in rows.items():
            if row is not None:
                name = title_of(key, results["libraries"][key])
                lines.append(f"  {name:<24} {row['verdict']:<6} {row['said']}")
    return "\n".join([*lines, *missing(results)])


if __name__ == "__main__":
    sys.exit(main())
