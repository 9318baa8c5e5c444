"""The context of the tools in a worker: the loaded model, the server's limits, and the named vectors."""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nnterp_mcp.cancellation import cancellable
from nnterp_mcp.errors import LimitExceeded, NoModel
from nnterp_mcp.request.access import allowed_file
from nnterp_mcp.request.operations import Operation
from nnterp_mcp.request.prompt_sets import PromptFile, PromptItem, PromptSet, read_prompt_file
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.vectors import ModelIdentity
from nnterp_mcp.runs.records import RunEnvironment
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.runs.vectors import VectorStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.model_files import ModelFiles, ModelOrigin

if TYPE_CHECKING:
    from torch import Tensor

    from nnterp_mcp.engine.forward import Plan
    from nnterp_mcp.engine.planning.clean_states import Known
    from nnterp_mcp.engine.workload import Workload
    from nnterp_mcp.model.loading.adapters import Adapter
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.model.text.tokenization import EncodedPrompt
    from nnterp_mcp.worker.dictionaries import Dictionaries
    from nnterp_mcp.worker.recorded_states import Collected
    from nnterp_mcp.worker.second_model import SecondModels


_CPU_TOKENS = 1024
"""Tokens with which a CPU is at its fastest already."""


@cache
def versions() -> dict[str, str]:
    """The versions of what computes."""
    names = ("nnterp-mcp", "torch", "transformers", "nnsight", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


@dataclass
class Bench:
    """The context in which the tools of a worker run.

    Attributes:
        handle: The model's handle.
        settings: The server's settings.
        origin: Where the loaded model came from.
        base: The bench of the model whose weights this one's shares; None where they are its own.
        adapter: The adapter on them.
        find_relative: Finds the bench of another model on these weights by its handle; None where there is none.
        relatives: The handles of the adapters that are loaded onto these weights.
        request: The parameters of `load_model` that loaded it, without an adapter.
    """

    handle: str
    settings: Settings
    _model: StandardizedTransformer | None = None
    origin: ModelOrigin = field(default_factory=lambda: ModelOrigin("memory"))
    base: Bench | None = None
    adapter: Adapter | None = None
    find_relative: Callable[[str], Bench | None] = lambda handle: None
    relatives: Callable[[], Sequence[str]] = tuple
    request: Mapping[str, Any] = field(default_factory=dict[str, "Any"])

    @property
    def model(self) -> StandardizedTransformer:
        """The loaded model.

        Raises:
            NoModel: Nothing is loaded yet.
        """
        if self._model is None:
            raise NoModel(f"{self.handle} is not loaded yet", "Wait for load_model to answer.")
        return self._model

    @property
    def uncaptured(self) -> dict[str, str]:
        """The parts of the loaded model that could be replayed as graphs and are not, each with the reason."""
        from nnterp_mcp.engine.executors.capture import reasons_against

        return {} if self._model is None else reasons_against(self._model)

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identifies the loaded model's weights."""
        model = self.model
        return ModelIdentity(
            architecture=type(model.module).__name__,
            hidden_size=model.hidden_size,
            fingerprint=model.fingerprint,
        )

    @property
    def environment(self) -> RunEnvironment:
        """Hardware, software and model, for the records of runs."""
        import torch

        model, origin = self.model, self.origin
        device, device_name = model.computing_on
        return RunEnvironment(
            versions=versions() | dict(origin.versions),
            platform=f"{platform.system()} {platform.machine()}",
            device=device,
            device_name=device_name,
            dtype=str(model.computing_dtype).removeprefix("torch."),
            attention=model.attention,
            architecture=self.identity.architecture,
            source=origin.source,
            revision=origin.revision,
            fingerprint=self.identity.fingerprint,
            files=origin.files.cards() if origin.files else {},
            threads=torch.get_num_threads(),
            adapter_revision=None if self.adapter is None else self.adapter.revision,
        )

    @property
    def files(self) -> ModelFiles | None:
        """The files of the loaded model; None where it was not read from files."""
        return self.origin.files

    @property
    def vectors(self) -> VectorStore:
        """The named vectors of every model."""
        return VectorStore(self.settings.data / "vectors")

    @cached_property
    def seconds(self) -> SecondModels:
        """The other models that were read into this process, one set of them for all models on the same weights."""
        from nnterp_mcp.worker.second_model import SecondModels

        return SecondModels(self.settings) if self.base is None else self.base.seconds

    @cached_property
    def dictionaries(self) -> Dictionaries:
        """The dictionaries of features of the loaded model."""
        from nnterp_mcp.worker.dictionaries import Dictionaries

        return Dictionaries(self.model, self.identity, self.handle, self.settings)

    def find_base(self, name: str | None) -> tuple[StandardizedTransformer, str]:
        """The model that this one is compared with, and its handle.

        Args:
            name: The handle of a model that shares this one's worker, or of one that `seconds` knows, or what
                `load_model` takes; None for the model without its adapter, or where it has none for itself.

        Raises:
            NnterpError: It cannot be loaded.
        """
        from nnterp_mcp.worker.second_model import copy_of

        if name is None and self.base is not None:
            return self.base.model, self.base.handle
        if name is None or name == self.handle:
            return copy_of(self.model), self.handle
        relative = self.find_relative(name)
        if relative is not None:
            return relative.model, name
        root = self.base or self
        return self.seconds.find(name, root.model, root.request), name

    def find_vector(self, name: str) -> Tensor:
        """A named vector of the loaded model, as interventions look it up.

        Raises:
            InvalidRequest: It does not exist, or belongs to other weights.
        """
        import torch

        from nnterp_mcp.experiments.steering_vectors import spread_over_layers

        stored = self.vectors.load(name, self.identity, self.handle)
        card, rows = stored.card, torch.from_numpy(stored.directions)
        vectors = rows if card.dimensions == 1 else rows.unflatten(0, (-1, card.dimensions))
        return spread_over_layers(vectors, card.layers, self.model.num_layers)

    def find_states(self, run_id: str) -> Collected:
        """The states that a run of the loaded model recorded.

        Raises:
            InvalidRequest: There is no such run, it recorded no states, or it belongs to other weights.
        """
        from nnterp_mcp.worker.recorded_states import find_collected

        return find_collected(RunStore(self.settings.runs), run_id, self.identity, self.handle)

    def place(self, model: StandardizedTransformer, origin: ModelOrigin | None = None) -> None:
        """Puts the loaded model on the bench, with where it came from."""
        self._model = model
        self.origin = origin or self.origin

    @property
    def batch_tokens(self) -> int:
        """Padded tokens in one forward pass, at most.

        Larger batches are no faster on a CPU, and progress is reported and results are saved batch by batch.
        """
        allowed = self.settings.batch_tokens
        return min(allowed, _CPU_TOKENS) if self.model.device.type == "cpu" else allowed

    @contextmanager
    def stopping(
        self, check: Callable[[], None], tell: Callable[[str], None] = lambda message: None
    ) -> Generator[None]:
        """Makes passes of the model, and loops over a request, stop where `check` raises.

        Args:
            check: Raises the error with which the call is to end.
            tell: Called with a message on what the call waits for.
        """
        with cancellable(check), nullcontext() if self._model is None else self._model.stopping(check, tell):
            yield

    def longest_prompt(self, new_tokens: int = 0) -> int:
        """Tokens that a prompt may have when so many are to follow it.

        Raises:
            LimitExceeded: They leave no room for a prompt.
        """
        context = self.model.context
        room = (
            self.settings.max_prompt_tokens
            if context is None
            else min(self.settings.max_prompt_tokens, context - new_tokens)
        )
        if room < 1:
            raise LimitExceeded(
                f"max_new_tokens {new_tokens} leaves no room for a prompt: {self.handle} reads {context} tokens in all."
            )
        return room

    def read_prompts(self, prompts: PromptSet) -> Sequence[PromptItem]:
        """The prompts of a set, from its file where it is one.

        Raises:
            Forbidden: The file lies outside of the allowed folders.
            InvalidRequest: There is no such file, or it holds no prompts.
            LimitExceeded: It holds more prompts than the server allows.
        """
        if not isinstance(prompts, PromptFile):
            return prompts
        return read_prompt_file(allowed_file(prompts.path, self.settings.folders), self.settings.max_prompts)

    def encode(self, prompts: Sequence[Prompt], new_tokens: int = 0) -> list[EncodedPrompt]:
        """Tokenizes the prompts of a request within the server's and the model's limits.

        Raises:
            LimitExceeded: There are too many prompts, or no room for any.
            InvalidRequest: A prompt has no tokens, too many, or one that the model does not embed.
        """
        from nnterp_mcp.model.text.tokenization import encode_prompts

        self.admit(len(prompts))
        longest = self.longest_prompt(new_tokens)
        return encode_prompts(self.model.tokenizer, prompts, self.handle, longest, self.model.embedded)

    def admit(self, prompts: int) -> None:
        """Refuses more prompts than the server allows.

        Raises:
            LimitExceeded: There are too many.
        """
        if prompts > self.settings.max_prompts:
            raise LimitExceeded(f"{prompts} prompts, and this server allows {self.settings.max_prompts} a call.")

    def check(self, operations: Sequence[Operation]) -> None:
        """Refuses interventions that no request to the model could make.

        Raises:
            InvalidRequest: A layer, head or vector does not exist or fit.
            Unsupported: The model cannot do it.
        """
        from nnterp_mcp.engine.planning.plan import check

        check(self.model, operations, self.find_vector, states=self.find_states, features=self.dictionaries.find_basis)

    def workload(self, prompts: Sequence[EncodedPrompt], operations: Sequence[Operation], job: Job) -> Workload:
        """The prompts of a request with its interventions, in batches of this server's size, reporting to its job.

        Raises:
            InvalidRequest: A layer, head, position, prompt or vector does not exist or fit.
            Unsupported: The model cannot do it.
        """
        from nnterp_mcp.engine.workload import Workload

        return Workload(prompts, self.plan(operations, prompts), self.batch_tokens, job.progress)

    def plan(
        self, operations: Sequence[Operation], prompts: Sequence[EncodedPrompt], known: Known | None = None
    ) -> Plan:
        """Plans the interventions of a request, once or, with the clean states that are known, for several sets.

        Raises:
            InvalidRequest: A layer, head, position, prompt or vector does not exist or fit.
            Unsupported: The model cannot do it.
        """
        from nnterp_mcp.engine.planning.plan import plan

        return plan(
            self.model,
            operations,
            prompts,
            self.find_vector,
            states=self.find_states,
            features=self.dictionaries.find_basis,
            known=known,
            batch_tokens=self.batch_tokens,
        )
