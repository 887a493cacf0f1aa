"""Machine code of kernels, by Triton and the assembler in its wheel: no GPU and no driver are needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsec.backends.cuda import kernels
from sparsec.backends.cuda.launch import ALIGNED, DTYPES, Kernel
from sparsec.errors import MachineError

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_OPERATION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@dataclass(frozen=True)
class Binary:
    """``cubin``: ELF for one compute capability, with the function ``name``. ``shared``: bytes that a launch asks for."""

    kernel: Kernel
    capability: int
    name: str
    cubin: bytes
    shared: int
    registers: int
    stack: int
    operations: Counter[str]

    def count(self, operation: str) -> int:
        """How many instructions have a name that starts so."""
        return sum(number for name, number in self.operations.items() if name.startswith(operation))


def compiled(kernel: Kernel, capability: int) -> Binary:
    """MachineError where the code does not fit the GPU or cannot be made."""
    function = getattr(kernels, kernel.function)
    given = {**{name: f"*{DTYPES[dtype]}" for name, dtype in kernel.pointers}, **dict(kernel.numbers)}
    constants = dict(kernel.constants)
    places = {name: (place,) for place, name in enumerate(function.arg_names)}
    source = ASTSource(
        function,
        {name: given.get(name, "constexpr") for name in function.arg_names},
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: [["tt.divisibility", ALIGNED]] for name in (*(name for name, _ in kernel.pointers), *kernel.aligned)},
    )
    try:
        made = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": kernel.warps, "num_stages": kernel.stages}
        )
    except Exception as error:
        raise MachineError(f"{kernel.symbol} cannot be compiled for sm_{capability}.", why=str(error).strip().splitlines()[0]) from error
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, code = _told("-res-usage", file.name), _told("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise MachineError(f"The assembler says nothing of {kernel.symbol}.", why=usage.strip())
    operations = Counter(_OPERATION.findall(code))
    return Binary(kernel, capability, made.metadata.name, made.asm["cubin"], made.metadata.shared, int(found[1]), int(found[2]), operations)


def _told(how: str, path: str) -> str:
    return subprocess.run([str(_TOOLS / "cuobjdump"), how, path], capture_output=True, text=True, check=True).stdout
