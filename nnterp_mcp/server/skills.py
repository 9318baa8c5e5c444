"""The recipes as skills (SEP-2640): one `SKILL.md` each, which clients read here and the plugin ships as files.

A skill is a recipe with its examples filled in. Each is one file whose bytes never change while the server runs, so
that its digest is published.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CacheableResult, PaginatedRequestParams, RequestParams, Resource

from nnterp_mcp.request.arguments import shown
from nnterp_mcp.server import replies
from nnterp_mcp.server.hints import FIXED
from nnterp_mcp.server.recipe import Recipe
from nnterp_mcp.server.recipes import RECIPES

SKILLS = "io.modelcontextprotocol/skills"
"""The identifier under which clients and servers say that they know skills."""

_SCHEME = "skill://"
ADDRESS = f"{_SCHEME}{{name}}/SKILL.md"
KIND = "text/markdown"

_CALL = re.compile(r"^([a-z_]+) \{", re.MULTILINE)
"""The tool of each call in a recipe."""


class GetSkillParams(RequestParams):
    """The parameters of `skills/get`: the address of a skill's `SKILL.md`."""

    uri: str


class ListSkillsResult(CacheableResult):
    """The entries of all skills."""

    skills: list[dict[str, Any]]


class GetSkillResult(CacheableResult):
    """The entry of one skill."""

    skill: dict[str, Any]


class Skills:
    """The skills of a server.

    Args:
        recipes: The recipes that it serves.
    """

    def __init__(self, recipes: list[Recipe]) -> None:
        self._recipes = {address(recipe): recipe for recipe in recipes}

    @property
    def resources(self) -> list[Resource]:
        """The skills as entries of `resources/list`."""
        return [
            Resource(
                uri=uri,
                name=name(recipe),
                title=recipe.title,
                description=_frontmatter(recipe)["description"],
                mime_type=KIND,
            )
            for uri, recipe in self._recipes.items()
        ]

    def find(self, uri: str) -> str | None:
        """The text of the skill at an address, None if there is none."""
        recipe = self._recipes.get(uri)
        return None if recipe is None else skill(recipe)

    def serve(self, server: Server[Any]) -> None:
        """Declares the extension and registers its methods."""
        server.extensions[SKILLS] = {}
        server.add_request_handler("skills/list", PaginatedRequestParams, self._list)
        server.add_request_handler("skills/get", GetSkillParams, self._get)

    async def _list(self, context: ServerRequestContext[Any], params: PaginatedRequestParams) -> ListSkillsResult:
        replies.first_page(params)
        skills = [_entry(recipe) for recipe in self._recipes.values()]
        return ListSkillsResult(skills=skills, ttl_ms=FIXED.ttl_ms, cache_scope=FIXED.scope)

    async def _get(self, context: ServerRequestContext[Any], params: GetSkillParams) -> GetSkillResult:
        recipe = self._recipes.get(params.uri)
        if recipe is None:
            known = ", ".join(self._recipes)
            raise MCPError(INVALID_PARAMS, f"There is no skill {shown(params.uri)}: skills are {known}.")
        return GetSkillResult(skill=_entry(recipe), ttl_ms=FIXED.ttl_ms, cache_scope=FIXED.scope)


def name(recipe: Recipe) -> str:
    """The skill's name, which is also that of its folder: words with hyphens."""
    return recipe.name.replace("_", "-")


def address(recipe: Recipe) -> str:
    """The address of the skill's only file."""
    return ADDRESS.format(name=name(recipe))


@cache
def skill(recipe: Recipe) -> str:
    """The text of a recipe's `SKILL.md`: its examples in place of arguments, no model loaded."""
    given = {argument.name: argument.example for argument in recipe.arguments if argument.example is not None}
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in _frontmatter(recipe).items())
    arguments = "\n".join(
        f"- {argument.name}{'' if argument.required else ' (optional)'}: {argument.description}."
        for argument in recipe.arguments
    )
    return f"""\
---
{front}
---

# {recipe.title}

The tools are those of the MCP server nnterp-mcp, and each line that begins with a tool's name is a call with its \
arguments. The calls are written for an example; put in their place what you were asked about:
{arguments}

{recipe.write(given, {})}
"""


def tools_of(recipe: Recipe) -> set[str]:
    """The tools that a recipe calls."""
    return set(_CALL.findall(skill(recipe)))


def written_for(tools: set[str]) -> list[Recipe]:
    """The recipes that need no tool but these."""
    return [recipe for recipe in RECIPES.values() if tools_of(recipe) <= tools]


def _frontmatter(recipe: Recipe) -> dict[str, str]:
    return {"name": name(recipe), "description": f"{recipe.title} with the nnterp-mcp tools. {recipe.description}"}


def _entry(recipe: Recipe) -> dict[str, Any]:
    content = skill(recipe).encode()
    file = {"uri": address(recipe), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
    return {"uri": address(recipe), "frontmatter": _frontmatter(recipe), "resources": [file]}
