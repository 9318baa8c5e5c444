"""The tool `session`."""

from __future__ import annotations

from nnterp_mcp.contract import ToolSpec
from nnterp_mcp.toolset.session.answer import digest
from nnterp_mcp.toolset.session.params import SessionParams

SPEC = ToolSpec(
    name="session",
    title="What is loaded",
    description=(
        "Find what there is to work with: lists the loaded models, the latest runs for read_run, saved vectors, "
        "loaded features and saved prompt sets. save_set stores prompts, "
        'with groups and targets, that every tool then takes as {"set": NAME}, or {"set": NAME, "group": GROUP}.'
    ),
    examples=[{}],
    params=SessionParams,
    digest=digest,
    place="server",
    read_only=False,
    destructive=True,
    group="basics",
)
