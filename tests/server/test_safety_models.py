"""What may be loaded and read: each promise of SECURITY.md about models, files and handles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nnterp_mcp.errors import Forbidden, InvalidRequest, NnterpError, UnknownModel, Unsupported
from nnterp_mcp.request.access import admit_model, allowed_file
from nnterp_mcp.request.vectors import ModelIdentity
from nnterp_mcp.runs.vectors import VectorStore
from tests.serving import Caller, stdio, text

HOSTILE = [
    "../../etc/passwd",
    "..",
    "/etc/passwd",
    "a/../../b",
    "a\0b",
    "..\\..\\windows",
    "\\\\host\\share",
    "C:\\x",
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}\N{FULLWIDTH SOLIDUS}etc",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.x",
    "con",
    "~",
    "%2e%2e%2f",
    "x" * 5000,
    ".safetensors",
]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "a pickle was opened"))


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    """The file that a bomb writes; a pickle would do it."""
    crater = tmp_path / "crater"
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists()
    crater.unlink()
    return crater


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pickles that anything in this process opens, also one that refuses to run them."""
    import torch

    opened: list[str] = []

    def load(file: Any, **options: Any) -> dict[str, Any]:
        opened.append(str(file))
        return {}

    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(pickle, "load", load)
    monkeypatch.setattr(pickle, "loads", load)
    return opened


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A model to spoil, in a folder of its own."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "allowed" / "spoilt"))


def bomb(path: Path, crater: Path) -> None:
    path.write_bytes(pickle.dumps({"lm_head.weight": Bomb(crater)}))


def as_bin(folder: Path, crater: Path) -> Path:
    (folder / "model.safetensors").unlink()
    bomb(folder / "pytorch_model.bin", crater)
    return folder


def as_gguf(folder: Path, crater: Path) -> Path:
    bomb(folder / "model.gguf", crater)
    return folder / "model.gguf"


def as_gguf_folder(folder: Path, crater: Path) -> Path:
    (folder / "config.json").unlink()
    bomb(folder / "model.gguf", crater)
    return folder


def as_safetensors(folder: Path, crater: Path) -> Path:
    bomb(folder / "model.safetensors", crater)
    return folder


def in_index(folder: Path, crater: Path, shard: str = "pytorch_model-1.bin") -> Path:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    bomb(folder / "pytorch_model-1.bin", crater)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard, "model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def in_another_folder(folder: Path, crater: Path) -> Path:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    return in_index(folder, crater, "../outside.safetensors")


def in_configuration(folder: Path, crater: Path) -> Path:
    bomb(folder / "adapter_model.bin", crater)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    return folder


def as_adapter(folder: Path, crater: Path) -> Path:
    bomb(folder / "adapter_model.bin", crater)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc", "peft_type": "LORA"}))
    return folder


def as_tokenizer(folder: Path, crater: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "tokenizer_config.json"):
        bomb(folder / name, crater)
    return folder


@pytest.mark.parametrize(
    ("arrange", "error", "said"),
    [
        (as_bin, Forbidden, "has its weights only as pickle (pytorch_model.bin), which can run code"),
        (as_gguf, NnterpError, "GGUF"),
        (as_gguf_folder, NnterpError, "GGUF"),
        (as_safetensors, UnknownModel, "safetensors"),
        (in_index, Forbidden, "names 'pytorch_model-1.bin', which is no safetensors file"),
        (in_another_folder, Forbidden, "names '../outside.safetensors', which lies in another folder"),
        (in_configuration, Forbidden, "names 'adapter_model.bin', which is no safetensors file"),
        (as_adapter, Unsupported, "is an adapter (LORA) of the base model '/etc', and no model by itself"),
        (as_tokenizer, UnknownModel, "tokenizer"),
    ],
)
def test_no_pickle_is_opened(
    arrange: Callable[[Path, Path], Path],
    error: type[NnterpError],
    said: str,
    folder: Path,
    crater: Path,
    unpickled: list[str],
) -> None:
    from nnterp_mcp.model.loading.load import Precision, read_model
    from nnterp_mcp.model.loading.locate import locate

    model = arrange(folder, crater)
    with pytest.raises(error) as caught:
        read_model(locate(str(model), None, folder, False, print), Precision(), "cpu", "auto", False, print)

    assert said in caught.value.message
    assert unpickled == []
    assert not crater.exists()


def test_the_library_opens_none_either(folder: Path, crater: Path, unpickled: list[str]) -> None:
    from nnterp_mcp.model.standardized import StandardizedTransformer

    with pytest.raises(Forbidden, match="is no safetensors file"):
        StandardizedTransformer(str(in_index(folder, crater)))
    assert unpickled == []


def test_without_the_check_the_pickle_of_an_index_would_be_opened(
    folder: Path, crater: Path, unpickled: list[str]
) -> None:
    """What the check is for: `use_safetensors=True` chooses the index, and transformers follows what it names."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(in_index(folder, crater), use_safetensors=True)
    assert [Path(path).name for path in unpickled] == ["pytorch_model-1.bin"]


@pytest.fixture(scope="module")
def places(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An allowed folder with a model and links, beside one that is not allowed."""
    root = tmp_path_factory.mktemp("places")
    for name in ("allowed/good", "outside/secret"):
        shutil.copytree(tiny("llama"), root / name)
    allowed = root / "allowed"
    (allowed / "link").symlink_to(allowed / "good")
    (allowed / "escape").symlink_to(root / "outside" / "secret")
    (allowed / "mixed").mkdir()
    for file in (allowed / "good").iterdir():
        (allowed / "mixed" / file.name).symlink_to(
            root / "outside" / "secret" / file.name if file.suffix == ".safetensors" else file
        )
    (allowed / "loop").symlink_to(allowed / "loop")
    os.mkfifo(allowed / "pipe.gguf")
    (allowed / "piped").mkdir()
    os.mkfifo(allowed / "piped" / "config.json")
    (root / "outside" / "prompts.jsonl").write_text('"a"\n')
    (allowed / "prompts.jsonl").symlink_to(root / "outside" / "prompts.jsonl")
    return root


@pytest.fixture(scope="module")
def client(places: Path) -> Generator[Caller]:
    patterns = json.dumps([f"{places}/*", "allowed-org/*"])
    with stdio(folders=json.dumps([str(places / "allowed")]), allowed_models=patterns) as caller:
        yield caller


REFUSED = {
    "outside": ("{root}/outside/secret", "forbidden"),
    "up and out": ("{root}/allowed/../outside/secret", "forbidden"),
    "relative and out": ("./../outside/secret", "forbidden"),
    "a link out": ("{root}/allowed/escape", "forbidden"),
    "a file that is a link out": ("{root}/allowed/mixed", "forbidden"),
    "nothing outside": ("{root}/outside/nothing", "forbidden"),
    "nothing inside": ("{root}/allowed/nothing", "unknown_model"),
    "the root": ("/", "forbidden"),
    "home": ("~", "forbidden"),
    "nobody's home": ("~nobody-of-this-name/x", "invalid_request"),
    "a NUL byte": ("{root}/allowed/good\0", "forbidden"),
    "a share": ("\\\\host\\share\\model", "forbidden"),
    "a share, the other way": ("//host/share/model", "forbidden"),
    "a device": ("/dev/zero", "forbidden"),
    "a pipe": ("{root}/allowed/pipe.gguf", "unknown_model"),
    "a pipe for a configuration": ("{root}/allowed/piped", "unknown_model"),
    "a loop": ("{root}/allowed/loop", "invalid_request"),
    "too long for a file": ("/" + "x" * 1000, "forbidden"),
    "too long": ("/" + "x" * 5000, "invalid_request"),
    "another organisation": ("openai-community/gpt2", "forbidden"),
    "the built-in model, unless allowed": ("smollm2-135m", "forbidden"),
    "a pattern and then up": ("allowed-org/../../secret", "forbidden"),
    "an URL": ("file:///etc/passwd", "unknown_model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_outside_of_the_folders_and_patterns_are_refused(kind: str, client: Caller, places: Path) -> None:
    name, code = REFUSED[kind]
    answer = client.call("load_model", model=name.format(root=places))

    assert answer.is_error
    assert text(answer).startswith(f"{code}: "), text(answer)
    assert client.workers() == []


def test_the_refusals_say_what_to_do(client: Caller, places: Path) -> None:
    assert text(client.call("load_model", model=f"{places}/outside/secret")).endswith(
        f"lies outside of the folders from which models are loaded ({places}/allowed)\n"
        "Whoever starts the server allows a folder with --folder."
    )
    assert text(client.call("load_model", model="openai-community/gpt2")) == (
        f"forbidden: this server does not load 'openai-community/gpt2': it allows {places}/*, allowed-org/*\n"
        "Whoever starts the server allows more with --allow-model."
    )


def test_a_model_below_an_allowed_folder_is_loaded_by_any_of_its_names(client: Caller, places: Path) -> None:
    answers = [client.call("load_model", model=name) for name in (f"{places}/allowed/link", "./good", "./x/../good")]

    assert [answer.structured_content["model"] for answer in answers] == ["good"] * 3
    assert len(client.workers()) == 1
    for name in (f"{places}/outside/prompts.jsonl", "../outside/prompts.jsonl", "prompts.jsonl", "a\0", "//h/s"):
        refused = client.call("run_prompts", prompts={"path": name}, targets={"a": "b"})
        assert text(refused).startswith("forbidden: "), text(refused)
    client.call("unload_model")


def test_by_default_no_local_model_is_loaded(tiny: Callable[..., Path]) -> None:
    with stdio(folders="[]") as caller:
        answer = caller.call("load_model", model=str(tiny("llama")))

        assert text(answer).startswith("forbidden: ")
        assert "from which models are loaded (none)" in text(answer)
        assert "--folder" in text(answer)


def test_the_servers_working_folder_is_nobodys_business(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnterp_mcp.model.loading.locate import locate

    monkeypatch.chdir(tiny("llama").parent)
    assert locate("tiny-llama", None, tmp_path, False, print).folder == Path("tiny-llama")
    with pytest.raises(UnknownModel):
        locate("tiny-llama", None, tmp_path, False, print, relative=False)


names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=60),
    st.lists(st.sampled_from(["..", ".", "", "a", "good", "~", "\0", "allowed", "outside"]), max_size=6).map("/".join),
)


@given(names)
@example("good")
@example("./good")
def test_whatever_is_admitted_is_a_name_or_lies_inside(places: Path, name: str) -> None:
    folders = [places / "allowed"]
    try:
        admitted = admit_model(name, ["*"], folders)
    except NnterpError:
        return
    if admitted != name:
        assert Path(admitted).is_relative_to(folders[0].resolve())
        assert Path(admitted).exists()
    else:
        assert not Path(name).is_absolute()
        assert name.count("/") < 2


@given(names)
def test_whatever_file_is_read_lies_inside(places: Path, name: str) -> None:
    folders = [places / "allowed"]
    with suppress(Forbidden, InvalidRequest):
        assert allowed_file(name, folders).is_relative_to(folders[0].resolve())


@given(names)
@example("con.x")
def test_a_vectors_name_is_never_a_path(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.mktemp("store")
    (root / "vectors").mkdir()
    (root / "keep.safetensors").write_text("")
    store = VectorStore(root / "vectors")
    identity = ModelIdentity(architecture="A/../../B", hidden_size=1, fingerprint="f")

    for use in (store.load, store.find, store.delete):
        with pytest.raises(InvalidRequest):
            use(name, identity, "model")
    assert sorted(path.name for path in root.rglob("*")) == ["keep.safetensors", "vectors"]
    shutil.rmtree(root)


@pytest.mark.parametrize("name", HOSTILE)
def test_handles_that_were_never_minted_are_refused(name: str, client: Caller) -> None:
    tries: list[tuple[str, dict[str, Any]]] = [
        ("tokenize", {"prompts": "a", "model": name}),
        ("unload_model", {"model": name}),
        ("steer", {"prompts": "a", "vector": name, "layers": 1, "factors": 1}),
        ("make_vector", {"name": name, "method": "difference", "positive": "a", "negative": "b"}),
        ("read_run", {"run_id": name}),
        ("cancel_run", {"run_id": name}),
    ]
    for tool, arguments in tries:
        answer = client.call(tool, **arguments)
        assert answer.is_error, (tool, text(answer))
        assert text(answer).split(":")[0] in ("invalid_request", "no_model", "unknown_model", "forbidden"), text(answer)


def test_a_revision_is_never_a_path(client: Caller) -> None:
    """The Hub's cache joins it to a path."""
    for revision in ("../../../etc", "/etc", "a/../b", "a\\b", "a\0", ""):
        said = text(client.call("load_model", model="allowed-org/x", revision=revision))
        assert said.startswith("invalid_request: revision must be a branch, tag or commit"), said
