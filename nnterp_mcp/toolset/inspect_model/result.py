"""Result and answer of `inspect_model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import ModelAnswer, Result, ResultPart
from nnterp_mcp.table import TableField


class ModuleLine(ResultPart):
    """A module, or several alike.

    Attributes:
        depth: Levels below the module that was asked for.
        standard: Its standard name, if it has one; below a group of modules relative to them, like the path.
        path: Where transformers has it.
        kind: Its class.
        tensors: Its own parameters with their shapes.
        parameters: Numbers in all parameters of it and what is below it; of each, where it stands for several.
        more: Whether some of them are below it.
    """

    depth: int
    standard: str | None
    path: str
    kind: str
    tensors: dict[str, str]
    parameters: int
    more: bool


class LayerGroup(ResultPart):
    """Layers of one kind.

    Attributes:
        layers: Their numbers.
        kind: As the configuration or the structure calls it.
        heads: Attention heads.
        sites: Where states can be read and edited.
        lacking: The other sites.
        product: Where probabilities multiply values, in a line; None where they are never formed.
    """

    layers: list[int]
    kind: str
    heads: int
    sites: list[str]
    lacking: list[str]
    product: str | None


class ForwardCode(ResultPart):
    """Code of the model.

    Attributes:
        function: What it is.
        file: The file's name.
        first: The number of its first line in the file.
        lines: All of its lines.
        start: The line to begin with.
        product: The line at which attention probabilities multiply values; None where it is elsewhere.
    """

    function: str
    file: str
    first: int
    lines: list[str]
    start: int
    product: int | None


class InspectModelResult(Result):
    """A module of the model, or the whole model where `path` is empty.

    Attributes:
        model: The model's handle.
        path: Where transformers has the module.
        standard: Its standard name, if it has one.
        kind: Its class.
        home: The Python module of that class.
        parameters: Numbers in its parameters.
        dtype: Their types.
        device: Where they are.
        hidden_states: Where hidden states go in and come out; empty where that is not known.
        tensors: Its own parameters with their shapes.
        tree: What is below it.
        silent: How many modules below it have no parameters and are left out.
        layers: The layers, by kind; for the whole model only.
        attention: The attention implementation in use.
        refused: Capabilities that the check at load refused, with the reason.
        source: Its code, if that was asked for.
    """

    model: str
    path: str
    standard: str | None
    kind: str
    home: str
    parameters: int
    dtype: str
    device: str
    hidden_states: str
    tensors: dict[str, str]
    tree: list[ModuleLine]
    silent: int
    layers: list[LayerGroup]
    attention: str
    refused: dict[str, str]
    source: ForwardCode | None


class InspectModelAnswer(ModelAnswer):
    """The module's tree, the model's layers by kind, or a module's code."""

    tree: TableField | None = None
    layers: TableField | None = None
    source: Annotated[str | None, Field(description="Code with its line numbers in the file.")] = None

    def body(self) -> list[str]:
        """The tables, then the code."""
        return [*super().body(), self.source or ""]
