"""What other people's clients make of the tools, each in an environment of its own that is made for it.

The default suite holds the dialect that all of them take (`test_arguments.py`); this asks them themselves.
"""

from __future__ import annotations

import pytest

from tools.client_schemas import CLIENTS, HOME, judge, specs
from tools.clients.calls import CALLS


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_is_lost_on_the_way(client: str) -> None:
    found = judge(client, HOME)

    assert found.faults == []
    assert (found.converted, found.kept, found.nulls, found.floats) == (len(specs()), *[len(CALLS)] * 3)
