"""Puts libforgetscope.so and the licences into the wheel and names the platforms that it runs on.

`FGS_LIB` names the library, as it does when the package runs; by default it is build/lib of the repository.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        repository = Path(self.root).parents[1]
        library = Path(os.environ.get("FGS_LIB") or repository / "build/lib").resolve()
        library = library / "libforgetscope.so" if library.is_dir() else library
        if not library.exists():
            raise SystemExit(f"there is no {library}: run `make lib` first, or name the library in FGS_LIB")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_{glibc_minor(library)}_{platform.machine()}"
        build_data["force_include"][str(library.resolve())] = "forgetscope/libforgetscope.so"


def glibc_minor(library: Path) -> int:
    """The oldest glibc that has every function which the library calls: what the platform tag promises."""
    symbols = subprocess.run(["objdump", "-T", library], check=True, capture_output=True, text=True).stdout
    return max(int(minor) for minor in re.findall(r"\(GLIBC_2\.(\d+)", symbols))
