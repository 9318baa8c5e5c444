from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from nnterp_mcp.errors import NoModel
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.pool.messages import Call, Failure, Reply
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.tokenize import run as tokenize
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from nnterp_mcp.worker.benches import Benches
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.main import _answer, _translate
from nnterp_mcp.worker.workbench import Bench


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
)
def test_memory_that_ran_out(error: Exception) -> None:
    translated = _translate(error)

    assert translated.code == "out_of_memory"
    assert translated.message == "the call did not fit the memory"


def test_a_fault_of_ours_stays_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("secret")
    except KeyError as error:
        translated = _translate(error)

    found = re.fullmatch(r"an unexpected KeyError in the worker \(log id (\w{8})\)", translated.message)
    assert found
    log = capfd.readouterr().err
    assert f"[{found.group(1)}]" in log
    assert "KeyError: 'secret'" in log


def panicking() -> PreTrainedTokenizerFast:
    """A tokenizer whose library gives up on what begins with "z" and reads all else."""
    written = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    written["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(?=z)"}, "content": "x"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(written)), pad_token="<pad>")
    with pytest.raises(BaseException, match="out of bounds") as caught:
        tokenizer("z")
    assert not isinstance(caught.value, Exception)
    return tokenizer


@pytest.mark.parametrize(
    ("tool", "params"),
    [("tokenize", {"prompts": ["Q", "z"]}), ("logit_lens", {"prompts": "Q", "targets": {"one": "z"}})],
)
def test_a_text_over_which_the_tokenizer_panics_is_refused(tool: str, params: dict[str, Any]) -> None:
    bench = Bench("tiny", Settings())
    bench.place(StandardizedTransformer(tiny_model("llama"), tokenizer=panicking(), name="tiny"))
    failure = _answer(Benches(bench), Call(id=1, tool=tool, params=params), Job(1, [].append))

    assert isinstance(failure, Failure)
    assert failure.error.code == "invalid_request"
    assert failure.error.message == "the tokenizer cannot read 'z' (PanicException)"


def test_a_panic_ends_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("tiny", Settings())
    bench.place(StandardizedTransformer(tiny_model("llama"), tokenizer=panicking(), name="tiny"))
    sent: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(tokenize, "run", lambda bench, params, job: bench.model.tokenizer("z"))
        failure = _answer(Benches(bench), Call(id=1, tool="tokenize", params={"prompts": "Q"}), Job(1, sent.append))

    assert isinstance(failure, Failure)
    assert failure.error.code == "unsupported"
    again = _answer(Benches(bench), Call(id=2, tool="tokenize", params={"prompts": "Q"}), Job(2, sent.append))
    assert isinstance(again, Reply)


def test_a_panic_anywhere_is_told_as_what_it_is() -> None:
    with pytest.raises(BaseException, match="out of bounds") as caught:
        panicking()("z")
    translated = _translate(caught.value)

    assert translated.code == "unsupported"
    assert translated.message.startswith("a library under the model, its tokenizer perhaps, gave up: 'index out of")


def test_what_ends_a_process_ends_a_call(capfd: pytest.CaptureFixture[str]) -> None:
    """Modelling code that comes with a model may call `sys.exit`."""
    translated = _translate(SystemExit(3))

    assert translated.message.startswith("an unexpected SystemExit in the worker")
    assert "SystemExit: 3" in capfd.readouterr().err


def test_an_empty_bench_says_so() -> None:
    with pytest.raises(NoModel, match="tiny is not loaded yet"):
        _ = Bench("tiny", Settings()).model
