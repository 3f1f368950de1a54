"""_abi.py is the header: every struct, constant and function, as a C compiler reads them."""

import ctypes
import re
import subprocess
from enum import Enum

import pytest
from conftest import REPOSITORY
from forgetscope import _abi, _library

HEADER = REPOSITORY / "include/forgetscope.h"

STRUCTS = {
    "fgs_dltensor": _abi.DLTensor,
    "fgs_options": _abi.Options,
    "fgs_tensor": _abi.Tensor,
    "fgs_shard": _abi.Shard,
    "fgs_probe": _abi.Probe,
    "fgs_attention": _abi.Attention,
    "fgs_curvature": _abi.Curvature,
    "fgs_curvature_request": _abi.CurvatureRequest,
    "fgs_record": _abi.Record,
}
# Field of _abi.DLTensor → in C.
NESTED = {
    "device_type": "device.device_type",
    "device_id": "device.device_id",
    "code": "dtype.code",
    "bits": "dtype.bits",
    "lanes": "dtype.lanes",
}
ENUMS = {
    "FGS_": _abi.Status,
    "FGS_ROLE_": _abi.Role,
    "FGS_HEADS_": _abi.HeadLayout,
    "FGS_TENSOR_": _abi.TensorFlag,
    "FGS_GRADIENTS_": _abi.GradientFlag,
    "FGS_PROBE_": _abi.ProbeFlag,
    "FGS_MASK_": _abi.Mask,
    "FGS_CURVATURE_": _abi.Want,
}


def text() -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def c_values(tmp_path_factory) -> dict[str, str]:
    """What a C program prints of the header."""
    lines = [f'printf("{name} %d\\n", (int){name});' for name in enumerators()]
    lines += [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in ("FGS_MAGIC", "FGS_VERSION")]
    for name, struct in STRUCTS.items():
        lines.append(f'printf("sizeof {name} %zu\\n", sizeof({name}));')
        for field, *_ in struct._fields_:
            in_c = NESTED.get(field, field) if struct is _abi.DLTensor else field
            place = f"offsetof({name}, {in_c}), sizeof((({name} *)0)->{in_c})"
            lines.append(f'printf("{name}.{field} %zu+%zu\\n", {place});')
        if initialiser := initialisers().get(name):
            lines.append(
                f"{{ {name} value = {initialiser}; const unsigned char *bytes = (const unsigned char *)&value;"
            )
            lines.append(f'printf("bytes {name} ");')
            lines.append('for (size_t i = 0; i < sizeof value; i++) printf("%02x", bytes[i]); puts(""); }')
    directory = tmp_path_factory.mktemp("c")
    source = directory / "print.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <forgetscope.h>\nint main(void) {\n"
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    program = directory / "print"
    subprocess.run(["cc", "-std=c11", f"-I{HEADER.parent}", source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(line.rsplit(" ", 1) for line in printed.splitlines())


def enumerators() -> list[str]:
    bodies = re.findall(r"enum fgs_\w+[^{;]*\{(.*?)\}", text(), re.DOTALL)
    return [name for body in bodies for name in re.findall(r"\b(FGS_\w+)\s*=", body)]


def initialisers() -> dict[str, str]:
    return {name.lower(): f"{name}_INIT" for name in re.findall(r"#define (FGS_\w+)_INIT", text())}


def test_structs_are_those_of_the_header(c_values):
    declared = set(re.findall(r"\}\s*(fgs_\w+);", text())) | {"fgs_dltensor"}
    assert declared == set(STRUCTS)
    for name, struct in STRUCTS.items():
        assert ctypes.sizeof(struct) == int(c_values[f"sizeof {name}"]), name
        for field, *_ in struct._fields_:
            found = getattr(struct, field)
            assert f"{found.offset}+{found.size}" == c_values[f"{name}.{field}"], f"{name}.{field}"


def test_initial_values_are_those_of_the_macros(c_values):
    assert len(initialisers()) == 7
    for name in initialisers():
        assert bytes(STRUCTS[name]()).hex() == c_values[f"bytes {name}"], name


def test_constants_are_those_of_the_header(c_values):
    known: dict[str, int] = {f"FGS_{member.name}": member.value for member in _abi.Data}
    for prefix, enumeration in ENUMS.items():
        known |= {prefix + member.name: member.value for member in enumeration}
    # Names of the ring are looked up in its own catalog.
    in_c = {name: int(c_values[name]) for name in enumerators() if not name.startswith("FGS_NAME_")}
    assert known == in_c
    assert _abi.MAGIC == int(c_values["FGS_MAGIC"])
    assert _library.VERSION == int(c_values["FGS_VERSION"])


C_TYPES = {
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int32_t": ctypes.c_int32,
    "double": ctypes.c_double,
    "const char *": ctypes.c_char_p,
}


def test_functions_are_those_of_the_header():
    prototypes = re.findall(r"^(const char \*|\w+ )(fgs_\w+)\(([^;]*)\);", text(), re.MULTILINE)
    assert {name for _, name, _ in prototypes} == set(_abi.FUNCTIONS)
    assert set((REPOSITORY / "tests/symbols.txt").read_text().split()) == set(_abi.FUNCTIONS)
    for result, name, arguments in prototypes:
        kinds = []
        for argument in re.split(r",\s*", re.sub(r"\s+", " ", arguments)):
            if argument != "void":
                kind = re.sub(r"\w+$", "", argument).strip()
                kinds.append(C_TYPES.get(kind, ctypes.c_void_p))
        assert tuple(kinds) == _abi.FUNCTIONS[name], name
        expected = {"fgs_status": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "const char *": ctypes.c_char_p}
        assert _abi.RESULTS.get(name, ctypes.c_int32) == expected[result.strip()], name


def test_enumerations_are_all_compared():
    of_module = {v for v in vars(_abi).values() if isinstance(v, type) and issubclass(v, Enum)}
    from enum import IntEnum, IntFlag

    assert of_module - {IntEnum, IntFlag} == {*ENUMS.values(), _abi.Data}
