"""What a question is, and the forms that an answer can have."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.plain import Plain

Value = int | float | str | Mapping[str, int | float | str]
"""An answer as JSON holds it; a head is a text, "L3H7"; an answer in several parts is an object."""

SMOLLM2 = "smollm2-135m"


class Form(ABC):
    """The form of an answer: how it is written, and when two of them agree."""

    @abstractmethod
    def describe(self) -> str:
        """The form in words, for whoever answers."""

    @abstractmethod
    def read(self, given: object) -> Value:
        """An answer as it came.

        Raises:
            ValueError: It does not have this form.
        """

    def agrees(self, given: Value, right: Value) -> bool:
        """Whether an answer of this form is right."""
        return given == right

    def _refuse(self, given: object) -> ValueError:
        return ValueError(f"the answer is {self.describe()}, not {given!r}")


@dataclass(frozen=True)
class Number(Form):
    """A number within a tolerance of the right one.

    Attributes:
        absolute: How far off it may be.
        relative: How far off it may be as a share of the right one; the larger of the two counts.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def describe(self) -> str:
        """The form in words."""
        return f"a number, right within {self.absolute or f'{100 * self.relative:g} %'}"

    def read(self, given: object) -> float:
        """A finite number."""
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise self._refuse(given)
        return float(given)

    def agrees(self, given: Value, right: Value) -> bool:
        """Whether a number is near enough."""
        assert isinstance(given, int | float)
        assert isinstance(right, int | float)
        return abs(given - right) <= max(self.absolute, self.relative * abs(right))


@dataclass(frozen=True)
class Count(Form):
    """A whole number, exactly right."""

    what: str

    def describe(self) -> str:
        """The form in words."""
        return f"a whole number: {self.what}"

    def read(self, given: object) -> int:
        """A whole number of zero or more."""
        if isinstance(given, bool) or not isinstance(given, int) or given < 0:
            raise self._refuse(given)
        return given


LAYER = Count("a layer, the first one is 0")


@dataclass(frozen=True)
class Head(Form):
    """An attention head."""

    def describe(self) -> str:
        """The form in words."""
        return 'a head, written "L3H7": layer 3, head 7, both counted from 0'

    def read(self, given: object) -> str:
        """A head, without zeros before its numbers."""
        found = re.fullmatch(r"[Ll](\d{1,4})\s*[Hh](\d{1,4})", given.strip()) if isinstance(given, str) else None
        if found is None:
            raise self._refuse(given)
        return f"L{int(found[1])}H{int(found[2])}"


@dataclass(frozen=True)
class Token(Form):
    """The text of one token; spaces around it do not count."""

    def describe(self) -> str:
        """The form in words."""
        return "the text of a token"

    def read(self, given: object) -> str:
        """A text that is not only spaces."""
        if not isinstance(given, str) or not given.strip():
            raise self._refuse(given)
        return given.strip()

    def agrees(self, given: Value, right: Value) -> bool:
        """Whether it is the same token, but for spaces around it."""
        return str(given).strip() == str(right).strip()


@dataclass(frozen=True)
class Choice(Form):
    """One of several texts."""

    options: tuple[str, ...]

    def describe(self) -> str:
        """The form in words."""
        return f"one of {', '.join(map(repr, self.options))}"

    def read(self, given: object) -> str:
        """One of the options."""
        if not isinstance(given, str) or given not in self.options:
            raise self._refuse(given)
        return given


@dataclass(frozen=True)
class Parts(Form):
    """Several answers to one question, each of a form of its own."""

    forms: Mapping[str, Form]

    def describe(self) -> str:
        """The form in words."""
        return "an object: " + "; ".join(f'"{name}": {form.describe()}' for name, form in self.forms.items())

    def read(self, given: object) -> Mapping[str, int | float | str]:
        """All parts, and no others."""
        if not isinstance(given, Mapping) or set(given) != set(self.forms):
            raise self._refuse(given)
        try:
            return {name: _single(form.read(given[name])) for name, form in self.forms.items()}
        except ValueError as error:
            raise ValueError(f"{self._refuse(given)}: {error}") from None

    def agrees(self, given: Value, right: Value) -> bool:
        """Checks that every part is right."""
        return not self.wrong(given, right)

    def wrong(self, given: Value, right: Value) -> list[str]:
        """The names of the parts that are not right."""
        assert isinstance(given, Mapping)
        assert isinstance(right, Mapping)
        return [name for name, form in self.forms.items() if not form.agrees(given[name], right[name])]


def _single(value: Value) -> int | float | str:
    assert not isinstance(value, Mapping)
    return value


@dataclass(frozen=True)
class Question:
    """A question about a model that has one right answer.

    Attributes:
        name: By which answers refer to it.
        text: The question, complete in itself.
        form: Of its answer.
        compute: Finds the right answer with plain transformers.
        model: The name of the model that it is about.
    """

    name: str
    text: str
    form: Form
    compute: Callable[[Plain], Value]
    model: str = SMOLLM2
