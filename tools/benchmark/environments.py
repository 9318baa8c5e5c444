"""Environments: ours, and one for each peer, for they do not work with our versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from .players import TOOLS

PEERS = {
    # nnterp 1.3.0 does not import with nnsight 0.8.
    "nnterp": ("torch==2.13.0", "transformers==5.23.0", "nnsight==0.7.0", "nnterp==1.3.0"),
    "transformer_lens": ("torch==2.13.0", "transformer-lens==4.3.0"),
}
"""What the environment of each peer holds."""

_BUILD = TOOLS.parent / "build"
_TOLD = ("nnterp-mcp", "nnterp", "transformer-lens", "nnsight", "transformers", "torch", "mcp")


def python_of(contestant: str) -> str:
    """The interpreter of a contestant."""
    return str(_folder(contestant) / "bin" / "python") if contestant in PEERS else sys.executable


def is_ready(contestant: str) -> bool:
    """True if a contestant's environment is there, whole."""
    return contestant not in PEERS or _mark(contestant).exists()


def make(peer: str) -> None:
    """Makes a peer's environment, unless it is there."""
    if is_ready(peer):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", _folder(peer)], check=True)
    pip = [python_of(peer), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PEERS[peer]], check=True)
    _mark(peer).touch()


def versions(contestant: str) -> dict[str, str]:
    """The versions of what a contestant computes with."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "there = {d.name.lower(): d.version for d in m.distributions()}\n"
        f"print(json.dumps({{'python': platform.python_version()}} | {{n: there[n] for n in {_TOLD!r} if n in there}}))"
    )
    said = subprocess.run([python_of(contestant), "-c", code], check=True, capture_output=True, text=True)
    return json.loads(said.stdout)


def load() -> float:
    """How many processes are running or waiting, in the mean over the last minute; 0 where the system cannot tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def machine(device: str) -> dict[str, str | int]:
    """The machine, without its name."""
    described: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
    }
    if device.startswith("cuda"):
        import torch

        described["device"] = torch.cuda.get_device_name(device)
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _folder(peer: str) -> Path:
    return _BUILD / f"bench-{peer.replace('_', '-')}" / ".venv"


def _mark(peer: str) -> Path:
    return _folder(peer) / ".ready"
