"""Writes docs/tokens.md: what every tool costs an agent, in tokens of the default model's tokenizer.

Definitions and answers are what a client gets from a real server on smollm2-135m. `--check` only says whether the
definitions are current, and needs the tokenizer alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from nnterp_mcp.server.app import INSTRUCTIONS, definition
from nnterp_mcp.toolset import specs

TARGET = Path(__file__).parent.parent / "docs" / "tokens.md"

_FIRST = ("load_model", "load_features")
CALLS = {
    name: specs()[name].examples[0]
    for name in (*_FIRST, *sorted(specs().keys() - _FIRST, key=lambda name: (specs()[name].place == "server", name)))
}
"""The first example of each tool; those that change or end what is loaded come after the experiments."""

_ROW = re.compile(r"^\| `(\w+)` \| ([\d,]+) \|", re.MULTILINE)


@dataclass(frozen=True)
class Cost:
    """Tokens of an answer, which a client shows by its text, by its structured content, or both."""

    text: int
    structured: int


def counter() -> Callable[[object], int]:
    """Counts the tokens of a text, or of data as compact JSON."""
    from transformers import AutoTokenizer

    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.model.loading.locations import BUILTIN
    from nnterp_mcp.settings import Settings

    folder = locate(BUILTIN, None, Settings().cache, False, lambda message: None).folder
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def count(content: object) -> int:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return len(tokenizer(text)["input_ids"])

    return count


def listed() -> dict[str, dict[str, Any]]:
    """Every tool's entry in `tools/list`, less `_meta`."""
    return {
        name: definition(spec).model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"meta"})
        for name, spec in specs().items()
    }


def shown() -> dict[str, dict[str, Any]]:
    """The part of every tool's entry that clients give a model."""
    parts = ("name", "description", "inputSchema")
    return {name: {part: tool[part] for part in parts} for name, tool in listed().items()}


def count_definitions(count: Callable[[object], int]) -> dict[str, int]:
    """The tokens of every definition, of all together, of the whole of `tools/list`, and of the instructions."""
    tools = shown()
    costs = {name: count(tool) for name, tool in tools.items()}
    together = {"definitions": count([*tools.values()]), "tools/list": count([*listed().values()])}
    return costs | together | {"instructions": count(INSTRUCTIONS)}


async def count_answers(count: Callable[[object], int]) -> dict[str, Cost]:
    """The tokens of every tool's default answer, from a real server."""
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "NNTERP_MCP_DATA": data, "NNTERP_MCP_REPLY_WITHIN": "600"}
        environment["NNTERP_MCP_FOLDERS"] = json.dumps([data])
        save_random_dictionary(Path(data) / "dictionary")
        server = StdioServerParameters(command=sys.executable, args=["-m", "nnterp_mcp", "serve"], env=environment)
        async with Client(stdio_client(server)) as client:
            costs: dict[str, Cost] = {}
            run = ""
            for tool, arguments in CALLS.items():
                given = {name: run if name == "run_id" else value for name, value in arguments.items()}
                result: Any = await client.call_tool(tool, given)
                if result.is_error:
                    raise RuntimeError(f"{tool}: {result.content[0].text}")
                run = result.structured_content.get("run_id", run)
                costs[tool] = Cost(count(_settled(result.content[0].text)), count(_settled(result.structured_content)))
            return costs


def save_random_dictionary(folder: Path) -> None:
    """Writes a random autoencoder of the default model's residual stream in SAELens' layout."""
    import torch
    from safetensors.torch import save_file

    rows = torch.randn(2048, 576, generator=torch.Generator().manual_seed(0)) / 24
    biases = {"b_enc": torch.zeros(2048), "b_dec": torch.zeros(576)}
    config = {"architecture": "topk", "k": 32, "metadata": {"hook_name": "blocks.15.hook_resid_post"}}
    folder.mkdir()
    save_file({"W_enc": rows.T.contiguous(), "W_dec": rows, **biases}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def _settled(content: Any) -> Any:
    """An answer with one id for all runs: the tokens of an id depend on its letters."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    settled = re.sub(rf"\b({'|'.join(specs())})-[a-z2-7]{{6}}\b", r"\1-k3f7qa", text)
    return settled if isinstance(content, str) else json.loads(settled)


def write(definitions: dict[str, int], answers: dict[str, Cost]) -> str:
    """The page."""
    rows = [
        f"| `{tool}` | {definitions[tool]:,} | {answers[tool].text:,} | {answers[tool].structured:,} | {_call(tool)} |"
        for tool in sorted(answers)
    ]
    return f"""# Tokens

Generated by `python tools/token_budget.py`. What the tools cost an agent, in tokens of smollm2-135m's tokenizer; others
count otherwise. JSON is counted without spaces.

- All definitions (names, descriptions and parameters, which clients give a model):
  {definitions["definitions"]:,} tokens; the limit is 11,000.
- The whole of `tools/list` (also titles, hints and output schemas, which clients use themselves):
  {definitions["tools/list"]:,} tokens.
- The server's instructions:
  {definitions["instructions"]:,} tokens; the limit is 2,048 characters.
- A default answer: at most 1,000 tokens in the text, and 1,000 in the structured content. A client shows a model the
  one or the other; both say the same.

| tool | definition | text | structured content | the call |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


def read_definitions(page: str) -> dict[str, int]:
    """What a page says of the definitions, in the form of `count_definitions`."""
    names = ("definitions", "tools/list", "instructions")
    totals = dict(zip(names, re.findall(r"^  ([\d,]+) tokens[;.]", page, re.MULTILINE), strict=True))
    return {name: int(number.replace(",", "")) for name, number in [*_ROW.findall(page), *totals.items()]}


def _call(tool: str) -> str:
    return f"`{json.dumps(CALLS[tool], ensure_ascii=False)}`"


def main() -> int:
    """Writes the page, or with `--check` compares its definitions."""
    definitions = count_definitions(count := counter())
    if "--check" in sys.argv:
        return int(read_definitions(TARGET.read_text(encoding="utf-8")) != definitions)
    TARGET.write_text(write(definitions, anyio.run(count_answers, count)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
