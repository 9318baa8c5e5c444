"""Skills, cache hints and narrowed tools, over a real client of the SDK in both eras."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Generator
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, PaginatedRequestParams, Request, RequestParams, Result
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import ConfigDict

from nnterp_mcp.server.recipes import RECIPES
from nnterp_mcp.server.skills import SKILLS
from nnterp_mcp.toolset import specs
from tests.serving import Caller, HttpServer, environment, http, raw, serve_command

BASICS = ["cancel_run", "inspect_model", "load_model", "read_run", "session", "tokenize", "unload_model"]


class UriParams(RequestParams):
    uri: str


class GetSkill(Request[UriParams, str]):
    method: str = "skills/get"
    params: UriParams


class ListSkills(Request[PaginatedRequestParams, str]):
    method: str = "skills/list"
    params: PaginatedRequestParams = PaginatedRequestParams()


class Answered(Result):
    model_config = ConfigDict(extra="allow")


def said(client: Caller, request: Any) -> dict[str, Any]:
    return client.send(request, Answered).model_extra or {}


@pytest.fixture(scope="module")
def server() -> Generator[HttpServer]:
    with http() as started:
        yield started


@pytest.mark.parametrize("era", ["auto", "legacy"])
def test_a_host_finds_verifies_and_reads_every_skill(era: str, server: HttpServer) -> None:
    with server.client(era=era) as client:
        listed = said(client, ListSkills())
        assert era == "legacy" or SKILLS in (client.extensions or {})
        addresses = {resource.uri: resource for resource in client.resources()}
        for entry in listed["skills"]:
            (file,) = entry["resources"]
            (content,) = client.read(entry["uri"]).contents
            raw_bytes = content.text.encode()
            front = re.match(r"---\n(.*?)\n---\n", content.text, re.DOTALL)
            assert front is not None
            fields = dict(line.split(": ", 1) for line in front[1].splitlines())

            assert entry["uri"] == file["uri"] == f"skill://{entry['frontmatter']['name']}/SKILL.md"
            assert file["size"] == len(raw_bytes)
            assert file["digest"] == f"sha256:{hashlib.sha256(raw_bytes).hexdigest()}"
            assert {name: json.loads(value) for name, value in fields.items()} == entry["frontmatter"]
            assert addresses[entry["uri"]].description == entry["frontmatter"]["description"]
            assert said(client, GetSkill(params=UriParams(uri=entry["uri"])))["skill"] == entry
        with pytest.raises(MCPError) as refused:
            said(client, GetSkill(params=UriParams(uri="skill://none/SKILL.md")))

    assert len(listed["skills"]) == len(RECIPES)
    assert (listed["ttlMs"], listed["cacheScope"]) == (3_600_000, "public")
    assert refused.value.error.code == INVALID_PARAMS


def test_what_stays_the_same_may_be_cached_and_what_changes_may_not(server: HttpServer) -> None:
    with server.client() as client:
        fixed = [
            client.ask("list_tools"),
            client.ask("list_prompts"),
            client.ask("list_resource_templates"),
            client.read("nnterp://glossary"),
            client.read("skill://locate-fact/SKILL.md"),
        ]
        changing = client.ask("list_resources")

    assert {(result.ttl_ms, result.cache_scope) for result in fixed} == {(3_600_000, "public")}
    assert (changing.ttl_ms, changing.cache_scope) == (0, "private")


def test_discovery_names_every_version() -> None:
    with raw() as client:
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN_PROTOCOL_VERSIONS[-1],
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        client.send("server/discover", 0, _meta=meta)
        answer = client.answer(0)["result"]

    assert answer["supportedVersions"] == [*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS]
    assert answer["ttlMs"] == 3_600_000


def test_only_the_named_tools_are_served_with_the_recipes_that_they_suffice_for() -> None:
    with http(tools='["attention_probs", "generate", "verify_claim"]') as server, server.client() as client:
        tools = [tool.name for tool in client.tools()]
        missing = sorted(specs().keys() - tools)
        with pytest.raises(MCPError) as refused:
            client.call("steer", prompts="a", vector="v", layers=1, factors=[1])
        skills = [entry["frontmatter"]["name"] for entry in said(client, ListSkills())["skills"]]
        prompts = [prompt.name for prompt in client.prompts()]

        assert tools == sorted([*BASICS, "attention_probs", "generate", "verify_claim"])
        assert refused.value.error.message == f"Unknown tool: steer. Tools: {', '.join(tools)}"
        assert f"This server does not serve {', '.join(missing)}: " in (client.instructions or "")
        assert (skills, prompts) == (["induction-heads"], ["induction_heads"])


@pytest.mark.parametrize("names", ["reading,steering", ""])
def test_an_unknown_tool_is_refused_at_the_start_with_those_that_there_are(names: str) -> None:
    command = serve_command("--tools", names)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)

    assert done.returncode == 2
    assert f"there is no tool and no group of tools '{names.split(',')[-1]}'" in done.stderr
    assert "Groups are basics, reading, causal, training; tools are attention_probs" in done.stderr
