"""Prompts as a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from nnterp_mcp.nnterp.prompts import Prompt


def prompts_to_df(prompts: Sequence[Prompt], tokenizer: Any = None) -> pandas.DataFrame:
    """One row per prompt: its text, and the strings and tokens of each category.

    Args:
        prompts: The prompts.
        tokenizer: Writes token ids as tokens; ids are kept without one.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for prompt in prompts:
        row: dict[str, Any] = {"prompt": prompt.prompt}
        row |= {f"{name}_string": strings for name, strings in (prompt.target_strings or {}).items()}
        row |= {
            f"{name}_tokens": tokenizer.convert_ids_to_tokens(ids) if tokenizer is not None else ids
            for name, ids in prompt.target_tokens.items()
        }
        rows.append(row)
    return pandas.DataFrame(rows)
