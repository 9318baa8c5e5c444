"""`tokenize` in the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnterp_mcp.model.text.tokenization import as_chats, encode_prompts
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.toolset.tokenize.params import TokenizeParams
from nnterp_mcp.toolset.tokenize.result import TokenizedPrompt, TokenizeResult
from nnterp_mcp.worker.job import Job

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench


def run(bench: Bench, params: TokenizeParams, job: Job) -> TokenizeResult:
    """Tokenizes every prompt."""
    tokenizer = bench.model.tokenizer
    prompts = as_chats(params.prompts) if params.chat else params.prompts
    return TokenizeResult(
        model=bench.handle,
        prompts=[
            TokenizedPrompt(
                text=prompt.text,
                ids=prompt.ids,
                tokens=[token_text(tokenizer, token) for token in prompt.ids],
            )
            for prompt in encode_prompts(tokenizer, prompts, bench.handle)
        ],
    )
