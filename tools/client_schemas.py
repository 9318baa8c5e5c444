"""Holds the tools' schemas against the converters of other people's clients, and prints what becomes of them.

Each client gets an environment of its own below build/clients (`--home`), made once, from the package index:
`python tools/client_schemas.py`, or with the names of some of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.toolset import specs
from tools.clients.calls import CALLS

HERE = Path(__file__).parent / "clients"
HOME = HERE.parent.parent / "build" / "clients"

CLIENTS: dict[str, tuple[str, ...]] = {
    "google_genai": ("google-genai", "mcp"),
    "google_adk": ("google-adk", "mcp"),
    "openai_agents": ("openai-agents",),
    "llama_index": ("llama-index-core", "llama-index-tools-mcp"),
    "autogen": ("autogen-core",),
    "langchain": ("langchain-mcp-adapters",),
    "mcp_use": ("mcp-use",),
    "pydantic_ai": ("pydantic-ai-slim",),
}
"""What is installed for each."""


@dataclass
class Outcome:
    """What became of the tools in one client.

    Attributes:
        converted: How many tools came through.
        kept: How many calls fit the schema afterwards, or are sent as they were made.
        nulls: How many of them the server takes with null for all that is left out.
        floats: How many it takes with every integer as a float.
        faults: What went wrong, and what the client warned of.
        notes: What the client says of its way, counted.
    """

    converted: int = 0
    kept: int = 0
    nulls: int = 0
    floats: int = 0
    faults: list[str] = field(default_factory=list[str])
    notes: dict[str, int] = field(default_factory=dict[str, int])


def definitions() -> list[dict[str, Any]]:
    """The tools as a client gets them."""
    return [
        {"name": spec.name, "description": spec.description, "inputSchema": spec.advertised_schema()}
        for spec in specs().values()
    ]


def judge(client: str, home: Path, log: Any = sys.stderr) -> Outcome:
    """Runs a client's judge on every tool and call."""
    python = _environment(client, home, log)
    asked = json.dumps({"tools": definitions(), "calls": CALLS})
    done = subprocess.run(
        [str(python), str(HERE / f"judge_{client}.py")],
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
    )
    if done.returncode:
        return Outcome(faults=[f"the judge failed: {done.stderr.strip().splitlines()[-1][:200]}"])
    found = json.loads(done.stdout.splitlines()[-1])
    outcome = Outcome()
    for spec in specs().values():
        calls = [arguments for tool, arguments in CALLS if tool == spec.name]
        _count(outcome, spec, calls, found[spec.name])
    return outcome


def _environment(client: str, home: Path, log: Any) -> Path:
    """The client's Python; its packages are installed anew when the list of them changes."""
    folder = home / client
    python, mark = folder / "bin" / "python", folder / "installed"
    wanted = " ".join(CLIENTS[client])
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {wanted} into {folder}", file=log)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CLIENTS[client]]
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.DEVNULL)
        mark.write_text(wanted)
    return python


def _count(outcome: Outcome, spec: Any, calls: list[dict[str, Any]], found: dict[str, Any]) -> None:
    outcome.faults += [f"{spec.name} warns: {warning}"[:200] for warning in found["warnings"]]
    if "failed" in found:
        outcome.faults.append(f"{spec.name}: {found['failed']}")
        return
    outcome.converted += 1
    if "note" in found:
        outcome.notes[found["note"]] = outcome.notes.get(found["note"], 0) + 1
    for index, call in enumerate(calls):
        sent = found["sent"][index] if "sent" in found else call
        nulls = dict.fromkeys(spec.params.model_fields) | sent
        outcome.kept += _kept(outcome, spec, call, found, sent)
        outcome.nulls += _taken(outcome, spec, nulls, call)
        outcome.floats += _taken(outcome, spec, _floats(sent), call)


def _kept(outcome: Outcome, spec: Any, call: dict[str, Any], found: dict[str, Any], sent: dict[str, Any]) -> bool:
    """Whether a call can still be made, and means the same."""
    if "schema" not in found:
        return _taken(outcome, spec, sent, call)
    schema = found["schema"]
    lost = spec.params.model_fields.keys() - schema.get("properties", {}).keys()
    silent = [name for name, part in schema.get("properties", {}).items() if not part.get("description")]
    problems = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(call)]
    problems += [f"{name} is lost" for name in lost] + [f"{name} says nothing" for name in silent]
    outcome.faults += [f"{spec.name}: {problem}"[:200] for problem in problems]
    return not problems


def _taken(outcome: Outcome, spec: Any, sent: dict[str, Any], call: dict[str, Any]) -> bool:
    try:
        same = spec.parse(sent) == spec.parse(call)
    except InvalidRequest as error:
        outcome.faults.append(f"{spec.name}: {error.message}"[:200])
        return False
    if not same:
        outcome.faults.append(f"{spec.name}: {json.dumps(sent)[:150]} means something else")
    return same


def _floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_floats(part) for part in value]
    if isinstance(value, dict):
        return {name: _floats(part) for name, part in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def main() -> int:
    """Prints the table; the exit code says whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", choices=[*CLIENTS, []], help="some of them; all by default")
    parser.add_argument("--home", type=Path, default=HOME, help="where the environments are")
    options = parser.parse_args()
    tools, calls = len(specs()), len(CALLS)
    print(f"| client | tools, of {tools} | calls kept, of {calls} | with nulls | with 3.0 | faults and warnings |")
    print("|---|---|---|---|---|---|")
    outcomes = {client: judge(client, options.home) for client in options.clients or CLIENTS}
    for client, found in outcomes.items():
        notes = "".join(f"; {count} {note}" for note, count in found.notes.items())
        print(
            f"| {client} | {found.converted}{notes} | {found.kept} | {found.nulls} | {found.floats} "
            f"| {len(found.faults)} |"
        )
    for client, found in outcomes.items():
        for fault in found.faults:
            print(f"{client}: {fault}", file=sys.stderr)
    return int(any(found.faults for found in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
