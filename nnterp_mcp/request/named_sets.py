"""Named prompt sets: prompts that were sent once, and that later calls name as `{"set": NAME}` wherever prompts go.

A reference is an object, so that no prompt can be taken for one. It is replaced by the prompts themselves while
the arguments of a call are parsed, so that the record of a run holds the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnterp_mcp.request.arguments import decoded, shown
from nnterp_mcp.request.remarks import remark

UNGROUPED = "prompts"
"""The one group of prompts that came in a list."""


class SetItem(BaseModel):
    """A prompt of a set, with its targets by category."""

    model_config = ConfigDict(frozen=True)

    prompt: str | list[dict[str, Any]]
    targets: dict[str, list[Any]] = {}


class NamedSet(BaseModel):
    """Prompts under a name.

    Attributes:
        name: The name.
        groups: The prompts by group.
        made: Time, in ISO 8601.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    groups: dict[str, list[SetItem]]
    made: str

    def items(self, group: str | None) -> list[SetItem]:
        """The prompts of one group, or of all in order.

        Raises:
            ValueError: There is no such group.
        """
        if group is not None and group not in self.groups:
            raise ValueError(
                f"the set {self.name!r} has no group {shown(group)}: it has {', '.join(map(shown, self.groups))}"
            )
        return [item for name, of_group in self.groups.items() if group in (None, name) for item in of_group]


_RUN = ("prompts", "clean", "source_prompts")
"""Arguments that name the prompts whose next tokens targets are."""

FindSet = Callable[[str], NamedSet]
_FIND: ContextVar[FindSet | None] = ContextVar("named sets", default=None)


@contextmanager
def sets_from(find: FindSet) -> Generator[None]:
    """Makes the sets that `find` returns known to arguments that are parsed in its body."""
    token = _FIND.set(find)
    try:
        yield
    finally:
        _FIND.reset(token)


def prompts_of(given: Any) -> Any:
    """The prompts of the set that an argument names; anything else as it is."""
    found = _look_up(given)
    return given if found is None else [item.prompt for item in found[0].items(found[1])]


def groups_of(given: Any) -> Any:
    """The groups of the set that an argument names, or the prompts of its one group; anything else as it is."""
    found = _look_up(given)
    if found is None:
        return given
    named, group = found
    chosen = named.groups if group is None else {group: named.items(group)}
    return {name: [item.prompt for item in items] for name, items in chosen.items()}


def with_targets(given: Any, listed: bool) -> Any:
    """The arguments of a call, with the targets of the set that it runs, unless it gives targets itself.

    Args:
        given: The arguments.
        listed: The tool takes targets for each prompt; otherwise those that are the same for all prompts are taken,
            and a remark says that others are not.
    """
    if not isinstance(given, Mapping) or given.get("targets") is not None:
        return given
    found = next((found for name in _RUN if (found := _look_up(given.get(name))) is not None), None)
    targets = [] if found is None else [item.targets for item in found[0].items(found[1])]
    if found is None or not any(targets):
        return given
    if not listed and any(one != targets[0] for one in targets):
        remark(
            f"The targets of the set {found[0].name!r} differ between its prompts, and none of them is followed: this "
            "tool takes one map of targets for all prompts; run_prompts takes one for each."
        )
        return given
    return {**given, "targets": targets if listed else targets[0]}


def _look_up(given: Any) -> tuple[NamedSet, str | None] | None:
    """The set and the group that an object names; a group of prompts that is called "set" holds a list."""
    value = decoded(given)
    if not isinstance(value, Mapping) or not isinstance(value.get("set"), str) or value.keys() - {"set", "group"}:
        return None
    find = _FIND.get()
    if find is None:
        raise ValueError(f"the prompt set {shown(value['set'])} cannot be looked up here: give its prompts")
    return find(value["set"]), value.get("group")
