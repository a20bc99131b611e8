"""Show what a run has left in its folder: ``python -m ignite_evalhook runs/digits``."""

from __future__ import annotations

import argparse
import sys

from ._decide.history import History
from ._files.best_files import suffix
from ._files.load import find_best
from ._files.storage import open_storage
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
        history = History.parse(text, str(storage.path(file)))
    except (EvalHookError, ImportError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    try:
        best = find_best(args.out_dir, name=args.name)
        said = f"best {best.metric} {best.score:.6g} at epoch {best.epoch}: {best.path}"
    except (EvalHookError, ValueError) as error:
        said = str(error)
    print(f"{_printable(history.table())}\n\n{_printable(said)}")
    return 0


def _printable(text: str) -> str:
    """Return text without what would move the cursor, or what the terminal cannot show."""
    plain = "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return plain.encode(encoding, errors="replace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
