"""What an answer leaves out is a part of its run, under the name that the answer gives."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from nnterp_mcp.toolset import specs

_NAMED = re.compile(r'read_run part=([a-z.]+)|\bleft_out\([^"]+(?:"[a-z ]+", )?"([a-z.]+)"[,)]')

NAMED = [
    (name, part)
    for name, spec in specs().items()
    for found in _NAMED.findall(inspect.getsource(sys.modules[spec.digest.__module__]))
    for part in filter(None, found)
]


def test_most_tools_name_some() -> None:
    assert len({name for name, _ in NAMED}) >= 10


@pytest.mark.parametrize(("tool", "part"), NAMED)
def test_a_part_that_an_answer_names_is_a_table_of_the_result(tool: str, part: str) -> None:
    kind: Any = specs()[tool].result
    for name in part.rstrip(".").split("."):
        (kind,) = get_args(kind.model_fields[name].annotation)
    assert issubclass(kind, BaseModel)
