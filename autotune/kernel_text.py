"""Exported kernels as C: prototypes, and self-tests that run a case on data from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsec.autotune.kernel_case import Case
from sparsec.backends.base import Param, Source
from sparsec.backends.plan import Buffer, Call, Group
from sparsec.run.processor import LINUX_NAMES

TOLERANCE = 1e-5
_LINE_BYTES = 64
_TYPES = {"float32": "float", "bool": "uint8_t"} | {
    f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_KINDS = {"ptr": "constant", "i32": "integer", "f32": "number"}


def c_type(dtype: str) -> str:
    """The C type of an element; 16-bit floats are their bits."""
    return _TYPES.get(dtype, "uint16_t")


def prototype(source: Source, writes: frozenset[str]) -> str:
    """The declaration of a kernel, with a comment on each parameter; ``writes``: activations that it writes."""
    lines = [
        f"    {_declared(p, writes)}, /* {_KINDS.get(p.kind, _role(p, writes))}, {p.dtype if p.kind != 'i32' else 'int32'} */"
        for p in source.params
    ]
    lines += ["    int32_t begin, /* first unit of work */", "    int32_t end /* past the last unit of work */);"]
    return "\n".join([f"int32_t {source.symbol}(", *lines])


def header(source: Source, writes: frozenset[str], features: Sequence[str]) -> str:
    """The header file of a kernel for a processor with these features."""
    guard = f"SPARSEC_{source.symbol.upper()}_H"
    return f"""/* Makes units of work from begin to before end. The processor must have
 * {", ".join(features)}.
 * Several threads may share the units. Pointers point at element 0 of what they name, activations at the first pixel of channel 0;
 * a kernel may read, not write, 64 KiB past an activation and 256 bytes past a constant. Returns 0. */
#ifndef {guard}
#define {guard}
#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif
{prototype(source, writes)}
#ifdef __cplusplus
}}
#endif
#endif
"""


def _role(p: Param, writes: frozenset[str]) -> str:
    return f"activation, {'written' if p.name in writes else 'read'}"


def _declared(p: Param, writes: frozenset[str]) -> str:
    if p.kind in ("i32", "f32"):
        return f"{'int32_t' if p.kind == 'i32' else 'float'} {p.name}"
    return f"{'' if p.name in writes else 'const '}{c_type(p.dtype)} *{p.name}"


@dataclass
class _Data:
    """The data file of a self-test and the declarations of what lies in it."""

    content: bytearray = field(default_factory=bytearray)
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, array: np.ndarray) -> str:
        """Declare a block of an array's values; returns its name."""
        flat = np.ascontiguousarray(array).reshape(-1)
        self._declare(name, str(flat.dtype), len(self.content), flat.nbytes)
        self.content += flat.tobytes() + bytes(-flat.nbytes % _LINE_BYTES)
        return name

    def zeros(self, name: str, dtype: str, elements: int) -> str:
        """Declare a block of zeros; returns its name."""
        self._declare(name, dtype, -1, elements * np.dtype(dtype).itemsize)
        return name

    def _declare(self, name: str, dtype: str, offset: int, nbytes: int) -> None:
        self.lines.append(f"    {c_type(dtype)} *const {name} = block({offset}, {nbytes});")


def self_test(symbol: str, case: Case, features: Sequence[str]) -> tuple[str, bytes]:
    """The C program that runs ``case`` and compares, and the content of its data file."""
    data, names = _Data(), {}
    for number, (buffer, values) in enumerate(case.filled.items()):
        names[buffer] = data.add(f"input{number}", values)
    for number, (buffer, elements) in enumerate(case.scratch.items()):
        name = "result" if buffer is case.target else f"between{number}"
        names[buffer] = data.zeros(name, buffer.storage.dtype, elements)
    loops = [_loop(group, names, data) for group in case.groups]
    data.add("wanted", case.wanted.astype(np.float32))
    includes = "\n".join(f'#include "{name}.h"' for name in sorted(case.symbols))
    flags = " ".join(LINUX_NAMES.get(name, name) for name in features)
    text = f"""/* Runs layer {case.node} of the network that {symbol} was made for
 * on random activations; wanted was computed in float64. Exits with 0 if it is right, 1 if it is wrong, 2 if it cannot run. */
#include "selftest.h"
{includes}

int main(int count, char **words) {{
    if (lacks("{flags}") || open_data(count > 1 ? words[1] : "{symbol}_test.bin", {len(data.content)})) return 2;
{chr(10).join(data.lines)}
    int32_t bad = 0;
{chr(10).join(loops)}
    return bad ? 2 : compared(result, wanted, {case.wanted.size}, {TOLERANCE:g});
}}
"""
    return text, bytes(data.content)


def _loop(group: Group, names: Mapping[Buffer, str], data: _Data) -> str:
    """All strips of a group."""
    units = int(group.calls[0].units)
    strip = group.strip or units
    calls = [f"        bad |= {call.source.symbol}({', '.join(_arguments(call, names, data))}, begin, end);" for call in group.calls]
    loop = f"    for (int32_t begin = 0, end; begin < {units}; begin = end) {{"
    return "\n".join([loop, f"        end = begin < {units - strip} ? begin + {strip} : {units};", *calls, "    }"])


def _arguments(call: Call, names: Mapping[Buffer, str], data: _Data) -> list[str]:
    return [_argument(p, call, names, data) for p in call.source.params]


def _argument(p: Param, call: Call, names: Mapping[Buffer, str], data: _Data) -> str:
    if p.kind == "ptr":
        return data.add(f"constant{len(data.lines)}", call.constants[p.name])
    if p.kind == "i32":
        return str(int(call.scalars[p.name]))
    if p.kind == "f32":
        return _number(float(call.scalars[p.name]))
    buffer = call.buffers[p.name]
    origin = 0 if buffer.slot else buffer.storage.origin
    # A strip of units starts at the slot's beginning, wherever the strip is.
    back = f" - begin * {buffer.unit}" if buffer.slot and buffer.unit else ""
    return f"{names[buffer]}{f' + {origin}' if origin else ''}{back}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
