"""What tools cost an agent, and that docs/tokens.md says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import anyio
import pytest

from nnterp_mcp.toolset import specs
from tools import token_budget

pytestmark = pytest.mark.smollm2

MOST = 1000


def test_the_page_is_current() -> None:
    command = [sys.executable, "tools/token_budget.py", "--check"]
    done = subprocess.run(command, check=False, cwd=token_budget.TARGET.parent.parent)

    assert done.returncode == 0, "run: python tools/token_budget.py"


def test_the_page_is_read_as_it_is_written(count_tokens: Callable[[object], int]) -> None:
    definitions = token_budget.count_definitions(count_tokens)
    page = token_budget.write(definitions, dict.fromkeys(specs(), token_budget.Cost(1, 2)))

    assert token_budget.read_definitions(page) == definitions
    longest = max(definitions, key=definitions.__getitem__)
    assert token_budget.read_definitions(page.replace(f"{definitions[longest]:,}", "1")) != definitions


@pytest.mark.slow
def test_default_answers_are_small(count_tokens: Callable[[object], int]) -> None:
    costs = anyio.run(token_budget.count_answers, count_tokens)
    large = {tool: cost for tool, cost in costs.items() if max(cost.text, cost.structured) > MOST}

    assert costs.keys() == specs().keys()
    assert not large
