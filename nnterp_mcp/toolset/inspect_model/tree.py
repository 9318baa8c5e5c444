"""The modules of a model under both names, in the worker: a tree in which modules that are alike are one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import ranges
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.anatomy import Site
from nnterp_mcp.toolset.inspect_model.result import ModuleLine


@dataclass(frozen=True)
class ModuleNames:
    """Both names of a model's modules.

    Attributes:
        modules: Every module by its path in transformers.
        standard: The standard name of those paths that have one of their own.
    """

    modules: dict[str, nn.Module]
    standard: dict[str, str]

    @classmethod
    def of(cls, model: StandardizedTransformer) -> ModuleNames:
        """The names in a model."""
        anatomy = model.anatomy
        named: dict[str, Site | None] = {
            "embed_tokens": anatomy.embed_tokens,
            "layers": anatomy.layers_module,
            "ln_final": anatomy.ln_final,
            "lm_head": anatomy.lm_head,
        }
        for layer in anatomy.layers:
            named[f"layers[{layer.index}]"] = layer.block
            named[f"layers[{layer.index}].self_attn"] = layer.attention
            named[f"layers[{layer.index}].mlp"] = layer.mlp
        standard = {site.path: name for name, site in named.items() if site is not None}
        return cls(dict(model.module.named_modules(remove_duplicate=False)), standard)

    def find(self, asked: str, num_layers: int, model: str) -> str:
        """The path in transformers of a module that is given by either name.

        Args:
            asked: The name; layers may be counted from the end, and of a group, as trees list it, the first is meant.
            num_layers: How many there are.
            model: The model's name, for the error.

        Raises:
            InvalidRequest: There is no such module; with what is there.
        """
        dotted = re.sub(r"\[\s*(-?\d+)[^\]]*\]", r".\1", asked.strip()).strip(".")
        dotted = re.sub(r"^layers\.(-\d+)", lambda found: f"layers.{int(found[1]) + num_layers}", dotted)
        if dotted in self.modules:
            return dotted
        known = self._known()
        reached = next((start for start in _prefixes(dotted) if known.get(start, start) in self.modules), "")
        path = known.get(reached, reached)
        rest = dotted[len(reached) :].strip(".")
        found = f"{path}.{rest}".strip(".")
        if not rest or found in self.modules:
            return found
        while "." in rest and f"{path}.{rest.split('.')[0]}" in self.modules:
            first, rest = rest.split(".", 1)
            path = f"{path}.{first}"
        children = [name for name, _ in self.modules[path].named_children()]
        there = (
            f"{self.name(path) or model} has {_few(children)}."
            if children
            else f"{self.name(path)} has no modules below it."
        )
        raise InvalidRequest(f"the module {asked!r} does not exist in {model}: {there}", "Leave out path for the tree.")

    def name(self, path: str) -> str:
        """A module under its standard name as far as it has one, under its path otherwise."""
        for start in _prefixes(path):
            if start in self.standard:
                return self.standard[start] + path[len(start) :]
        return path

    def _known(self) -> dict[str, str]:
        """Paths in transformers by the standard names, written with dots."""
        return {re.sub(r"\[(\d+)\]", r".\1", name): path for path, name in self.standard.items()}


def _prefixes(dotted: str) -> Iterator[str]:
    """A dotted name and what it begins with, the longest first."""
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]


def _few(names: Sequence[str], count: int = 12) -> str:
    if all(name.isdecimal() for name in names):
        return f"0 to {len(names) - 1}"
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


class Outline:
    """The submodules of a model: those of a list that are alike as one, those without parameters left out.

    Args:
        names: Both names of the modules.
        kinds: The kinds of layers by path; layers of different kinds are not alike.
    """

    def __init__(self, names: ModuleNames, kinds: Mapping[str, str]) -> None:
        self._names = names
        self._kinds = kinds
        self._owners: dict[int, str] = {}
        for path, module in names.modules.items():
            for _, parameter in module.named_parameters(recurse=False):
                self._owners.setdefault(id(parameter), path)

    def tensors(self, path: str) -> dict[str, str]:
        """A module's own parameters with their shapes, and whose they are where it shares them."""
        found: dict[str, str] = {}
        for name, parameter in self._names.modules[path].named_parameters(recurse=False):
            owner = self._owners[id(parameter)]
            shared = "" if owner == path else f" (that of {self._names.name(owner)})"
            found[name] = "×".join(map(str, parameter.shape)) + shared
        return found

    def below(self, path: str, since: str = "", depth: int = 0) -> Iterator[ModuleLine]:
        """The modules below a path.

        Args:
            path: The path.
            since: The group of modules above, relative to which names are given.
            depth: The level.
        """
        for group in self._groups(path):
            child = f"{path}.{group[0]}".lstrip(".")
            if not any(True for _ in self._names.modules[child].parameters()):
                continue
            if len(group) == 1:
                yield self._line(child, since, depth)
                yield from self.below(child, since, depth + 1)
            else:
                numbers = ranges([int(name) for name in group])
                line = self._line(child, since, depth)
                yield line.model_copy(
                    update={
                        "path": line.path.removesuffix(group[0]) + numbers,
                        "standard": line.standard and line.standard.replace(f"[{group[0]}]", f"[{numbers}]"),
                    }
                )
                yield from self.below(child, child, depth + 1)

    def _line(self, path: str, since: str, depth: int) -> ModuleLine:
        module = self._names.modules[path]
        standard = self._names.standard.get(path)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        total = sum(parameter.numel() for parameter in module.parameters())
        if standard and since in self._names.standard:
            standard = standard.removeprefix(self._names.standard[since])
        return ModuleLine(
            depth=depth,
            standard=standard,
            path=path.removeprefix(since),
            kind=type(module).__name__,
            tensors=self.tensors(path),
            parameters=total,
            more=total > own,
        )

    def _groups(self, path: str) -> list[list[str]]:
        """The names of a module's children, in a list of modules those that are built alike together."""
        module = self._names.modules[path]
        if not isinstance(module, nn.ModuleList):
            return [[name] for name, _ in module.named_children()]
        groups: dict[object, list[str]] = {}
        for name, child in module.named_children():
            groups.setdefault((self._kinds.get(f"{path}.{name}"), _build(child)), []).append(name)
        return list(groups.values())


def _build(module: nn.Module) -> tuple[object, ...]:
    """How a module is built: the classes of all its parts and the shapes of all its parameters."""
    parts = tuple((name, type(part).__name__) for name, part in module.named_modules())
    return parts, tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
