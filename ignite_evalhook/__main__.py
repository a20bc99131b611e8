"""Show what a run has left in its folder: ``python -m ignite_evalhook runs/digits``."""

from __future__ import annotations

import argparse
import sys

from ._best_files import suffix
from ._history import EvalRecord, History, parse_lines
from ._load_best import find_best
from ._storage import open_storage
from .exceptions import EvalHookError

__all__: list[str] = []


def main(arguments: list[str] | None = None) -> int:
    """Print the table of evaluations and where the best is; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ignite_evalhook", description=__doc__)
    parser.add_argument("out_dir", help="folder or URL that a hook wrote to")
    parser.add_argument("--name", default="val", help="name of the hook (default: val)")
    args = parser.parse_args(arguments)
    try:
        storage = open_storage(args.out_dir)
        file = f"history{suffix(args.name)}.jsonl"
        text = storage.read_text(file)
        if text is None:
            print(f"no {file} in {storage.location}", file=sys.stderr)
            return 1
        history = History(EvalRecord.from_dict(row) for row in parse_lines(text))
    except (EvalHookError, ImportError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(history.table())
    try:
        best = find_best(args.out_dir, name=args.name)
    except EvalHookError as error:
        print(f"\n{error}")
    else:
        print(f"\nbest {best.metric} {best.score:.6g} at epoch {best.epoch}: {best.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
