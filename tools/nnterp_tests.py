"""Runs nnterp's own tests, which its wheel carries, against this library's names, offline.

The wheel is unpacked into a folder of its own, where everything of it but the tests is replaced by modules that hand on
the names of `nnterp_mcp.nnterp.functions`. The models are tiny ones of the types that the tests name, under the names
that they use. Prints what passed and failed, and each failure's reason with the number of its cases.

Some tests load nnsight's own `LanguageModel` by a name, and read its `_model`. nnsight 0.8.1 finds no tokenizer for it
under transformers 5.23 unless the weights are read at once, and has `_module` instead. With `--mend-nnsight` both are
as they were, so that those tests reach this library's names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

from transformers.utils import logging

from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

NNTERP = "nnterp==1.3.0"
MODELS = {
    "gpt2": "gpt2",
    "bigscience/bigscience-small-testing": "bloom",
    "yujiepan/opt-tiny-2layers-random": "opt",
    "yujiepan/mixtral-8xtiny-random": "mixtral",
    "yujiepan/qwen1.5-moe-tiny-random": "qwen2_moe",
    "yujiepan/qwen3-moe-tiny-random": "qwen3_moe",
    "Maykeye/TinyLLama-v0": "llama",
    "axolotl-ai-co/gemma-3-34M": "gemma3_text",
    "yujiepan/gemma-tiny-random": "gemma",
    "yujiepan/llama-4-tiny-random": "llama4_text",
    "yujiepan/mistral-tiny-random": "mistral",
    "yujiepan/phi-3-tiny-random": "phi3",
    "yujiepan/phi-3.5-moe-tiny-random": "phimoe",
    "yujiepan/qwen2-tiny-random": "qwen2",
    "yujiepan/qwen3-tiny-random": "qwen3",
}
"""Names of models in nnterp's tests, and the type of the tiny model that stands under each."""

CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMES = "from nnterp_mcp.nnterp.functions import *\n"
MENDED = """
import nnsight

_load = nnsight.LanguageModel.__init__


def _load_at_once(self, *args, **kwargs):
    _load(self, *args, **{"dispatch": True, **kwargs})


nnsight.LanguageModel.__init__ = _load_at_once
nnsight.LanguageModel._model = property(lambda self: self._module)
"""
"""Lines under which nnsight's own class reads weights at once, and has the module under its former name."""

MODULES = {
    "__init__": "from nnterp_mcp import ModuleAccessor, StandardizedTransformer, get_rename_dict\n",
    **dict.fromkeys(
        ("nnsight_utils", "interventions", "prompt_utils", "rename_utils", "standardized_transformer"), NAMES
    ),
    "logging": "import logging\n\nlogger = logging.getLogger('nnterp')\n",
    "utils": "import torch\n\n\ndef dummy_inputs():\n    return {'input_ids': torch.tensor([[0, 1, 1]])}\n",
    "data/__init__": "",
}


def main() -> int:
    """Run the tests; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=list(MODELS.values()), choices=list(MODELS.values()))
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary folder by default")
    parser.add_argument("--wheel", type=Path, default=None, help="nnterp's wheel; downloaded by default")
    parser.add_argument("--mend-nnsight", action="store_true", help="let nnsight's LanguageModel work as it did")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest, after --")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nnterp-tests-"))
    names = [name for name, kind in MODELS.items() if kind in options.types]
    logging.disable_progress_bar()
    _lay_out(folder, options.wheel or _download(folder), names)
    if options.mend_nnsight:
        with (folder / "nnterp" / "__init__.py").open("a", encoding="utf-8") as file:
            file.write(MENDED)
    code = _run(folder, names, options.pytest)
    print(summarize(folder / "report.xml"))
    return code


def summarize(report: Path) -> str:
    """What passed and failed, with the reasons.

    Args:
        report: What pytest wrote, as JUnit XML.

    Returns:
        A line of totals, and a line for each reason with the number of cases, test and first line of the error.
    """
    outcomes: Counter[str] = Counter()
    reasons: Counter[tuple[str, str, str]] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        told = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if told is None else {"skipped": "skipped"}.get(told.tag, "failed")
        outcomes[outcome] += 1
        if told is not None:
            test = case.attrib["name"].split("[")[0]
            reasons[outcome, test, _reason(told.attrib.get("message", ""))] += 1
    lines = [", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))]
    lines += [
        f"{count:4} {outcome}  {test}: {reason}"
        for (outcome, test, reason), count in sorted(reasons.items(), key=lambda item: (item[0][0], -item[1]))
    ]
    return "\n".join(lines)


def _reason(message: str) -> str:
    """The first line of an error, or the last of a syntax error, without the names of the models."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [""]
    line = lines[-1 if lines[0].startswith("File ") else 0]
    for name in sorted(MODELS, key=len, reverse=True):
        line = re.sub(rf"(?<![\w/]){re.escape(name)}(?![\w/])", "MODEL", line)
    return line[:300]


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), NNTERP]
    subprocess.run(pip, check=True)
    return next(folder.glob("nnterp-*.whl"))


def _lay_out(folder: Path, wheel: Path, names: list[str]) -> None:
    """The package with nnterp's tests and this library's names, the models, and the tests' list of those."""
    with ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("nnterp/tests/")])
    for module, text in MODULES.items():
        path = folder / "nnterp" / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    available = {version("transformers"): {version("nnsight"): {"available_nn_models": names}}}
    (folder / "nnterp" / "data" / "test_loading_status.json").write_text(json.dumps(available), encoding="utf-8")
    for name in names:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder / name)
        tiny_model(MODELS[name]).save_pretrained(folder / name)


def _run(folder: Path, names: list[str], further: list[str]) -> int:
    here = os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml", *further]
    command = [*pytest, "nnterp/tests", "--model-names", *names]
    environment = {**os.environ, "PYTHONPATH": here, "HF_HUB_OFFLINE": "1"}
    with (folder / "pytest.log").open("w") as log:
        return subprocess.run(command, cwd=folder, env=environment, stdout=log, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
