"""Measures how the cost of every tool grows with tokens and prompts: `python -m tools.growth`.

Each tool works on a tiny random Llama of four layers, with one thread, in a process of its own. It is timed
in the processor's seconds, so that other processes matter little, and its peak memory is what it needs above the loaded
model. The exponent k of cost = c · size^k is fitted over the last three sizes: at small ones, what does not grow weighs
more. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.memory import Peak
from tools.benchmark.report import fill
from tools.benchmark.spread import exponent

TOKENS = (16, 64, 256, 1024, 4096, 8000)
SHORT = (32, 128, 512, 1024)
"""Tokens for what computes gradients of every position."""
PROMPTS = (8, 40, 200, 1000, 5000)
FEW = (8, 32, 128, 512)
"""Prompts for what runs each one many times."""
_LENGTH = 12
_TIMED_OUT = 90.0
"""Seconds of the processor after which no larger size is tried."""

_TOLD = 10_000_000
"""Bytes below which memory is the allocator's chance."""

Call = Callable[[Any, int], object]


@dataclass(frozen=True)
class Growing:
    """A call whose work grows.

    Attributes:
        name: What the table calls it.
        call: The call, of a laboratory and a size.
        sizes: The sizes.
        power: The exponent of its arithmetic: 2 by tokens, for attention, and 1 by prompts.
    """

    name: str
    call: Call
    sizes: Sequence[int]
    power: int


def text(tokens: int, seed: int = 0) -> str:
    """A text of so many tokens, the opening one included: digits, which the tiny tokenizer reads one by one."""
    return "".join(random.Random(seed).choices("0123456789", k=tokens - 1))


def _pair(tokens: int, seed: int = 0) -> tuple[str, str]:
    """Two texts that differ in their first digit alone."""
    one = text(tokens, seed)
    return "3" + one[1:], "7" + one[1:]


def _texts(count: int) -> list[str]:
    return [text(_LENGTH, seed) for seed in range(count)]


def _pairs(count: int) -> dict[str, list[str]]:
    pairs = [_pair(_LENGTH, seed) for seed in range(count)]
    return {"clean": [one for one, _ in pairs], "corrupted": [other for _, other in pairs]}


_TARGETS = {"right": "1", "wrong": "2"}
_VECTOR = {"positive": "1", "negative": "2"}


def _groups(count: int) -> dict[str, list[str]]:
    made = _texts(count)
    return {"a": made[::2], "b": made[1::2]}


def _clean(tokens: int) -> dict[str, str]:
    clean, corrupted = _pair(tokens)
    return {"clean": clean, "corrupted": corrupted}


def _halves(count: int) -> dict[str, Any]:
    pairs = _pairs(count)
    return pairs | {"found_on": ["found elsewhere"], "claim": ["L1H1"], "targets": _TARGETS}


BY_TOKENS = (
    Growing("logit_lens", lambda lab, n: lab.logit_lens(text(n)), TOKENS, 2),
    Growing("logit_lens, all positions", lambda lab, n: lab.logit_lens(text(n), positions="all"), TOKENS, 2),
    Growing("patchscope", lambda lab, n: lab.patchscope(text(n)), TOKENS, 2),
    Growing("run_prompts", lambda lab, n: lab.run_prompts([text(n)]), TOKENS, 2),
    Growing("attention_probs", lambda lab, n: lab.attention_probs(text(n)), TOKENS, 2),
    Growing("generate, 8 tokens", lambda lab, n: lab.generate(text(n), max_new_tokens=8), TOKENS, 2),
    Growing("steer", lambda lab, n: lab.steer(text(n), _VECTOR, 1, [0, 4]), TOKENS, 2),
    Growing("attribute, direct", lambda lab, n: lab.attribute(text(n), _TARGETS), TOKENS, 2),
    Growing("attribute, gradient", lambda lab, n: lab.attribute(text(n), _TARGETS, method="gradient"), TOKENS, 2),
    Growing(
        "patch_activations, last position",
        lambda lab, n: lab.patch_activations(**_clean(n), targets=_TARGETS, positions="last"),
        TOKENS,
        2,
    ),
    Growing(
        "collect_activations, all positions",
        lambda lab, n: lab.collect_activations(text(n), positions="all"),
        TOKENS,
        2,
    ),
    Growing(
        "make_vector",
        lambda lab, n: lab.make_vector("v", "mean_difference", positive=[text(n)], negative=[text(n, 1)]),
        TOKENS,
        2,
    ),
    Growing("features", lambda lab, n: lab.features("dictionary", prompts=[text(n)]), TOKENS, 2),
    Growing("fit_lens, tuned", lambda lab, n: lab.fit_lens("t", "tuned", [text(n), text(n, 1)]), TOKENS[1:], 2),
    Growing("fit_lens, jacobian", lambda lab, n: lab.fit_lens("j", "jacobian", [text(n)]), SHORT, 2),
    Growing(
        "find_circuit",
        lambda lab, n: lab.find_circuit([_pair(n)[0]], [_pair(n)[1]], targets=_TARGETS, steps=2, draws=2),
        SHORT,
        2,
    ),
    Growing("compare_models", lambda lab, n: lab.compare_models("twin", prompts=[text(n)]), SHORT, 2),
    Growing("tokenize", lambda lab, n: lab.tokenize(text(n)), TOKENS, 1),
)

BY_PROMPTS = (
    Growing("logit_lens", lambda lab, n: lab.logit_lens(_texts(n)), PROMPTS, 1),
    Growing("logit_lens, all positions", lambda lab, n: lab.logit_lens(_texts(n), positions="all"), PROMPTS, 1),
    Growing("patchscope", lambda lab, n: lab.patchscope(_texts(n)), PROMPTS, 1),
    Growing("run_prompts", lambda lab, n: lab.run_prompts(_texts(n)), PROMPTS, 1),
    Growing("attention_probs", lambda lab, n: lab.attention_probs(_texts(n)), PROMPTS, 1),
    Growing("generate, 8 tokens", lambda lab, n: lab.generate(_texts(n), max_new_tokens=8), PROMPTS, 1),
    Growing("steer", lambda lab, n: lab.steer(_texts(n), _VECTOR, 1, [0, 4]), PROMPTS, 1),
    Growing("attribute, direct", lambda lab, n: lab.attribute(_texts(n), _TARGETS), PROMPTS, 1),
    Growing("attribute, gradient", lambda lab, n: lab.attribute(_texts(n), _TARGETS, method="gradient"), FEW, 1),
    Growing(
        "patch_activations",
        lambda lab, n: lab.patch_activations(**_pairs(n), targets=_TARGETS, positions="last"),
        FEW,
        1,
    ),
    Growing("collect_activations", lambda lab, n: lab.collect_activations(_texts(n)), PROMPTS, 1),
    Growing(
        "make_vector",
        lambda lab, n: lab.make_vector("v", "mean_difference", positive=_texts(n)[::2], negative=_texts(n)[1::2]),
        PROMPTS,
        1,
    ),
    Growing("train_probe", lambda lab, n: lab.train_probe(_groups(n), shuffles=1), PROMPTS, 1),
    Growing("features", lambda lab, n: lab.features("dictionary", prompts=_texts(n)), PROMPTS, 1),
    Growing("fit_lens, tuned", lambda lab, n: lab.fit_lens("t", "tuned", _texts(n), skip_first=1), PROMPTS, 1),
    Growing("fit_lens, jacobian", lambda lab, n: lab.fit_lens("j", "jacobian", _texts(n), skip_first=1), FEW, 1),
    Growing(
        "find_circuit",
        lambda lab, n: lab.find_circuit(**_pairs(n), targets=_TARGETS, steps=2, draws=2),
        FEW,
        1,
    ),
    Growing("verify_claim", lambda lab, n: lab.verify_claim(**_halves(n)), FEW, 1),
    Growing("compare_models", lambda lab, n: lab.compare_models("twin", prompts=_texts(n)), FEW, 1),
    Growing("tokenize", lambda lab, n: lab.tokenize(_texts(n)), PROMPTS, 1),
)
AXES = {"tokens": BY_TOKENS, "prompts": BY_PROMPTS}


@dataclass(frozen=True)
class Grown:
    """A call at every size: the processor's seconds and the bytes above the loaded model."""

    axis: str
    growing: Growing
    seconds: Sequence[float]
    peaks: Sequence[int]

    def row(self) -> str:
        """The row of the table."""
        sizes = self.growing.sizes[: len(self.seconds)]
        cells = (
            self.growing.name,
            f"{self.axis} {sizes[0]:,} to {sizes[-1]:,}",
            f"{self.seconds[0]:.2g} to {self.seconds[-1]:.3g} s",
            f"{self.of_time:.2f} of {self.growing.power}",
            f"{self.peaks[-1] / 1e6:.0f} MB",
            self.of_memory,
        )
        return f"| {' | '.join(cells)} |"

    @property
    def of_memory(self) -> str:
        """The exponent of the memory, over those of the last three sizes that need more than the allocator's chance."""
        last = list(zip(self.growing.sizes[: len(self.peaks)], self.peaks, strict=True))[-3:]
        points = [(size, peak) for size, peak in last if peak > _TOLD]
        return "–" if len(points) < 2 else f"{exponent(*zip(*points, strict=True)):.2f}"

    @property
    def of_time(self) -> float:
        """The exponent of the time over the last three sizes."""
        return exponent(self.growing.sizes[: len(self.seconds)][-3:], self.seconds[-3:])


def main() -> int:
    """Measures, prints the table, and returns 1 if a call failed or grows faster than its arithmetic."""
    given = _parse()
    if given.one:
        print(json.dumps(list(_measure(AXES[given.one[0]][int(given.one[1])]))))
        return 0
    asked = [
        (axis, index)
        for axis, growings in AXES.items()
        for index, growing in enumerate(growings)
        if not given.tools or any(growing.name.startswith(tool) for tool in given.tools)
    ]
    with ThreadPoolExecutor(given.processes) as threads:
        found = [one for one in threads.map(lambda one: _in_a_process(*one), asked) if one is not None]
    content = "\n".join([_HEAD, *(one.row() for one in found)])
    if given.write:
        fill("growth", content)
    return int(len(found) < len(asked) or any(one.of_time > one.growing.power + 0.2 for one in found))


_HEAD = """| call | along | time | exponent | peak memory | exponent |
| --- | --- | --- | --- | --- | --- |"""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools.growth", description=__doc__)
    parser.add_argument("--tools", nargs="+", metavar="NAME", help="calls whose names begin so; default all")
    parser.add_argument("--processes", type=int, default=1, help="calls measured at a time, with one thread each")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--one", nargs=2, metavar=("AXIS", "INDEX"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(axis: str, index: int) -> Grown | None:
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NNTERP_MCP_DATA": folder}
        command = [sys.executable, "-m", "tools.growth", "--one", axis, str(index)]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    growing = AXES[axis][index]
    if done.returncode:
        print(f"{growing.name}, {axis}: {done.stderr[-1500:]}", flush=True)
        return None
    seconds, peaks = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    grown = Grown(axis, growing, seconds, peaks)
    print(grown.row(), flush=True)
    return grown


def _measure(growing: Growing) -> Iterator[tuple[float, int]]:
    """The cost at each size; a first call at the smallest one is not counted."""
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        laboratory = _laboratory(Path(folder))
        growing.call(laboratory, growing.sizes[0])
        for size in growing.sizes:
            peak, begun = Peak([os.getpid()]), time.process_time()
            growing.call(laboratory, size)
            taken = time.process_time() - begun
            yield taken, peak.above()
            if taken > _TIMED_OUT:
                return


def _laboratory(folder: Path) -> Any:
    """A tiny model with a dictionary of features and a twin, and limits that let everything through."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from nnterp_mcp import Laboratory
    from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary
    from nnterp_mcp.settings import Settings
    from nnterp_mcp.verification.tiny import VOCABULARY, tiny_tokenizer
    from tools.train_dictionary import save_autoencoder

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    settings = Settings(max_prompts=max(PROMPTS), max_prompt_tokens=10_000_000)
    source = str(folder / "model")
    laboratory = Laboratory(
        source, settings=settings, others={"twin": {"model": source}}, on_progress=lambda told: None
    )
    encoder = torch.randn(256, config.hidden_size)
    made = Dictionary(encoder, encoder.clone(), torch.zeros(256), torch.zeros(config.hidden_size), Activation(k=8))
    save_autoencoder(made, folder / "dictionary", 1, source)
    laboratory.load_features("dictionary", str(folder / "dictionary"))
    return laboratory


if __name__ == "__main__":
    sys.exit(main())
