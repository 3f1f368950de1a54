"""Three domains of real text that lie on Debian machines, as token ids: licences, Python's standard library, and French
manual pages (package manpages-fr). Nothing is copied into the project.

Files are taken in an order that depends on nothing but their names, whole, until there is enough; the last tenth of the
tokens is held out.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

ENOUGH = 400_000
"""Characters of a domain: nothing is seen twice in the demo."""


@dataclass(frozen=True)
class Domain:
    name: str
    train: torch.Tensor
    held_out: torch.Tensor


def domains(tokenizer: PreTrainedTokenizerBase) -> list[Domain]:
    return [
        _domain(name, text, tokenizer)
        for name, text in (("licences", _licences()), ("python", _python()), ("french", _french()))
    ]


def _domain(name: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Domain:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    split = len(ids) * 9 // 10
    return Domain(name, ids[:split], ids[split:])


def _licences() -> str:
    found = [*Path("/usr/share/common-licenses").glob("*"), *Path("/usr/share/doc").glob("*/copyright")]
    return _collect("licences", found)


def _python() -> str:
    return _collect("python", Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def _french() -> str:
    pages = Path("/usr/share/man/fr").glob("man*/*.gz")
    # Text only: lines of macros and changes of font are no French.
    text = _collect("french", pages)
    lines = (line for line in text.splitlines() if not line.startswith((".", "'")))
    return re.sub(r"\\(f.|\(..|[-&/e ])", "", "\n".join(lines))


def _collect(name: str, paths: Iterator[Path] | list[Path]) -> str:
    parts, size = [], 0
    # Scattered, so that no package of many similar files fills a domain; the same on every machine with these files.
    for path in sorted(paths, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
        if size >= ENOUGH:
            break
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            parts.append(data.decode(errors="replace"))
            size += len(parts[-1])
    if size < ENOUGH // 4:
        raise SystemExit(f"only {size} characters of text for '{name}' on this machine; {ENOUGH // 4} are needed")
    return "\n".join(parts)
