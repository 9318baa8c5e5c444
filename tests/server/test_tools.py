"""What `tools/list` says, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import jsonschema
import pytest
from mcp_types import Tool

from nnterp_mcp.toolset import specs
from tests.serving import Caller, stdio

LARGEST_DESCRIPTION = 2048
"""Characters of a description, and of the instructions."""

LARGEST_DEFINITION = 1260
"""Tokens of a tool: a little above the largest now. What binds is the limit of all together."""

LARGEST_LIST = 11_000
"""Tokens of all that a model is shown of the tools."""


@pytest.fixture(scope="module")
def client() -> Generator[Caller]:
    with stdio() as caller:
        yield caller


@pytest.fixture(scope="module")
def tools(client: Caller) -> dict[str, Tool]:
    return {tool.name: tool for tool in client.tools()}


def listed(tool: Tool) -> dict[str, Any]:
    """A definition as a client gets it."""
    return tool.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"meta"})


def shown(tool: Tool) -> dict[str, Any]:
    """The part of a definition that a client gives a model; the rest tells the client how to treat the tool."""
    return {part: listed(tool)[part] for part in ("name", "description", "inputSchema")}


def test_every_folder_is_a_tool(tools: dict[str, Tool]) -> None:
    assert sorted(tools) == sorted(specs())
    assert set(tools) >= {"load_model", "logit_lens", "session", "tokenize", "unload_model"}


@pytest.mark.parametrize("name", specs())
def test_every_tool_says_what_a_client_may_ask(name: str, tools: dict[str, Tool]) -> None:
    tool = listed(tools[name])
    hints = tool["annotations"]

    assert tool["title"]
    assert len(tool["description"]) > 40
    assert tool["description"].endswith(".")
    assert set(hints) == {"readOnlyHint", "openWorldHint"} | (
        set() if hints["readOnlyHint"] else {"destructiveHint", "idempotentHint"}
    )
    assert tool["outputSchema"]["type"] == "object"
    for schema in (tool["inputSchema"], tool["outputSchema"]):
        jsonschema.Draft202012Validator.check_schema(schema)
    for field, schema in tool["inputSchema"]["properties"].items():
        assert schema.get("description"), f"{name}.{field} has no description"


@pytest.mark.parametrize("name", specs())
def test_every_definition_is_small(name: str, tools: dict[str, Tool], count_tokens: Callable[[object], int]) -> None:
    tool = tools[name]

    assert count_tokens(shown(tool)) <= LARGEST_DEFINITION
    assert len(tool.description or "") <= LARGEST_DESCRIPTION


def test_the_whole_list_is_small(client: Caller, tools: dict[str, Tool], count_tokens: Callable[[object], int]) -> None:
    total = count_tokens([shown(tool) for tool in tools.values()])
    print(f"{total} tokens for {len(tools)} tools")

    assert total <= LARGEST_LIST
    assert len(client.instructions or "") <= LARGEST_DESCRIPTION


def test_the_list_does_not_change(client: Caller, tools: dict[str, Tool]) -> None:
    client.call("session")

    assert client.tools() == list(tools.values())
