"""Run every Python block of ``docs/`` and of the README, and compare the output shown.

The blocks of a page run in order, in one namespace and an empty folder.  What else may stand on a
page for this test:

- a comment ``<!-- setup`` … ``-->`` holds code that runs there and is not shown;
- a block marked ``python no-run`` is compiled, not run;
- a block marked ``output`` is what the block before it prints, ``...`` standing for anything;
- in one marked ``output about`` each number with a decimal point stands for any such number.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import ignite_evalhook
from ignite_evalhook import openmmlab

logger = logging.getLogger("ignite_evalhook")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN = ("python", "setup")
SHOWN = ("output", "output about")
KNOWN = (*RUN, "python no-run", *SHOWN)
IGNORED = ("", "text", "console", "sh", "json", "{toctree}", "{eval-rst}", "{rooms}")

# Packages that a page needs which names them, and those that one page imports.
ANYWHERE = ("sklearn", "tensorboard")
IN_CODE = {
    "migrate_huggingface": ("transformers", "accelerate"),
    "migrate_lightning": ("lightning",),
    "migrate_mmengine": ("mmengine", "cv2"),
    "migrate_monai": ("monai",),
}

_BLOCK = re.compile(
    r"^```(?P<info>[^\n`]*)\n(?P<fenced>.*?)^```$|^<!-- setup\s(?P<hidden>.*?)-->$", re.M | re.S
)


class Block(NamedTuple):
    """One block of a page: its kind (``python``, ``setup``, ...), its text, its first line."""

    kind: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(page):
        part = "hidden" if match["info"] is None else "fenced"
        kind = "setup" if match["info"] is None else match["info"].strip()
        found.append(Block(kind, match[part], page.count("\n", 0, match.start(part)) + 1))
    return found


def run_page(page: str, name: str) -> None:
    """Run the blocks of a page, and compare what they print with what the page shows."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks_of(page):
        if block.kind in SHOWN:
            assert printed is not None, f"{name}:{block.line}: no Python block comes before"
            assert matches(block.text, printed, about="about" in block.kind), (
                f"{name}:{block.line} shows\n\n{block.text}\nbut the block before it prints\n\n"
                f"{printed}"
            )
        printed = None
        if block.kind in (*RUN, "python no-run"):
            # Empty lines before it make a traceback name the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, name, "exec")
            if block.kind in RUN:
                printed = output_of(code, namespace)


def output_of(code: Any, namespace: dict[str, Any]) -> str:
    """Run code and return what it prints, on either stream."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), no_root_handlers():
        exec(code, namespace)
    return output.getvalue()


def matches(shown: str, printed: str, *, about: bool = False) -> bool:
    """Compare without trailing blanks; ``...`` stands for anything, also for several lines."""
    lines = [line.rstrip() for line in printed.strip().splitlines()]
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("..."))
    if about:
        pattern = re.sub(r"\d+\\\.\d+", lambda _: r"\d+\.\d+(e-\d+)?", pattern)
    return re.fullmatch(pattern, "\n".join(lines), re.S) is not None


@contextmanager
def no_root_handlers() -> Iterator[None]:
    """Take away pytest's log handlers: the package shows its lines where nobody else does."""
    handlers, logging.root.handlers = logging.root.handlers, []
    try:
        yield
    finally:
        logging.root.handlers = handlers


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Undo what a page may set for the whole process."""
    threads, level = torch.get_num_threads(), logger.level
    torch.set_num_threads(1)  # with tensors this small, more threads only wait for each other
    yield
    torch.set_num_threads(threads)
    logger.setLevel(level)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_python_blocks_of_a_page_run_and_print_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = path.read_text("utf-8")
    for package in (*ANYWHERE, *IN_CODE.get(path.stem, ())):
        if package in page or package not in ANYWHERE:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    run_page(page, str(path.relative_to(ROOT)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_block_of_a_page_escapes(path: Path) -> None:
    assert escaped(path.read_text("utf-8")) == []


def escaped(page: str) -> list[str]:
    """Return what looks like a block but is never run: indented, misspelled, of another kind."""
    kinds = [block.kind for block in blocks_of(page)]
    fences = re.findall(r"^[ >]*(?:`{3,}|~{3,})[ \t]*([\w{][^\n]*)$", page, re.M)
    fences += re.findall(r"<!-- setup", page)
    wanted = ["<!-- setup" if kind == "setup" else kind for kind in kinds if kind]
    lost = [fence for fence in set(fences) if fences.count(fence) > wanted.count(fence)]
    return lost + [kind for kind in kinds if kind not in (*KNOWN, *IGNORED)]


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    (toctree,) = (block for block in blocks_of(index) if block.kind == "{toctree}")
    listed = [line for line in toctree.text.split() if not line.startswith(":")]
    pages = {path.stem for path in PAGES if path.parent.name == "docs"} - {"index"}
    assert pages <= set(listed)


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    documented = re.findall(r"^\.\. auto\w+:: (ignite_evalhook\.[\w.]+)$", reference, re.M)
    names = [f"ignite_evalhook.{name}" for name in ignite_evalhook.__all__]
    names += [
        f"ignite_evalhook.openmmlab.{name}"
        for name in openmmlab.__all__
        if name not in ignite_evalhook.__all__
    ]
    assert sorted(documented) == sorted(names)


# -- that all this can fail ------------------------------------------------------------------

PAGE = """\
<!-- setup
x = 1
-->

```python
x += 1
print("x is", x)
```

```output
{shown}
```

```python no-run
this_name_does_not_exist()
```

```text
1 +
```
"""


@pytest.mark.parametrize("shown", ["x is 2", "x is ...", "... 2", "..."])
def test_a_page_passes_when_it_shows_what_is_printed(shown: str) -> None:
    run_page(PAGE.format(shown=shown), "page.md")


@pytest.mark.parametrize("shown", ["x is 3", "x is", "is 2", "x is 2\nx is 2", "...x is 3"])
def test_a_page_fails_when_it_shows_anything_else(shown: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:11 shows"):
        run_page(PAGE.format(shown=shown), "page.md")


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("loss 0.25 at 3", "loss 1.5 at 3", True),
        ("loss 0.25 at 3", "loss 1.5e-05 at 3", True),
        ("loss 0.25 at 3", "loss nan at 3", False),
        ("loss 0.25 at 3", "loss 1.5 at 4", False),
        ("loss 0.25 at 3", "lost 1.5 at 3", False),
    ],
)
def test_about_lets_only_numbers_with_a_decimal_point_differ(
    shown: str, printed: str, fits: bool
) -> None:
    assert matches(shown, printed, about=True) is fits
    assert matches(shown, printed) is False


@pytest.mark.parametrize(
    ("page", "error", "words"),
    [
        ("```python\nx\n```\n", NameError, "x"),
        ("```python no-run\n1 +\n```\n", SyntaxError, "line 2"),
        ("<!-- setup\n1 / 0\n-->\n", ZeroDivisionError, "by zero"),
        ("```output\n1\n```\n", AssertionError, "no Python block"),
    ],
)
def test_a_page_fails_when_a_block_does(page: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run_page(page, "page.md")


@pytest.mark.parametrize(
    "page",
    [
        "- item\n\n  ```python\n  x\n  ```\n",
        "~~~python\nx\n~~~\n",
        "````python\nx\n````\n",
        "```Python\nx\n```\n",
        "```py\nx\n```\n",
        "```python norun\nx\n```\n",
        "```outptu\nx\n```\n",
        "words <!-- setup x = 1 -->\n",
    ],
)
def test_a_block_that_would_not_run_is_found(page: str) -> None:
    assert escaped(page) != []


def test_the_line_of_a_failing_block_is_that_of_the_page() -> None:
    with pytest.raises(NameError) as failure:
        run_page("# Title\n\n```python\n\nx\n```\n", "page.md")
    assert failure.traceback[-1].lineno == 4  # counted from 0
