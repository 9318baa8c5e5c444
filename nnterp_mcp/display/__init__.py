"""Figures and data frames for people; needs the extra `display` (plotly, pandas)."""

from nnterp_mcp.display.prompts import prompts_to_df
from nnterp_mcp.display.tokens import plot_topk_tokens

__all__ = ["plot_topk_tokens", "prompts_to_df"]
