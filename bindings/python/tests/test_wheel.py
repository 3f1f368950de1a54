"""The wheel: what is in it, what it promises, and that it works by itself."""

import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", directory]
    subprocess.run([*command, REPOSITORY / "bindings/python"], check=True, capture_output=True)
    (path,) = directory.glob("*.whl")
    return path


def test_the_library_and_its_licences_are_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    assert {"forgetscope/libforgetscope.so", "forgetscope/py.typed", "forgetscope/torch/torch_scope.py"} <= set(names)
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE-MIT", "LICENSE-APACHE"}
    assert not [name for name in names if "test" in name]
    assert fields["Requires-Python"] == ">=3.10" and fields["License-Expression"] == "MIT OR Apache-2.0"
    assert "# forgetscope" in fields.get_payload()
    version = next(
        line for line in (REPOSITORY / "Cargo.toml").read_text().splitlines() if line.startswith('version = "')
    )
    assert fields["Version"] == version.split('"')[1]


def test_its_name_says_where_it_runs(wheel):
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    # 2.34 is that of Red Hat 9. A later number: a function has come in that older systems do not have.
    promised = re.fullmatch(rf"manylinux_2_(\d+)_{os.uname().machine}", platform)
    assert promised and int(promised[1]) <= 34, platform


def test_it_works_without_anything_beside_numpy(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import sys, numpy, forgetscope
with forgetscope.Scope(every=1) as scope:
    scope.bind(scope.register("w", 8), "grad", numpy.ones(8, numpy.float32))
    scope.step_begin(0); scope.gradients_ready(); scope.step_end()
assert forgetscope.Reader(scope.ring_path).read().size
assert not {"torch", "pandas", "transformers"} & set(sys.modules)
print(forgetscope._library.library().path)
"""
    environment = {name: value for name, value in os.environ.items() if name != "FGS_LIB"}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "FGS_RING_DIR": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == str(tmp_path / "site/forgetscope/libforgetscope.so")
