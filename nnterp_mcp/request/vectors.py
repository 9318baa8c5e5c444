"""Named vectors: how they may be called, and what is known of one without its numbers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nnterp_mcp.request.arguments import shown
from nnterp_mcp.request.positions import Positions

LONGEST_VECTOR = 64
"""Characters of a vector's name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that stand for devices on Windows, whatever their ending."""


def is_name(text: str) -> bool:
    """True if a text has the letters that a vector's name may have."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """A vector's name, which is never a path.

    Raises:
        ValueError: It is not one; with what is allowed.
    """
    if not is_name(name) or _DEVICES.fullmatch(name) is not None:
        raise ValueError(
            "a name has 1 to 64 letters, digits, '.', '_' or '-', begins with a letter or digit and is no "
            f"device's name, so not {shown(name)}"
        )
    return name


VectorName = Annotated[str, Field(max_length=LONGEST_VECTOR), AfterValidator(check_name)]


class ModelIdentity(BaseModel):
    """The identity of a model's weights.

    Attributes:
        architecture: The model's class.
        hidden_size: The width of its residual stream.
        fingerprint: A hash over some of its weights.
    """

    model_config = ConfigDict(frozen=True)

    architecture: str
    hidden_size: int
    fingerprint: str

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.architecture}, width {self.hidden_size}, weights {self.fingerprint}"

    @property
    def folder(self) -> str:
        """The folder of its vectors."""
        return f"{re.sub(r'[^A-Za-z0-9]', '', self.architecture)}-{self.hidden_size}-{self.fingerprint}"


class ReadTokens(BaseModel):
    """The tokens whose states a vector was made from.

    Attributes:
        positions: The positions in each prompt.
        pool: How several positions of a prompt are combined.
    """

    model_config = ConfigDict(frozen=True)

    positions: Positions
    pool: Literal["none", "mean", "last"] = "none"


class VectorCard(BaseModel):
    """The description of a vector, without its numbers.

    Attributes:
        name: Its name, unique for a model.
        model: The handle of the model at the time.
        identity: The model's weights.
        method: The method that made it.
        tool: The tool that made it.
        layers: The layers that have a direction each; empty where one direction serves at any layer.
        dimensions: Those of the subspace at each layer; 1 for a direction.
        norms: The length of each direction.
        reading: The tokens that it was made from; None where it was made from no states.
        classes: The two groups that a probe divides, the one that the directions point towards first.
        thresholds: For each direction of a probe, the projection on its unit vector above which a state belongs to the
            first class.
        held_out: For each direction, how well unseen prompts were told apart; empty where that was not measured.
        request: The parameters from which it can be made again.
        versions: The packages that made it.
        made: Time, in ISO 8601.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    name: VectorName
    model: str
    identity: ModelIdentity
    method: str
    tool: str = "make_vector"
    layers: list[int]
    dimensions: int = 1
    norms: list[float]
    reading: ReadTokens | None = None
    classes: list[str] = []
    thresholds: list[float] = []
    held_out: list[float] = []
    request: dict[str, Any]
    versions: dict[str, str]
    made: str
