"""The examples of every tool, and calls with a value of each kind that parameters take."""

from __future__ import annotations

from typing import Any

from nnterp_mcp.toolset import specs

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Paris"}]
OPERATIONS: list[dict[str, Any]] = [
    {"op": "add", "layers": [1, -1], "vector": {"positive": " a", "negative": " b"}, "factor": 2, "prompts": [0]},
    {"op": "add", "layers": 0, "vector": [1.5, 2.5], "positions": [0, "last", {"text": "a", "occurrence": 1}]},
    {"op": "scale", "layers": 3, "factor": 1, "site": "mlps_output", "neurons": [0, 1], "steps": [0, 2]},
    {"op": "mean", "layers": "0:2", "site": "keys", "heads": [0, 1], "over": ["a b", "c d"], "over_positions": [1]},
    {"op": "patch", "layers": 1, "positions": [2], "from": {"prompt": 0, "position": [1], "layer": 2}},
    {"op": "patch", "layers": 1, "from": {"prompt": CHAT, "position": {"turn": 1, "part": "after"}}},
    {"op": "knockout", "layers": [1], "heads": 0, "query_positions": [3], "key_positions": {"turn": 0}},
    {"op": "set_attention", "layers": [0], "heads": "all", "pattern": [[1, 0], [0, 1]]},
]
PROMPTS = {"prompts": ["a", "b c"]}
CALLS: list[tuple[str, dict[str, Any]]] = [
    *((tool, dict(example)) for tool, spec in specs().items() for example in spec.examples),
    ("attention_probs", PROMPTS | {"layers": [0, 2], "heads": [1], "query_positions": [0, 1], "top_k": 4}),
    ("attention_probs", PROMPTS | {"heads": 1, "query_positions": {"text": "a"}, "interventions": OPERATIONS}),
    ("attribute", {"prompts": CHAT, "targets": {"x": ["a"], "y": "b"}, "method": "integrated", "steps": 8}),
    ("attribute", PROMPTS | {"targets": [{"x": "a"}, {"x": "b"}], "layers": 1, "top_k": 3}),
    ("collect_activations", {"prompts": {"x": ["a"], "y": [CHAT]}, "layers": [1], "positions": [0, 1]}),
    ("collect_activations", {"prompts": CHAT, "site": "keys", "interventions": OPERATIONS[:1]}),
    ("edit_model", {"interventions": OPERATIONS}),
    ("features", {"dictionary": "d", "prompts": {"x": ["a"], "y": [CHAT]}, "layer": 3, "positions": "1:3"}),
    ("features", {"dictionary": "d", "features": [3, 5], "interventions": OPERATIONS[:1]}),
    ("generate", {"prompts": [CHAT], "max_new_tokens": 3, "top_k": 5, "seed": 7, "interventions": OPERATIONS}),
    ("inspect_model", {"path": "layers[1]", "source": True, "start": 3}),
    ("load_features", {"name": "d", "source": "a/b/c", "layers": "1:3", "site": "mlps_input"}),
    ("load_model", {"model": "smollm2-135m", "dtype": "float32"}),
    ("logit_lens", PROMPTS | {"layers": [0, -1], "positions": [{"turn": 1, "role": "user"}], "targets": {"x": ["a"]}}),
    ("make_vector", {"name": "v", "method": "mean_difference", "positive": ["a"], "negative": ["b"], "layers": [1]}),
    ("patch_activations", {"clean": ["a"], "corrupted": ["b"], "sites": ["queries"], "heads": [0, 1], "window": 2}),
    ("patch_activations", {"clean": "a", "corrupted": {"noise": 3, "positions": [3], "samples": 4}, "layers": 2}),
    (
        "patch_activations",
        {
            "clean": CHAT,
            "corrupted": {"replace": "a", "with": "b"},
            "positions": {"x": {"clean": 2, "corrupted": [1, 2]}},
            "receivers": [{"site": "queries", "layers": [9], "heads": 6}],
        },
    ),
    ("patchscope", {"source_prompts": ["a"], "source_positions": [1], "source_layers": [2], "target_layers": [3]}),
    ("patchscope", {"source_vectors": ["v", "w"], "factor": 2, "target_prompt": CHAT, "target_position": -2}),
    ("read_run", {"run_id": "a-1", "where": {"layer": [3, 4]}, "columns": ["layer"], "offset": 2, "limit": 5}),
    ("run_prompts", {"prompts": [{"prompt": "a", "targets": {"x": ["a"]}}], "layers": [1], "batch_tokens": 64}),
    ("run_prompts", {"prompts": {"path": "a.csv"}, "readout": "logit_lens"}),
    ("steer", PROMPTS | {"vector": [1.5, 2.5], "layers": [1, 2], "factors": [1, 2], "max_new_tokens": 2}),
    ("steer", PROMPTS | {"vector": {"positive": "a", "negative": "b"}, "layers": 1, "factors": 2}),
    ("tokenize", {"prompts": [CHAT, CHAT], "chat": True}),
    ("train_probe", {"prompts": {"x": ["a", "b"], "y": ["c"]}, "folds": 3, "shuffles": 2, "layers": [0, 1]}),
]
