"""One frozen `Settings`, the only reader of the environment (variables `NNTERP_MCP_*`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Transport = Literal["stdio", "http", "sse"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _default_cache() -> Path:
    return Path(platformdirs.user_cache_dir("nnterp-mcp", appauthor=False))


def _default_data() -> Path:
    return Path(platformdirs.user_data_dir("nnterp-mcp", appauthor=False))


class Settings(BaseSettings):
    """What the person who starts the server decides. Flags of `nnterp-mcp serve` override the environment."""

    model_config = SettingsConfigDict(env_prefix="NNTERP_MCP_", frozen=True, extra="ignore")

    transport: Transport = "stdio"
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    """0 lets the system choose; the address is printed on stderr."""

    cache: Path = Field(default_factory=_default_cache)
    """Where converted weights are kept."""

    data: Path = Field(default_factory=_default_data)
    """Where named vectors are kept."""

    folders: tuple[Path, ...] = ()
    """Folders below which a call may name files to read; none by default. In the environment a JSON list."""

    trust_remote_code: bool = False
    """Whether code from a model's repository may run."""

    max_models: int = Field(default=4, ge=1)
    max_prompts: int = Field(default=1024, ge=1)
    max_prompt_tokens: int = Field(default=8192, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    """Padded tokens in one forward pass, at most (a single longer prompt runs alone)."""

    load_timeout: float = Field(default=3600.0, gt=0)
    """Seconds until a load that has not finished is given up."""
