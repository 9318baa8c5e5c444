"""What the guides and examples show is what the server says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from _pytest.mark import ParameterSet

from tools import transcripts

QUICK = {"methods/logit-lens.md"}


def cases(paths: Iterable[Path]) -> list[ParameterSet]:
    """The quick ones by default, all of them with the slow tests."""
    return [
        pytest.param(path, marks=[] if "/".join(path.parts[-2:]) in QUICK else [pytest.mark.slow], id=path.stem)
        for path in paths
    ]


EXAMPLES, GUIDES = cases(transcripts.examples()), cases(transcripts.methods())
ANSWER = (
    'After " is" (position 4): " Paris" (0.773). KL 1.81, rank 41, differs by 2e-05; 13.2 prompts a second\n'
    "run_id: logit_lens-ki556z"
)


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (ANSWER, True),
        (ANSWER.replace("ki556z", "abcdef"), True),
        (ANSWER.replace("0.773", "0.774"), True),
        (ANSWER.replace("13.2 prompts", "1,006 prompts"), True),
        (ANSWER.replace("2e-05", "4e-06"), True),
        (ANSWER.replace("0.773", "0.775"), False),
        (ANSWER.replace("0.773", "-0.773"), False),
        (ANSWER.replace("41", "42"), False),
        (ANSWER.replace("2e-05", "2e-03"), False),
        (ANSWER.replace("Paris", "Rome"), False),
        (ANSWER.replace("logit_lens-", "steer-"), False),
        (ANSWER + "\nMore.", False),
    ],
)
def test_answers_are_the_same_within_rounding(other: str, equal: bool) -> None:
    assert transcripts.same(ANSWER, other) == equal
    assert transcripts.same(other, ANSWER) == equal


def test_the_calls_of_a_page_are_made_again_and_nothing_else_is_changed() -> None:
    page = '# A\n```text\n> a {"x": [1,\n  "}"]}\nold\nlines\n\n> b {}\n```\nwords\n```sh\n> c {}\n```\n'

    async def ask(tool: str, arguments: dict[str, Any]) -> str:
        return f"{tool} said {json.dumps(arguments)}"

    assert anyio.run(transcripts.retell, page, ask) == page.replace(
        "old\nlines\n\n> b {}\n", 'a said {"x": [1, "}"]}\n\n> b {}\nb said {}\n'
    )


def test_every_guide_says_what_misleads_and_where_the_method_comes_from() -> None:
    assert len(transcripts.methods()) >= 9
    for path in transcripts.methods():
        page = path.read_text()
        assert re.search(r"^\*\*Measures\*\*", page, re.MULTILINE), path.name
        for part in ("The control", "When it misleads", "Papers"):
            assert f"\n## {part}\n" in page, f"{path.name} lacks {part}"
        assert re.search(r"^> \w+ \{", page, re.MULTILINE), path.name
        assert re.search(r"\((19|20)\d\d\), \*", page), path.name


def test_every_example_shows_what_it_prints() -> None:
    assert len(transcripts.examples()) >= 5
    for path in transcripts.examples():
        assert "smollm2-135m is loaded" in path.with_suffix(".out").read_text(), path.name


@pytest.mark.smollm2
@pytest.mark.parametrize("path", GUIDES)
def test_a_guide_shows_what_the_server_answers(path: Path, smollm2_folder: Path) -> None:
    retold = anyio.run(partial(transcripts.retell_pages, [path]))
    assert transcripts.same(path.read_text(), retold[path]), f"look, then run: tools/transcripts.py {path.stem}"


@pytest.mark.smollm2
@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_prints_what_stands_beside_it(path: Path, smollm2_folder: Path) -> None:
    said = transcripts.run_example(path)
    kept = path.with_suffix(".out").read_text()

    assert transcripts.same(kept, said), f"look, then run: tools/transcripts.py {path.stem}\n{said}"
