"""Any Hugging Face causal LM under one set of names, on nnsight."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.attention import AttentionProbabilities
from nnterp_mcp.model.loading.finite_weights import first_pass
from nnterp_mcp.model.loading.former_checks import Findings, FormerChecks
from nnterp_mcp.model.loading.load_checks import check_attention, check_model
from nnterp_mcp.model.loading.sources import load_both
from nnterp_mcp.model.loading.trials import record_trials
from nnterp_mcp.model.loading.verdicts import Check
from nnterp_mcp.model.structure.anatomy_record import rebind
from nnterp_mcp.model.structure.attention_taps import watch
from nnterp_mcp.model.structure.call_recorder import Tape
from nnterp_mcp.model.structure.context_lengths import forget_longest
from nnterp_mcp.model.structure.names import bind_names
from nnterp_mcp.model.structure.rename import RenameConfig, read_names
from nnterp_mcp.model.structure.resolve import resolve
from nnterp_mcp.model.trace_edits import Indices, add_to_stream, leave_out_layers, name_columns
from nnterp_mcp.model.traced import TracedModel


class CheckedProbabilities(AttentionProbabilities):
    """Attention probabilities that can be verified layer by layer, as in nnterp."""

    model: StandardizedTransformer

    def check_source(self, layer: int = 0, allow_dispatch: bool = True, use_trace: bool = True) -> None:
        """Verify the shape and sums of one layer's probabilities in a short pass, and that editing them takes effect.

        Args:
            allow_dispatch: Accepted for code written for nnterp; the weights are there.
            use_trace: Accepted for code written for nnterp; the model always runs.

        Raises:
            Unsupported: A check fails.
        """
        for check in check_attention(self.model, layer):
            if not check.passed:
                raise Unsupported(f"attention probabilities of layer {layer} of {self.model.name}: {check.detail}")


class StandardizedTransformer(TracedModel):
    """A causal LM whose parts have the same names whatever its architecture.

    `embed_tokens`, `layers[i].self_attn`, `layers[i].mlp`, `ln_final` and `lm_head` are the modules;
    `layers_output[i]` and its like read and assign hidden states in a trace.

    Args:
        model: A Hub id, a local folder, or a loaded Hugging Face causal LM.
        trust_remote_code: Run modelling code that comes with the weights.
        check_renaming: Verify the model now, in two short forward passes (see `check`). What fails is refused
            later, with its reason.
        remote: Not offered yet: the weights are read onto this machine.
        allow_dispatch: Accepted for code written for nnterp; weights are always read at once.
        enable_attention_probs: Start with eager attention, under which probabilities can be read and edited.
        check_attn_probs_with_trace: Accepted for code written for nnterp; attention is always checked.
        allow_multimodal: Accepted for code written for nnterp; layers that do not run on text are told apart.
        rename_config: Which modules are which, where that cannot be told from the structure.
        tokenizer: The tokenizer; loaded from where the model came from by default.
        tokenizer_kwargs: Passed to the tokenizer's `from_pretrained`, and set on one that is loaded already: such as
            `{"padding_side": "right"}`, `{"add_prefix_space": False}`.
        name: What errors and cards call the model; by default its id, or its class.
        rename: Further names for modules, as nnsight's `rename`: from a module's own name to the one to add. A
            standard name says which module has it, as `rename_config` does.
        former: Former checks of the files that a loaded model was read from: where it is the same, it is not run.
        alike: A model of the same modules, whose anatomy this one takes; it is checked by itself.
        **kwargs: Passed to `from_pretrained`; `device_map` is "auto" by default. `attn_rename`, `mlp_rename` and the
            like, nnterp's former way to say what is in a `RenameConfig`, are understood.

    Raises:
        Unsupported: The model is no causal LM, it does not run, no list of layers through which hidden states run was
            found, or `remote` is set.
        UnknownModel: There is no such model, or what it computes is not finite.

    Attributes:
        name: What errors and cards call the model.
        anatomy: Its modules and layers, as they were resolved.
        rename_config: Which modules are which, as it was given.
        checks: What was verified when it was wrapped; empty without `check_renaming`.
        checked_before: That was at an earlier load of the same files.
    """

    checks: list[Check]
    checked_before: bool = False
    remote_calls: Mapping[str, Callable[..., Any]] = MappingProxyType({})
    """Functions of the engine that a served model replaces, by name; none for a local model."""

    def __init__(
        self,
        model: str | Path | nn.Module,
        trust_remote_code: bool = False,
        check_renaming: bool = True,
        remote: bool = False,
        allow_dispatch: bool = True,
        enable_attention_probs: bool | None = None,
        check_attn_probs_with_trace: bool = True,
        allow_multimodal: bool = False,
        rename_config: RenameConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        rename: Mapping[str, str | list[str]] | None = None,
        former: FormerChecks | None = None,
        alike: StandardizedTransformer | None = None,
        **kwargs: Any,
    ) -> None:
        if remote:
            raise Unsupported("remote=True is not offered: this class reads the weights onto this machine.")
        rename_config, aliases = read_names(rename_config, rename, kwargs)
        if enable_attention_probs is None:
            # As nnterp once did for a name: eager, so that probabilities can be read. What is in memory stays as it is.
            enable_attention_probs = not isinstance(model, nn.Module) and "attn_implementation" not in kwargs
        if enable_attention_probs and kwargs.setdefault("attn_implementation", "eager") != "eager":
            raise InvalidRequest(
                f"attn_implementation={kwargs['attn_implementation']!r} forms no attention probabilities: "
                "leave it out, or leave out enable_attention_probs."
            )
        loaded, tokenizer, former = load_both(
            model, tokenizer, trust_remote_code, kwargs, tokenizer_kwargs or {}, former
        )
        side = tokenizer.padding_side if "padding_side" in (tokenizer_kwargs or {}) else None
        if not loaded.can_generate():
            raise Unsupported(
                f"{type(loaded).__name__} is no causal LM: transformers gives it no generate().",
                "Load the weights with AutoModelForCausalLM.",
            )
        forget_longest(loaded)
        self.name = name or _name_of(model) or type(loaded).__name__
        if rename_config is not None or not check_renaming:
            former = None
        known = None if former is None else former.recall(loaded, tokenizer)
        tape = None if known else first_pass(loaded, self.name)
        if alike is not None:
            self.anatomy = rebind(alike.anatomy, loaded)
        else:
            self.anatomy = known.anatomy if known else resolve(loaded, tape, rename_config)
        self.checks = []
        self._refusals = {}
        self.rename_config = rename_config
        with warnings.catch_warnings():
            # BERT's modules named `output`: the standard names reach them whatever nnsight calls them.
            warnings.filterwarnings("ignore", message=".*which nnsight already serves on every module")
            options: dict[str, Any] = {"rename": aliases, **_placing(loaded)}
            super().__init__(loaded, tokenizer=tokenizer, task="text-generation", **options)
        bind_names(self, self.anatomy)
        if side is not None:
            # nnsight pads every causal LM on the left.
            self.tokenizer.padding_side = side
        for layer in self.anatomy.layers:
            if layer.core is not None:
                watch(layer.core.module, layer.score_product)
        if enable_attention_probs:
            self.set_attention("eager")
        if check_renaming:
            self._check(tape, known, former)

    def _check(self, tape: Tape | None, known: Findings | None, former: FormerChecks | None) -> None:
        """Verifies the model, unless a former load did."""
        if known is not None:
            self.checks, self.checked_before = known.checks, True
            self.refuse(known.refusals)
            self.pad_on(known.padding_side)
        else:
            self.checks = check_model(self, tape)
            if former is not None:
                former.keep(self)
        if former is not None and former.trials is not None:
            record_trials(self.module, former.trials)

    @property
    def attention_probabilities(self) -> CheckedProbabilities:
        """Each layer's attention probabilities, under eager attention."""
        return CheckedProbabilities(self)

    def skip_layer(self, layer: int, skip_with: Any = None) -> None:
        """Leave out one layer, inside a trace; see `skip_layers`."""
        leave_out_layers(self, layer, layer, skip_with)

    def skip_layers(
        self, start_layer: int, end_layer: int, skip_with: Any = None, layer_returns_tuple: bool | None = None
    ) -> None:
        """Leave out layers from the first to the last, inclusive, inside a trace.

        Args:
            start_layer: The first layer that does not run.
            end_layer: The last one.
            skip_with: What they give instead; by default what went into the first.
            layer_returns_tuple: Accepted for code written for nnterp; it is known.
        """
        leave_out_layers(self, start_layer, end_layer, skip_with)

    def steer(
        self,
        layers: int | list[int],
        steering_vector: Float[Tensor, " hidden"],
        factor: float = 1,
        positions: Indices | None = None,
        token_positions: Indices | None = None,
        batch_index: Indices | None = None,
    ) -> None:
        """Add `factor * steering_vector` to the residual stream after layers, inside a trace.

        Args:
            layers: The layers, in any order.
            steering_vector: What is added.
            factor: What it is multiplied by.
            positions: Deprecated, as in nnterp: the former name of `token_positions`.
            token_positions: Columns of the batch, padding counted; all by default.
            batch_index: Rows of the batch; all by default.

        Raises:
            InvalidRequest: Both names of the positions came, a layer does not exist, or the width is another.
        """
        add_to_stream(self, layers, steering_vector, factor, name_columns(positions, token_positions), batch_index)

    @cached_property
    def add_prefix_false_tokenizer(self) -> PreTrainedTokenizerBase:
        """The same tokenizer with `add_prefix_space=False`, loaded from its source."""
        return AutoTokenizer.from_pretrained(self.tokenizer.name_or_path, add_prefix_space=False)

    @property
    def attn_probs_available(self) -> bool:
        """True if attention probabilities can be read now."""
        return self.attention_probabilities.enabled and self.can("attention")


def _placing(model: nn.Module) -> dict[str, str]:
    """Leaves a model that has no weights where it is; nnsight would move it to a device."""
    weights = {parameter.device.type for parameter in model.parameters()}
    return {"device": "meta"} if weights == {"meta"} and not hasattr(model, "hf_device_map") else {}


def _name_of(model: str | Path | nn.Module) -> str:
    return str(getattr(model, "name_or_path", "")) if isinstance(model, nn.Module) else str(model)
