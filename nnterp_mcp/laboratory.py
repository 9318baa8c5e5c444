"""The tools as methods, in this process: what an agent calls over MCP, with every number of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnterp_mcp.contract import Result, ToolSpec
from nnterp_mcp.display.picture import Picture
from nnterp_mcp.display.progress import progress_bar
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.formatting import escaped
from nnterp_mcp.pool.handles import handle_of, handle_of_adapter
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.request.access import admit_adapter, admit_model
from nnterp_mcp.request.adapter_folder import split_scale, with_scale
from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.named_sets import sets_from
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.runs.arrays import HeldRows, Rows
from nnterp_mcp.runs.prompt_sets import PromptSetStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.tool_methods import ToolMethods, laboratory_tools
from nnterp_mcp.toolset import specs
from nnterp_mcp.toolset.load_model.result import LoadModelResult
from nnterp_mcp.worker.execution import run_tool
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.load_model import card_of
from nnterp_mcp.worker.threads import threads_of_process
from nnterp_mcp.worker.workbench import Bench

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nnterp_mcp.model.standardized import StandardizedTransformer

TellProgress = Callable[[Progress], None]


@dataclass
class _Job(Job):
    """A call of this process: it has no record, so that what it keeps stays in memory."""

    arrays: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, array: Tensor, axes: Mapping[str, Sequence[int | str]]) -> None:
        """Holds an array until the next call."""
        self.arrays[name] = array.detach().cpu()

    def keep_rows(self, name: str, axes: Mapping[str, Sequence[int | str]]) -> Rows:
        """Holds an array that is filled row by row until the next call."""
        import torch

        rows = HeldRows(axes)
        self.arrays[name] = torch.from_numpy(rows.numbers)
        return rows


class Laboratory(ToolMethods):
    """One model, and every tool that works on it as a method.

        lab = Laboratory("smollm2-135m", dtype="float32")
        result = lab.logit_lens("The capital of France is", targets={"capital": "Paris"})
        print(lab.show(result))

    A tool takes the arguments that it takes over MCP and returns its whole result, before anything is rounded or left
    out; a notebook shows it as the answer that an agent sees. Nothing is recorded, but named vectors are kept where the
    server keeps them. While a call runs, torch uses one thread less for each core that other processes use, and as many
    as before afterwards; `OMP_NUM_THREADS` fixes their number.

    Attributes:
        card: The card of the loaded model.
        arrays: The arrays of the last call, on the CPU: attention patterns, patching grids, states.
        bench: The model with its limits and vectors, as the tools see it.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | StandardizedTransformer,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        settings: Settings | None = None,
        adapter: str | Path | None = None,
        others: Mapping[str, Mapping[str, Any]] | None = None,
        handle: str | None = None,
        on_progress: TellProgress | None = None,
        **loading: Any,
    ) -> None:
        """Loads a model.

        Args:
            model: A built-in name, a Hub id, a local folder, a `.gguf` file, or a causal LM that is in memory.
            tokenizer: The tokenizer of a causal LM in memory; loaded from where the model came from by default.
            settings: Limits, and where things are kept; from the environment by default. Without `folders`, files may
                be read from anywhere.
            adapter: The folder of a LoRA adapter on the model, as PEFT saves it, or its id on the Hub, behind which `@`
                and a revision may follow; `@` and a scale after either. The tools then run the adapted model;
                `bench.base` has the model without it.
            others: The parameters of `load_model` of other models that calls name, by handle, such as
                `{"half": {"model": "smollm2-135m", "adapter": "pirate@0.5"}}` for `compare_models(base="half")`. One
                is read when it is first used, and an adapter on the same model shares its weights.
            handle: The model's name in results; made from its source, and that of the adapter, by default.
            on_progress: Told how far each call is; by default a bar appears in a terminal or notebook, where a call
                takes longer than two seconds.
            **loading: The other parameters of `load_model`, for a model that is read from files.

        Raises:
            InvalidRequest: A parameter is wrong.
            UnknownModel: There is no such model.
            Forbidden: The settings do not allow it.
        """
        settings = _unconfined(settings or Settings())
        self.arrays: dict[str, Tensor] = {}
        self._on_progress = on_progress
        # The handle of an adapted model is its base's, a + and the adapter's name.
        name = handle if handle is None or adapter is None else handle.rpartition("+")[0]
        if isinstance(model, str | Path):
            source = admit_model(_absolute(str(model)), settings.allowed_models, settings.folders)
            self.bench = Bench(name or handle_of(source), settings)
            self.card = self._load({"model": source} | loading)
        else:
            self.bench = _place(model, tokenizer, name, settings, loading)
            self.card = card_of(self.bench)
        if adapter is not None:
            folder = admit_adapter(_absolute(str(adapter)), settings.allowed_models, settings.folders)
            source, scale = split_scale(folder)
            base, named = self.bench, with_scale(f"{self.bench.handle}+{handle_of_adapter(source)}", scale)
            self.bench = Bench(handle or named, settings, base=base, find_relative={base.handle: base}.get)
            self.card = self._load({"model": self.bench.handle, "adapter": folder})
        self.bench.seconds.learn({name: _resolved(given) for name, given in (others or {}).items()})

    def _load(self, arguments: Mapping[str, Any]) -> LoadModelResult:
        card = self._run(specs()["load_model"], arguments)
        assert isinstance(card, LoadModelResult)
        return card

    def call(self, tool: str, /, **arguments: Any) -> Result:
        """Runs a tool by its name.

        Raises:
            InvalidRequest: There is no such tool here, or an argument is wrong.
            NnterpError: The tool raises it.
        """
        tools = laboratory_tools()
        if tool not in tools:
            raise InvalidRequest(f"a laboratory has no tool {shown(tool)}: it has {', '.join(tools)}.")
        return self._run(tools[tool], arguments)

    def show(self, result: Result) -> str:
        """A result as the text that an agent would see: rounded, and the main part of it only."""
        spec = next(spec for spec in specs().values() if spec.result is type(result))
        return escaped(spec.summarize(result).text())

    def figure(self, result: Result) -> Picture:
        """The figure that `plot` draws of a result; a notebook shows it, and its `save` writes it.

        Args:
            result: The result of a call; the last one, where a figure shows arrays, such as attention patterns.

        Raises:
            Unsupported: The tool has no figure, or this result nothing that can be drawn.
        """
        spec = next(spec for spec in specs().values() if spec.result is type(result))
        if spec.figure is None:
            raise Unsupported(f"{spec.name} draws no figure", "See `show`.")
        return Picture.of(spec.figure(result, {name: array.float().numpy() for name, array in self.arrays.items()}))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"a laboratory has no {name!r}; its tools are {', '.join(laboratory_tools())}")

    def __repr__(self) -> str:
        return f"Laboratory({self.bench.handle!r})"

    def _run(self, spec: ToolSpec[Any, Any, Any], arguments: Mapping[str, Any]) -> Result:
        with sets_from(PromptSetStore(self.bench.settings.data / "prompt_sets").find), collect_remarks() as remarks:
            params = spec.parse(arguments)
        with progress_bar() as bar:
            tell = self._on_progress or (lambda told: bar.tell(told.done, told.total, told.message))
            job = _Job(0, tell)
            with threads_of_process().chosen():
                result = run_tool(self.bench, spec, params, job)
        result.remarks += remarks
        self.arrays = job.arrays
        result.shown_by(spec.summarize)
        return result


def _place(
    model: PreTrainedModel | StandardizedTransformer,
    tokenizer: PreTrainedTokenizerBase | None,
    handle: str | None,
    settings: Settings,
    loading: Mapping[str, Any],
) -> Bench:
    """A bench with a model that is in memory.

    Raises:
        InvalidRequest: There are parameters for a model that is read from files.
        Unsupported: It is no causal LM, or no layers were found.
    """
    from nnterp_mcp.model.standardized import StandardizedTransformer

    for name in loading:
        raise InvalidRequest(f"{name} is for a model that is read from files: this one is in memory.")
    if not isinstance(model, StandardizedTransformer):
        model = StandardizedTransformer(model, tokenizer=tokenizer)
    bench = Bench(handle or handle_of(model.name), settings)
    bench.place(model)
    return bench


def _unconfined(settings: Settings) -> Settings:
    """Where the settings name no folders: any file, relative ones from the working folder first."""
    here = Path.cwd()
    return settings if settings.folders else settings.model_copy(update={"folders": (here, Path(here.anchor))})


def _resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a load, with paths to what is there."""
    named = {name: _absolute(str(given[name])) for name in ("model", "adapter") if given.get(name) is not None}
    return specs()["load_model"].parse({**given, **named}).model_dump(mode="json")


def _absolute(model: str) -> str:
    """A model's name, or where it names something that is there, the path to that."""
    from nnterp_mcp.model.loading.locations import BUILTIN

    path = Path(model).expanduser()
    return str(path.resolve()) if model != BUILTIN and path.exists() else model
