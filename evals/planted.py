"""Tiny models whose mechanism is known because their weights are set by hand: Llamas of two or four layers of attention
alone.

Every word is a token. The residual stream has a block of dimensions for the word itself, one for the word before it
and one for the word to predict, which alone the head of the model reads; a constant; and some for attributes of words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evals.planted_adapters import save_adapters, silence

WORDS = ("start", "red", "blue", "gold", "pink", "one", "two", "six", "ten", "cat", "dog", "fox", "owl", "hot", "cold")
WARM, COOL = ("red", "gold"), ("blue", "pink")
FEW, MANY = ("one", "two"), ("six", "ten")

_COUNT = len(WORDS)
_ITSELF, _BEFORE, _NEXT = 0, _COUNT, 2 * _COUNT
_CONSTANT, COLOUR, AMOUNT = 3 * _COUNT, 3 * _COUNT + 1, 3 * _COUNT + 2
DICTIONARY = "dictionary"
"""A folder in that of `planted-attributes`."""

_FEATURES = 12
_ATTRIBUTES = {2: (AMOUNT, 1.0), 5: (COLOUR, -1.0), 7: (COLOUR, 1.0), 10: (AMOUNT, -1.0)}
"""The features of attributes, with the dimension that each reads and writes, and its sign."""

_HEADS, _HEAD_WIDTH, _WIDTH = 4, 64, 64
_TURNING, _STILL = 2, 12
"""The pairs of a head's dimensions that positions turn visibly, and the first of those that they hardly turn."""
_THETA = 1e12

Plant = Callable[[Any], None]


def save_planted(folder: Path) -> dict[str, Path]:
    """Saves every planted model in a folder of its own, and returns these by the models' names."""
    folders: dict[str, Path] = {}
    for name, plant in PLANTS.items():
        folders[name] = folder / name
        if not (folders[name] / "model.safetensors").exists():
            model = _random(**_RANDOM[name]) if name in _RANDOM else _empty(**_LARGER if name in _LARGE else {})
            plant(model)
            model.save_pretrained(folders[name])
            _tokenizer().save_pretrained(folders[name])
            if name == "planted-tuned":
                save_adapters(model, _tokenizer(), folders[name])
    _save_dictionary(folders["planted-attributes"] / DICTIONARY)
    return folders


def planted_features() -> tuple[Tensor, Tensor]:
    """The rows (feature, width), encoder and decoder alike, and thresholds of a sparse autoencoder of the attributes.

    It reads the residual stream after layer 0 of `planted-attributes`. Two features are active for colours, one of each
    sign, two for amounts, the others for words and the constant.
    """
    rows = torch.zeros(_FEATURES, _WIDTH)
    for feature, (attribute, sign) in _ATTRIBUTES.items():
        rows[feature, attribute] = sign
    for feature in range(_FEATURES):
        if feature not in _ATTRIBUTES:
            rows[feature, _ITSELF + feature] = 1.0
    return rows, torch.full((_FEATURES,), 0.5)


def _save_dictionary(folder: Path) -> None:
    """Saves it in SAELens' layout."""
    rows, thresholds = planted_features()
    folder.mkdir(exist_ok=True)
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "threshold": thresholds}
    tensors |= {"b_enc": torch.zeros(_FEATURES), "b_dec": torch.zeros(_WIDTH)}
    save_file(tensors, folder / "sae_weights.safetensors")
    metadata = {"hook_name": "blocks.0.hook_resid_post"}
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))


def _config(**changed: Any) -> LlamaConfig:
    given: dict[str, Any] = {
        "vocab_size": _COUNT,
        "hidden_size": _WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HEAD_WIDTH,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": _THETA},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaConfig(**given | changed)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer: Any = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=WORDS[0], pad_token=WORDS[0])


@torch.no_grad()
def _empty(**changed: Any) -> Any:
    """A model that knows the words and does nothing: all that it predicts is even."""
    model: Any = LlamaForCausalLM(_config(**changed)).eval()
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    embedding = model.get_input_embeddings().weight
    for at in range(_COUNT):
        embedding[at, _ITSELF + at] = 4.0
        embedding[at, _CONSTANT] = 4.0
        model.lm_head.weight[at, _NEXT + at] = 1.0
    return model


def _random(**changed: Any) -> Any:
    torch.manual_seed(18)
    return LlamaForCausalLM(_config(initializer_range=0.25, **changed)).eval()


def _columns(head: int) -> slice:
    return slice(head * _HEAD_WIDTH, (head + 1) * _HEAD_WIDTH)


def _attention(model: Any, layer: int) -> Any:
    return model.model.layers[layer].self_attn


def _look_back(model: Any, layer: int, head: int, distance: int, sharpness: float = 60.0) -> None:
    """Has a head attend so many positions back: keys are constant, and queries are turned by the distance."""
    part = _attention(model, layer)
    rows = _columns(head)
    frequencies = _THETA ** (-2.0 * torch.arange(_TURNING) / _HEAD_WIDTH)
    strength = (sharpness / _TURNING) ** 0.5
    query, key = part.q_proj.weight[rows], part.k_proj.weight[rows]
    query[:_TURNING, _CONSTANT] = strength * torch.cos(-distance * frequencies)
    query[_HEAD_WIDTH // 2 : _HEAD_WIDTH // 2 + _TURNING, _CONSTANT] = strength * torch.sin(-distance * frequencies)
    key[:_TURNING, _CONSTANT] = strength


def _look_for(model: Any, layer: int, head: int, query: Tensor, key: Tensor) -> None:
    """Has a head attend where its keys match its queries, both read from the residual stream: (feature, width)."""
    part, rows = _attention(model, layer), _columns(head)
    at = slice(_STILL, _STILL + len(query))
    part.q_proj.weight[rows][at] = query
    part.k_proj.weight[rows][at] = key


def _move(model: Any, layer: int, head: int, read: int, write: int, factor: float) -> None:
    """Has a head move a block of words from the position that it attends to."""
    part, columns = _attention(model, layer), _columns(head)
    for word in range(_COUNT):
        part.v_proj.weight[columns][word, read + word] = 1.0
        part.o_proj.weight[write + word, columns.start + word] = factor


def _block(start: int, factor: float) -> Tensor:
    found = torch.zeros(_COUNT, _WIDTH)
    found[:, start : start + _COUNT] = factor * torch.eye(_COUNT)
    return found


def _constant(factor: float) -> Tensor:
    found = torch.zeros(1, _WIDTH)
    found[0, _CONSTANT] = factor
    return found


def _words(words: Sequence[str], factor: float) -> Tensor:
    found = torch.zeros(1, _WIDTH)
    for word in words:
        found[0, _ITSELF + WORDS.index(word)] = factor
    return found


@torch.no_grad()
def _plant_induction(model: Any) -> None:
    """L0H2 moves each word to the next position, L1H1 finds the position whose word before is this one and copies it;
    L0H0 and L1H3 look back by other distances and write next to nothing."""
    _look_back(model, 0, 2, 1)
    _move(model, 0, 2, _ITSELF, _BEFORE, 4.0)
    _look_for(model, 1, 1, _block(_ITSELF, 6.0), _block(_BEFORE, 6.0))
    _move(model, 1, 1, _ITSELF, _NEXT, 4.0)
    _look_back(model, 0, 0, 2)
    _move(model, 0, 0, _ITSELF, _NEXT, 0.2)
    _look_back(model, 1, 3, 1)
    _move(model, 1, 3, _ITSELF, _NEXT, 0.3)


@torch.no_grad()
def _plant_suppressor(model: Any) -> None:
    """L0H1 finds the animal and predicts it, L1H3 finds the same and lowers its logit; L1H0 attends to it more than
    either and writes nothing that is read, and L0H3 predicts the last word a little."""
    animals = ("cat", "dog", "fox", "owl")
    for layer, head, sharpness, factor in ((0, 1, 1.0, 1.0), (1, 3, 10.0, -0.6)):
        _look_for(model, layer, head, _constant(sharpness), _words(animals, 1.0))
        _move(model, layer, head, _ITSELF, _NEXT, factor)
    _look_for(model, 1, 0, _constant(60.0), _words(animals, 1.0))
    _move(model, 1, 0, _ITSELF, _BEFORE, 0.5)
    _look_back(model, 0, 3, 1)
    _move(model, 0, 3, _ITSELF, _NEXT, 0.4)


@torch.no_grad()
def plant_attributes(model: Any) -> None:
    """The colour of a word makes the model say hot or cold; that it is few or many, written twice as large, is read by
    nothing."""
    embedding = model.get_input_embeddings().weight
    for at, word in enumerate(WORDS):
        embedding[at, COLOUR] = 2.0 * (word in WARM) - 2.0 * (word in COOL)
        embedding[at, AMOUNT] = 4.0 * (word in MANY) - 4.0 * (word in FEW)
    model.lm_head.weight[WORDS.index("hot"), COLOUR] = 0.5
    model.lm_head.weight[WORDS.index("cold"), COLOUR] = -0.5
    for head, attribute in ((0, COLOUR), (2, AMOUNT)):
        part, columns = _attention(model, 0), _columns(head)
        part.v_proj.weight[columns][0, attribute] = 1.0
        part.o_proj.weight[attribute, columns.start] = 6.0


@torch.no_grad()
def _plant_pairs(model: Any) -> None:
    """Each word is followed by a certain other one, so that a repeated text looks as if it were copied."""
    follows = ("red", "fox", "one", "dog", "blue", "gold")
    for word, other in pairwise(follows):
        model.lm_head.weight[WORDS.index(other), _ITSELF + WORDS.index(word)] = 1.0
    for layer, head, distance in ((0, 1, 1), (0, 3, 0), (1, 0, 2), (1, 2, 1)):
        _look_back(model, layer, head, distance)
        _move(model, layer, head, _ITSELF, _BEFORE, 1.0)


def _distract(model: Any, used: Sequence[tuple[int, int]], seed: int) -> None:
    """Has some of the other heads look back by some distance and predict what they find a little."""
    dice = random.Random(seed)
    for layer in range(len(model.model.layers)):
        for head in range(_LARGER["num_attention_heads"]):
            if (layer, head) not in used and dice.random() < _BUSY:
                _look_back(model, layer, head, dice.randrange(4))
                _move(model, layer, head, _ITSELF, _NEXT, dice.choice((-1, 1)) * dice.uniform(0.02, 0.3))


@torch.no_grad()
def plant_copying(model: Any, early: tuple[int, int], late: tuple[int, int], seed: int) -> None:
    """One head moves each word to the next position, and a later one finds the position whose word before is this one
    and copies it; others do little."""
    _look_back(model, *early, 1)
    _move(model, *early, _ITSELF, _BEFORE, 4.0)
    _look_for(model, *late, _block(_ITSELF, 6.0), _block(_BEFORE, 6.0))
    _move(model, *late, _ITSELF, _NEXT, 4.0)
    _distract(model, (early, late), seed)


def _plant_echo(model: Any) -> None:
    """L1H5 and L3H2 copy."""
    plant_copying(model, (1, 5), (3, 2), seed=1)


def make_large(plant: Plant) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model of four layers of eight heads with a mechanism, and its tokenizer."""
    model = _empty(**_LARGER)
    plant(model)
    return model, _tokenizer()


@torch.no_grad()
def _plant_parrot(model: Any) -> None:
    """L2H6 copies the word four positions back. L1H3 and L3H1 attend as heads that copy what came next do, and what
    L3H1 writes is read by nothing."""
    _look_back(model, 2, 6, 4)
    _move(model, 2, 6, _ITSELF, _NEXT, 4.0)
    _look_back(model, 1, 3, 1)
    _move(model, 1, 3, _ITSELF, _BEFORE, 4.0)
    _look_for(model, 3, 1, _block(_ITSELF, 6.0), _block(_BEFORE, 6.0))
    _move(model, 3, 1, _ITSELF, _BEFORE, 4.0)
    _distract(model, ((2, 6), (1, 3), (3, 1)), seed=2)


_LARGER = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
"""The shape of models with enough heads for a claim about some to be compared with others."""

_RANDOM: dict[str, dict[str, Any]] = {"planted-random": {}, "planted-tuned": {"num_hidden_layers": 4}}
"""The models of random weights, and what is not as usual about their shape."""

_LARGE = ("planted-echo", "planted-parrot")
_BUSY = 0.6
"""The share of the other heads of these that do something."""

PLANTS: dict[str, Plant] = {
    "planted-copier": _plant_induction,
    "planted-speaker": _plant_suppressor,
    "planted-attributes": plant_attributes,
    "planted-pairs": _plant_pairs,
    "planted-random": lambda model: None,
    "planted-tuned": silence,
    "planted-echo": _plant_echo,
    "planted-parrot": _plant_parrot,
}
"""Adds its mechanism to a model that has none, by the model's name, which does not give it away."""
