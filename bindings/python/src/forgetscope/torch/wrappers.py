"""Names of parameters and modules without the wrappers that they are in: the same on every rank and in every run."""

from __future__ import annotations

import re

from torch import nn

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_name(name: str) -> str:
    """A name without what DistributedDataParallel, torch.compile and activation checkpoints put in front."""
    return _WRAPPERS.sub("", name)


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their plain names; in full where a module of its own is called like a wrapper."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in unwrapped(model).named_parameters():
        plain = plain_name(name)
        found[name if plain in found else plain] = parameter
    return found


def module_paths(model: nn.Module) -> dict[str, list[nn.Module]]:
    """For every module by its plain name: itself and those around it, outermost first."""
    paths: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        plain = plain_path(name)
        around = paths.get(plain.rpartition(".")[0], []) if plain else []
        paths[plain] = [*around, module] if plain not in paths else [*paths[plain], module]
    return paths


def plain_path(path: str) -> str:
    return plain_name(f"{path}.").rstrip(".")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, whose forward has none of their effects."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


__all__ = ["module_paths", "plain_name", "plain_parameters", "plain_path", "unwrapped"]
