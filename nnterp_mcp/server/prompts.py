"""MCP prompts: the recipes, written for the models that are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    TextContent,
)

from nnterp_mcp.errors import InvalidRequest, NnterpError
from nnterp_mcp.pool.session import Session
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.server import replies
from nnterp_mcp.server.recipe import Recipe

_Context = ServerRequestContext[Any]


class PromptHandlers:
    """The prompts of a server.

    Args:
        session: The server's session.
        recipes: The recipes that it offers.
    """

    def __init__(self, session: Session, recipes: Sequence[Recipe]) -> None:
        self._session = session
        self._recipes = {recipe.name: recipe for recipe in recipes}

    async def list(self, context: _Context, params: PaginatedRequestParams | None) -> ListPromptsResult:
        """Every recipe, and what it asks for."""
        replies.first_page(params)
        return ListPromptsResult(prompts=[_listed(recipe) for recipe in self._recipes.values()])

    async def get(self, context: _Context, params: GetPromptRequestParams) -> GetPromptResult:
        """A recipe for the given arguments."""
        try:
            recipe = self._found(params.name)
            text = recipe.write(_arguments(recipe, params.arguments or {}), layers_of(self._session))
        except NnterpError as error:
            raise MCPError(INVALID_PARAMS, replies.worded(error)) from None
        message = PromptMessage(role="user", content=TextContent(text=text))
        return GetPromptResult(description=recipe.description, messages=[message])

    def _found(self, name: str) -> Recipe:
        if name not in self._recipes:
            raise InvalidRequest(f"there is no prompt {shown(name)}: prompts are {', '.join(self._recipes)}.")
        return self._recipes[name]


def layers_of(session: Session) -> dict[str, int]:
    """The handles of the loaded models, with their numbers of layers."""
    cards = {entry.handle: entry.card for entry in session.pool.entries if entry.card is not None}
    return {handle: int(card["num_layers"]) for handle, card in cards.items()}


def _arguments(recipe: Recipe, given: Mapping[str, str]) -> dict[str, str]:
    """The arguments that are not empty; clients send empty ones as null or as ""."""
    known = [argument.name for argument in recipe.arguments]
    for name in given:
        if name not in known:
            raise InvalidRequest(f"{recipe.name} has no argument {shown(name)}: its arguments are {', '.join(known)}.")
    filled = {name: value for name, value in given.items() if value.strip()}
    for argument in recipe.arguments:
        if argument.required and argument.name not in filled:
            raise InvalidRequest(f"{recipe.name} needs the argument {argument.name!r}: {argument.description}.")
    return filled


def _listed(recipe: Recipe) -> Prompt:
    return Prompt(
        name=recipe.name,
        title=recipe.title,
        description=recipe.description,
        arguments=[
            PromptArgument(name=argument.name, description=argument.description, required=argument.required)
            for argument in recipe.arguments
        ],
    )
