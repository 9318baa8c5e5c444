"""Test and measure on an accelerator, on a machine that may be offline: `make gpu`.

    python tools/gpu.py                        # the tests marked `gpu`, then launches and times of an 8B model
    python tools/gpu.py --wheels FOLDER        # installs these wheels below build/ first, without an index
    python tools/gpu.py --device cpu --small   # the same commands without an accelerator, to try them

It takes the interpreter that runs it, with its torch and transformers, and works from the checkout. The model has the
shape of Llama 3 8B and random weights in bfloat16 (16 GB below `build/gpu/`, kept for the next run), since times depend
on the shape alone. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "gpu"
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
}
JOBS = ("lens", "patchscope", "grid", "steering", "attention", "load-warm")
TESTS_LIMIT, LAUNCHES_LIMIT, BENCH_LIMIT = 190, 50, 240
"""Seconds after which each part is ended, so that all of it takes at most eight minutes."""


def main() -> int:
    """Runs all parts, and returns 1 if one of them failed."""
    given = _parse()
    paths = [str(ROOT)]
    if given.wheels:
        paths.append(str(_install(given.wheels)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    sys.path[:0] = paths
    _describe(given.device)
    failed = _run("tests", TESTS_LIMIT, environment, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider")
    folder = _make_model("small" if given.small else "8b", given.device)
    options = ["--device", given.device, "--dtype", "bfloat16", "--model", str(folder), "--by", "raw", "ours"]
    options += ["--repeats", "3", "--threads", str(len(os.sched_getaffinity(0))), "--jobs", *JOBS]
    options += ["--quick"] if given.small else []
    options += ["--write"] if given.write else []
    failed |= _run("launches", LAUNCHES_LIMIT, environment, "-m", "tools.launches", *options[:6])
    return int(_run("benchmark", BENCH_LIMIT, environment, "tools/bench.py", *options) or failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of what this machine lacks")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--small", action="store_true", help="a model of four layers in place of the 8B shape")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    return parser.parse_args()


def _install(wheels: Path) -> Path:
    site = PLACE / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", str(site), *map(str, sorted(wheels.glob("*.whl")))], check=True)
    return site


def _describe(device: str) -> None:
    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)


def _make_model(shape: str, device: str) -> Path:
    """The folder of a Llama with random weights and a tokenizer of a few hundred tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from nnterp_mcp.verification.tiny import tiny_tokenizer

    folder = PLACE / shape
    if (folder / "config.json").exists():
        return folder
    config = LlamaConfig(
        vocab_size=128256,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        dtype=torch.bfloat16,
        **SHAPES[shape],
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    tiny_tokenizer(config.vocab_size).save_pretrained(folder)
    model.to(torch.bfloat16).cpu().save_pretrained(folder, max_shard_size="5GB")
    return folder


def _run(name: str, limit: int, environment: dict[str, str], *arguments: str) -> int:
    begun = time.monotonic()
    try:
        code = subprocess.run(
            [sys.executable, *arguments], check=False, cwd=ROOT, env=environment, timeout=limit
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: ended after {limit} s", flush=True)
        return 1
    print(f"{name}: exit code {code} after {time.monotonic() - begun:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
