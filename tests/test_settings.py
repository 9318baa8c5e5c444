from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nnterp_mcp.pool.messages import Start, to_line, to_worker
from nnterp_mcp.settings import Settings


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NNTERP_MCP_")]:
        monkeypatch.delenv(name)
    settings = Settings()

    assert (settings.transport, settings.host, settings.port) == ("stdio", "127.0.0.1", 8765)
    assert settings.trust_remote_code is False
    assert settings.cache.name == "nnterp-mcp"


def test_the_environment_decides_and_arguments_override_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNTERP_MCP_MAX_MODELS", "7")
    monkeypatch.setenv("NNTERP_MCP_CACHE", "/somewhere")
    monkeypatch.setenv("MAX_PROMPTS", "3")

    assert Settings().max_models == 7
    assert Settings().cache == Path("/somewhere")
    assert Settings().max_prompts == 1024
    assert Settings(max_models=2).max_models == 2


def test_nothing_changes_them_later() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    "wrong", [{"port": 65_536}, {"max_models": 0}, {"transport": "pigeon"}, {"load_timeout": 0}, {"batch_tokens": 0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_worker_has_its_servers_settings_whatever_its_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    line = to_line(Start(handle="a", settings=Settings(max_prompts=5, trust_remote_code=False)))
    monkeypatch.setenv("NNTERP_MCP_MAX_PROMPTS", "6")
    monkeypatch.setenv("NNTERP_MCP_TRUST_REMOTE_CODE", "1")
    start = to_worker.validate_json(line)
    assert isinstance(start, Start)

    assert (start.settings.max_prompts, start.settings.trust_remote_code) == (5, False)


def test_every_setting_is_documented_with_its_default() -> None:
    """A default that depends on the machine is told in words."""
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))

    assert set(told) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, str | int | float):
            assert told[name] == f"`{field.default}`", name
