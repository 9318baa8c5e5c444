"""One frozen `Settings`, the only reader of the environment (variables `NNTERP_MCP_*`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Transport = Literal["stdio", "http", "sse"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_CREDENTIAL = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY)$")


def _default_cache() -> Path:
    return Path(platformdirs.user_cache_dir("nnterp-mcp", appauthor=False))


def _default_data() -> Path:
    return Path(platformdirs.user_data_dir("nnterp-mcp", appauthor=False))


class Settings(BaseSettings):
    """The server's settings. Flags of `nnterp-mcp serve` override the environment."""

    model_config = SettingsConfigDict(env_prefix="NNTERP_MCP_", frozen=True, extra="ignore", hide_input_in_errors=True)

    transport: Transport = "stdio"
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    """0 lets the system choose; the address is printed on stderr."""

    tools: tuple[str, ...] = ()
    """Groups of tools, or tools, that are served in addition to the group basics; all by default."""

    token: SecretStr | None = Field(default=None, min_length=16, exclude=True)
    """The bearer token of every HTTP request; from the environment alone, never a flag."""

    allowed_hosts: tuple[str, ...] = ()
    """Names under which clients may reach the server, in addition to loopback; without a port, on any port."""

    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may call it, in addition to loopback; none by default."""

    max_body: int = Field(default=4_000_000, ge=1)
    """Bytes of a request's body."""

    max_sessions: int = Field(default=256, ge=1)
    """Open sessions of streamable HTTP, and as many of SSE."""

    max_requests_per_minute: int = Field(default=6000, ge=1)
    """Requests of one client in a minute: of a session, or of an address where there is none."""

    allowed_models: tuple[str, ...] = ("*",)
    """Glob patterns of what `load_model` may be asked for: built-in names, Hub ids and resolved local paths."""

    cache: Path = Field(default_factory=_default_cache)
    """The folder for converted weights."""

    data: Path = Field(default_factory=_default_data)
    """The folder for named vectors."""

    runs: Path = Field(default_factory=lambda given: given["data"] / "runs")
    """The folder for runs."""

    max_runs_bytes: int = Field(default=10_000_000_000, ge=0)
    """Bytes of all runs on disk; the oldest that are not pinned make room."""

    max_runs_days: float = Field(default=90.0, gt=0, allow_inf_nan=False)
    """Days that a run is kept unless it is pinned."""

    folders: tuple[Path, ...] = ()
    """Folders below which a call may name files and models; none by default. In the environment a JSON list."""

    trust_remote_code: bool = False
    """True if code from a model's repository may run."""

    ndif_host: str | None = None
    """Address of the NDIF service that models may be loaded from (`backend="ndif"`); none by default, for what is sent
    there, prompts included, leaves this machine. The API key comes from the variable `NDIF_API_KEY` alone."""

    neuronpedia: str | None = None
    """Address of the service that is asked for labels of features; none by default, for it learns which features are
    looked at. An API key comes from the variable `NEURONPEDIA_API_KEY` alone."""

    saelens_registry: str | None = None
    """File or address of SAELens' registry; that of an installed SAELens by default."""

    max_models: int = Field(default=4, ge=1)
    max_prompts: int = Field(default=1024, ge=1)
    max_prompt_tokens: int = Field(default=8192, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    """Padded tokens in one forward pass, at most (a single longer prompt runs alone; a CPU takes 1,024)."""

    max_states_bytes: int = Field(default=2_000_000_000, ge=1)
    """Bytes of the states that one call collects."""

    load_timeout: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """Seconds after which an unfinished load is stopped."""

    reply_within: float = Field(default=45.0, gt=0, allow_inf_nan=False)
    """Seconds after which an unfinished call answers with its run's id and continues."""

    call_timeout: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """Seconds after which an unfinished call is stopped."""

    stop_timeout: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds that a call may take to stop; after that its process is killed, and the model with it."""

    hang_timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds without an answer to pings after which a model's process is killed."""

    max_queue: int = Field(default=64, ge=1)
    """Calls that may wait for one model."""

    log_format: Literal["text", "json"] = "text"
    """The format of the log on standard error."""

    @field_validator("ndif_host", "neuronpedia")
    @classmethod
    def _require_address(cls, host: str | None, info: ValidationInfo) -> str | None:
        if host is not None and re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", host) is None:
            service = "an NDIF service" if info.field_name == "ndif_host" else "Neuronpedia"
            raise ValueError(f"{service}'s address begins with http:// or https:// and holds no credentials")
        return None if host is None else host.rstrip("/")

    @field_validator("token")
    @classmethod
    def _require_token_characters(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and _TOKEN.fullmatch(token.get_secret_value()) is None:
            raise ValueError("a token is made of letters, digits and -._~+/ (RFC 6750)")
        return token

    @staticmethod
    def ndif_key() -> str:
        """The API key for NDIF; read where it is used, so that it is never written anywhere."""
        return os.environ.get("NDIF_API_KEY", "")

    @staticmethod
    def neuronpedia_key() -> str:
        """The API key for Neuronpedia; read where it is used, so that it is never written anywhere."""
        return os.environ.get("NEURONPEDIA_API_KEY", "")

    def take_secrets(self) -> list[str]:
        """Secrets to redact: the token and the environment's credentials, such as `HF_TOKEN`.

        The token leaves the environment, so that no worker inherits it.
        """
        os.environ.pop("NNTERP_MCP_TOKEN", None)
        credentials = [value for name, value in os.environ.items() if _CREDENTIAL.search(name.upper())]
        return credentials + ([] if self.token is None else [self.token.get_secret_value()])
