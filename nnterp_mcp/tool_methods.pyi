"""The tools as methods, for type checkers: written by tools/stubs.py from the specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any, Literal

from nnterp_mcp.contract import Result, ToolSpec
from nnterp_mcp.toolset.attention_probs.result import AttentionProbsResult
from nnterp_mcp.toolset.attribute.result import AttributeResult
from nnterp_mcp.toolset.collect_activations.result import CollectActivationsResult
from nnterp_mcp.toolset.compare_models.result import CompareModelsResult
from nnterp_mcp.toolset.features.result import FeaturesResult
from nnterp_mcp.toolset.find_circuit.result import FindCircuitResult
from nnterp_mcp.toolset.fit_lens.result import FitLensResult
from nnterp_mcp.toolset.generate.result import GenerateResult
from nnterp_mcp.toolset.inspect_model.result import InspectModelResult
from nnterp_mcp.toolset.load_features.result import LoadFeaturesResult
from nnterp_mcp.toolset.logit_lens.result import LogitLensResult
from nnterp_mcp.toolset.make_vector.result import MakeVectorResult
from nnterp_mcp.toolset.patch_activations.result import PatchActivationsResult
from nnterp_mcp.toolset.patchscope.result import PatchscopeResult
from nnterp_mcp.toolset.run_prompts.result import RunPromptsResult
from nnterp_mcp.toolset.steer.result import SteerResult
from nnterp_mcp.toolset.tokenize.result import TokenizeResult
from nnterp_mcp.toolset.train_probe.result import TrainProbeResult
from nnterp_mcp.toolset.verify_claim.result import VerifyClaimResult

def laboratory_tools() -> dict[str, ToolSpec[Any, Any, Any]]: ...
def parameters_of(spec: ToolSpec[Any, Any, Any]) -> dict[str, Parameter]: ...

class ToolMethods:
    def call(self, tool: str, /, **arguments: Any) -> Result: ...
    def attention_probs(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        layers: int | str | Sequence[int] = "all",
        heads: int | str | Sequence[int] = "all",
        query_positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] | None = None,
        top_k: int = 3,
        interventions: Sequence[Mapping[str, Any]] | None = None,
        kinds: bool | None = None,
    ) -> AttentionProbsResult: ...
    def attribute(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        targets: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        method: Literal["direct", "gradient", "integrated", "patching"] = "direct",
        by: Literal["layer", "sublayer", "head", "source_token", "neuron", "token", "feature"] | None = None,
        dictionary: str | None = None,
        layers: int | str | Sequence[int] = "all",
        corrupted: Mapping[str, Any]
        | str
        | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]]
        | None = None,
        steps: int = 128,
        top_k: int = 10,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> AttributeResult: ...
    def collect_activations(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        site: str = "layers_output",
        layers: int | str | Sequence[int] = "all",
        positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] = "last",
        pool: Literal["none", "mean", "last"] = "none",
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> CollectActivationsResult: ...
    def compare_models(
        self,
        base: str | None = None,
        *,
        other: str | None = None,
        prompts: Mapping[str, Any] | str | Sequence[str] | None = None,
        parts: Sequence[Literal["predictions", "activations", "weights", "difference", "patching", "texts"]]
        | None = None,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> CompareModelsResult: ...
    def features(
        self,
        dictionary: str,
        *,
        prompts: Mapping[str, Any] | str | Sequence[str] | None = None,
        features: Sequence[int] | None = None,
        layer: int | None = None,
        positions: int | str = "all",
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> FeaturesResult: ...
    def find_circuit(
        self,
        clean: Mapping[str, Any] | str | Sequence[str],
        corrupted: Mapping[str, Any] | str | Sequence[str],
        *,
        targets: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        edges: int | None = None,
        steps: int = 5,
        draws: int = 5,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> FindCircuitResult: ...
    def fit_lens(
        self,
        name: str,
        method: Literal["jacobian", "tuned"],
        prompts: Mapping[str, Any] | Sequence[str],
        *,
        layers: str = "all",
        skip_first: int = 16,
        merge: str | None = None,
    ) -> FitLensResult: ...
    def generate(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        interventions: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        chat: bool = False,
        logprobs: bool = False,
    ) -> GenerateResult: ...
    def inspect_model(
        self, path: str | None = None, *, source: bool = False, start: int | None = None
    ) -> InspectModelResult: ...
    def load_features(
        self, name: str, source: str, *, layers: int | str = "all", site: str | None = None, labels: str | None = None
    ) -> LoadFeaturesResult: ...
    def logit_lens(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        layers: int | str | Sequence[int] = "all",
        positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] = "last",
        top_k: int = 3,
        targets: Mapping[str, Any] | None = None,
        lens: str = "logit",
        decompose: int = 0,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> LogitLensResult: ...
    def make_vector(
        self,
        name: str,
        method: Literal[
            "mean_difference",
            "principal_component",
            "activation",
            "embedding_difference",
            "unembedding_difference",
            "decoder_row",
            "encoder_row",
            "alignment_search",
            "random",
            "file",
            "delete",
        ],
        *,
        prompts: Mapping[str, Any] | None = None,
        positive: Mapping[str, Any] | str | Sequence[str | Sequence[Mapping[str, Any]]] | None = None,
        negative: Mapping[str, Any] | str | Sequence[str | Sequence[Mapping[str, Any]]] | None = None,
        run: str | None = None,
        layers: int | str | Sequence[int] = "all",
        positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] = "last",
        norm: float | None = None,
        answers: Sequence[str] | None = None,
        dimensions: int = 1,
        seed: int = 0,
        lens: str | None = None,
        file: str | None = None,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> MakeVectorResult: ...
    def patch_activations(
        self,
        clean: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        corrupted: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        targets: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        sites: str | Sequence[str] | None = None,
        layers: int | str | Sequence[int] = "all",
        positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] | None = None,
        heads: int | str | Sequence[int] | None = None,
        direction: Literal["denoising", "noising"] = "denoising",
        metric: Literal["auto", "logit_difference", "log_probability", "kl"] = "auto",
        receivers: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        paths: Literal["direct", "residual"] = "direct",
        cells: Sequence[str | Mapping[str, Any]] | None = None,
        complement: bool = False,
        window: int = 1,
        interventions: Sequence[Mapping[str, Any]] | None = None,
        control: bool = False,
    ) -> PatchActivationsResult: ...
    def patchscope(
        self,
        source_prompts: Mapping[str, Any]
        | str
        | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]]
        | None = None,
        *,
        source_vectors: str | Sequence[str] | None = None,
        factor: float = 1.0,
        source_positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] = "last",
        source_layers: int | str | Sequence[int] = "all",
        target_prompt: str | Sequence[Mapping[str, Any]] = "repeat",
        target_position: int | str | Mapping[str, Any] = "last",
        target_layers: int | str | Sequence[int] = "same",
        top_k: int = 3,
        targets: Mapping[str, Any] | None = None,
        max_new_tokens: int = 0,
        lens: str | None = None,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> PatchscopeResult: ...
    def run_prompts(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        targets: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        readout: Literal["next_token", "logit_lens", "patchscope"] = "next_token",
        layers: int | str | Sequence[int] = "all",
        lens: str | None = None,
        batch_tokens: int | None = None,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> RunPromptsResult: ...
    def steer(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        vector: str | Mapping[str, Any] | Sequence[float],
        layers: int | str | Sequence[int],
        factors: float | Sequence[float],
        *,
        positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] = "all",
        max_new_tokens: int = 0,
        top_k: int = 3,
        targets: Mapping[str, Any] | None = None,
        control: bool = False,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> SteerResult: ...
    def tokenize(
        self,
        prompts: Mapping[str, Any] | str | Sequence[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
        *,
        chat: bool = False,
    ) -> TokenizeResult: ...
    def train_probe(
        self,
        prompts: Mapping[str, Any] | None = None,
        *,
        run: str | None = None,
        probe: str | None = None,
        site: str = "layers_output",
        dictionary: str | None = None,
        method: Literal["logistic", "ridge", "difference_of_means"] = "logistic",
        layers: int | str | Sequence[int] = "all",
        positions: int | str | Mapping[str, Any] | Sequence[int | str | Mapping[str, Any]] = "last",
        folds: int = 5,
        shuffles: int = 5,
        save_as: str | None = None,
    ) -> TrainProbeResult: ...
    def verify_claim(
        self,
        claim: Mapping[str, Any] | Sequence[str],
        clean: Sequence[str],
        found_on: Sequence[str],
        *,
        corrupted: Mapping[str, Any] | Sequence[str] | None = None,
        targets: Mapping[str, Any] | None = None,
        predicts: Literal["drives", "necessary", "sufficient", "opposes"] = "drives",
        control_prompts: Sequence[str] | None = None,
        positions: Mapping[str, Any] | None = None,
        interventions: Sequence[Mapping[str, Any]] | None = None,
    ) -> VerifyClaimResult: ...
