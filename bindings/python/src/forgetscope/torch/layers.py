"""Layers: which modules of a model are its layers, numbered one after another in the whole model.

Layers are the items of a list (`nn.ModuleList`, `nn.Sequential`, children that are called by numbers) that are alike,
or that each have attention or an MLP. So the parts of `nn.Sequential(backbone, head)` are none, nor are the steps of a
head. An item that is itself made of such lists is a stage (Swin, a backbone that is wrapped): its layers are those of
the lists in it. Experts are no layers, nor is what lists within a layer have.

If no name tells of attention or an MLP, all lists of alike items count; without any, as in an `nn.Sequential` of
linear layers, the items of the outermost lists do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import nn

from .._abi import Role
from .wrappers import plain_path

_Items = list[tuple[str, nn.Module]]

_ATTENTION = {Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.OUTPUT, Role.GATE}
_WORK = _ATTENTION | {Role.MLP_IN, Role.MLP_GATE, Role.MLP_OUT, Role.ROUTER}
_EXPERTS = re.compile(r"(?:^|\.)experts$")


def layers_of(model: nn.Module, roles: Mapping[str, Role], sizes: Mapping[str, int]) -> dict[str, int]:
    """Number of every layer by its path. `roles` and `sizes`: of the parameters, by their plain names."""
    found = _Search(roles, sizes).layers(model)
    return {path: number for number, path in enumerate(dict.fromkeys(found))}


def layer_path(name: str, layers: Mapping[str, int]) -> str | None:
    """The path of the layer that a parameter or module is in."""
    return next((path for path in _around(name) if path in layers), None)


def _around(name: str) -> Iterator[str]:
    """Paths of the modules around a parameter, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


class _Search:
    """What the modules of a model hold, by their paths."""

    def __init__(self, roles: Mapping[str, Role], sizes: Mapping[str, int]) -> None:
        self._work, self._attention, self._size = Counter[str](), Counter[str](), Counter[str]()
        for name, role in roles.items():
            for path in _around(name):
                self._work[path] += sizes[name] * (role in _WORK)
                self._attention[path] += sizes[name] * (role in _ATTENTION)
                self._size[path] += sizes[name]
        self._has_work = any(self._work.values())
        # What a stage has to have most of in its lists.
        self._weight = self._work if self._has_work else self._size

    def layers(self, model: nn.Module) -> list[str]:
        lists = list(self._lists(model, ""))
        working = [items for items in lists if any(self._work[path] for path, _ in items)]
        return [path for items in working or lists for path in self._expanded(items)] or self._outermost(model, "")

    def _lists(self, module: nn.Module, path: str) -> Iterator[_Items]:
        """The outermost lists of layers or stages in a module."""
        if _EXPERTS.search(path):
            return
        items = self._items(module, path)
        if self._is_of_layers(items):
            yield items
            return
        for name, child in module.named_children():
            yield from self._lists(child, _path(path, name))

    def _items(self, module: nn.Module, path: str) -> _Items:
        """What is in a list and has parameters."""
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
        children = [(name, child) for name, child in module.named_children() if is_list or name.isdecimal()]
        return [(_path(path, name), child) for name, child in children if next(child.parameters(), None) is not None]

    def _is_of_layers(self, items: _Items) -> bool:
        # A single operation of PyTorch is no layer.
        if not items or any(_is_operation(item) for _, item in items):
            return False
        return _are_alike(items) or all(self._work[path] for path, _ in items)

    def _expanded(self, items: _Items, is_inside: bool = False) -> Iterator[str]:
        for path, item in items:
            inner = [found for found in self._lists(item, path) if _are_alike(found)]
            if self._is_stage(path, [path for found in inner for path, _ in found], is_inside):
                for found in inner:
                    yield from self._expanded(found, is_inside=True)
            else:
                yield path

    def _is_stage(self, path: str, inner: list[str], is_inside: bool) -> bool:
        if is_inside and not self._has_work:
            # Nothing tells the blocks of a stage from the convolutions of a block.
            return False
        attention = [self._attention[one] for one in inner]
        # Attention beside the lists, or in some of the items only, is that of one layer.
        if self._attention[path] > sum(attention) or any(attention) != all(attention):
            return False
        return 2 * sum(self._weight[one] for one in inner) > self._weight[path]

    def _outermost(self, module: nn.Module, path: str) -> list[str]:
        if items := self._items(module, path):
            return [path for path, _ in items]
        children = module.named_children()
        return [found for name, child in children for found in self._outermost(child, _path(path, name))]


def _path(path: str, name: str) -> str:
    return plain_path(f"{path}.{name}".lstrip("."))


def _is_operation(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.") and next(module.children(), None) is None


def _are_alike(items: _Items) -> bool:
    return len({type(item) for _, item in items}) == 1


__all__ = ["layer_path", "layers_of"]
