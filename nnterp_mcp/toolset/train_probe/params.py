"""Arguments of `train_probe`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nnterp_mcp.contract import ModelParams
from nnterp_mcp.request import schemas
from nnterp_mcp.request.arguments import LONGEST_NAME, MOST_GROUPS
from nnterp_mcp.request.dictionaries import DictionaryName
from nnterp_mcp.request.fields import Plot, ProbedLayers, ProbedPositions, StateSite
from nnterp_mcp.request.prompts import PromptGroups
from nnterp_mcp.request.vectors import VectorName

_Groups = Annotated[
    PromptGroups,
    schemas.as_schema(
        {**schemas.OBJECT, "maxProperties": MOST_GROUPS},
        'Prompts by class, {"positive": [...], "negative": [...]}, or {"set": NAME}.',
    ),
]


class TrainProbeParams(ModelParams):
    """The groups to tell apart and the kind of probe: prompts read at a site, or the states of an earlier run."""

    prompts: _Groups | None = None
    run: Annotated[
        str | None, Field(max_length=LONGEST_NAME, description="A run of collect_activations, in place of prompts.")
    ] = None
    probe: Annotated[VectorName | None, Field(description="A saved probe or vector to apply; none is fitted.")] = None
    site: StateSite = "layers_output"
    dictionary: Annotated[
        DictionaryName | None,
        Field(description="Probe 1 to 32 of its features in place of states."),
    ] = None
    method: Annotated[
        Literal["logistic", "ridge", "difference_of_means"],
        Field(description="Kind of probe: logistic or ridge regression, or the difference of class means."),
    ] = "logistic"
    layers: ProbedLayers = "all"
    positions: ProbedPositions = ("last",)
    folds: Annotated[int, Field(ge=2, le=20, description="Folds of the cross-validation.")] = 5
    shuffles: Annotated[int, Field(ge=1, le=100, description="Fits to shuffled labels, as a control.")] = 5
    save_as: Annotated[VectorName | None, Field(description="Name under which to save the probes.")] = None
    plot: Plot = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.prompts is None) == (self.run is None):
            raise ValueError("train_probe takes either prompts or the run of a collect_activations")
        settled = {"site": self.site != "layers_output", "positions": self.positions != ("last",)}
        for name in (name for name, given in settled.items() if given and self.run is not None):
            raise ValueError(f"{name} was settled when {self.run} collected its states: leave it out")
        if self.dictionary is not None:
            self._require_prompts_alone()
        if self.probe is not None:
            self._require_nothing_to_fit()
        elif self.prompts is not None:
            require_groups(list(self.prompts), self.site, self.save_as)
        return self

    def _require_prompts_alone(self) -> None:
        for name in ("run", "probe", "save_as"):
            if getattr(self, name) is not None:
                raise ValueError(f"features of a dictionary are probed on prompts: leave out {name}")
        if self.site != "layers_output":
            raise ValueError(f"{self.dictionary} says where it reads: leave out site")

    def _require_nothing_to_fit(self) -> None:
        for name in ("method", "folds", "shuffles", "save_as"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for fitting, and the saved probe {self.probe} is applied as it is")


def require_groups(groups: list[str], site: str, save_as: str | None) -> None:
    """Refuses groups that no probe can tell apart, or that give no vector.

    Raises:
        ValueError: There is one group; or a vector is wanted of more than two, or of another site.
    """
    if len(groups) < 2:
        raise ValueError('a probe tells groups apart: give two or more, {"positive": [...], "negative": [...]}')
    if save_as is not None and (len(groups) > 2 or site != "layers_output"):
        raise ValueError(
            f"save_as keeps the direction between two groups at layers_output, and these are {len(groups)} at {site}"
        )
