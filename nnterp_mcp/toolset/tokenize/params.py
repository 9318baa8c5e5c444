"""Arguments of `tokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request.prompts import Prompts


class TokenizeParams(ModelParams):
    """The prompts that are split into tokens."""

    prompts: Prompts
    chat: Annotated[
        bool, Field(description="Put a plain text through the chat template as the user's message first.")
    ] = False
