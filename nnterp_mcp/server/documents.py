"""Resources about the server itself: the tool reference and the glossary."""

from __future__ import annotations

from importlib import resources

from mcp_types import Resource, ResourceTemplate

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.server.reference import reference, section
from nnterp_mcp.toolset import specs

SCHEME = "nnterp://"
ADDRESSES = _GLOSSARY, _TOOLS, _TOOL = "nnterp://glossary", "nnterp://tools", "nnterp://tools/{tool}"
_KIND = "text/markdown"

DOCUMENTS = (
    Resource(
        uri=_TOOLS,
        name="tools",
        title="Every tool, its parameters and what it measures",
        description="The tool reference: types, limits, defaults and meanings of every parameter.",
        mime_type=_KIND,
    ),
    Resource(
        uri=_GLOSSARY,
        name="glossary",
        title="The words of the answers, with sites and units",
        description="What an answer's words mean, and where in the model each site is.",
        mime_type=_KIND,
    ),
)
TEMPLATES = (
    ResourceTemplate(
        uri_template=_TOOL,
        name="tool",
        title="One tool of the reference",
        description="What one tool measures, with its parameters; {tool} is its name.",
        mime_type=_KIND,
    ),
)


def read_document(address: str) -> str:
    """The document at an address.

    Raises:
        InvalidRequest: There is none.
    """
    if address == _GLOSSARY:
        return resources.files("nnterp_mcp.server").joinpath("glossary.md").read_text(encoding="utf-8")
    if address == _TOOLS:
        return reference()
    spec = specs().get(address.removeprefix(f"{_TOOLS}/"))
    if spec is None:
        raise InvalidRequest(
            f"there is no document {shown(address)}: documents are {', '.join(ADDRESSES)}.",
            f"Tools are {', '.join(specs())}.",
        )
    return section(spec)
