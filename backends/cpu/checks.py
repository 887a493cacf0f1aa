"""The C functions of a kernel library that say what its kernels touch (``extents.h`` holds what they call)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparsec.backends.base import Param, Source
from sparsec.backends.extents import Let, Need, Scan, Step, Touch

_KINDS = {"act": "A", "ptr": "P", "i32": "I", "f32": "F"}
_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "uint16": 2, "uint8": 1}
#: Tables that a kernel may scan.
_TABLES = {"uint16": "H", "int32": "I"}
_MOST_SCANS = 4
#: They run once: to compile them takes longer.
_QUICKLY = '#pragma GCC optimize ("O0")'
_ENTRY = """
__attribute__((visibility("default"))) int64_t sparsec_check_program(const int64_t *values) { return checked(kernels, KERNELS, values); }
"""


def source(kernels: Sequence[Source]) -> str:
    """C with ``sparsec_check_program``; kernel ids are positions in ``kernels``. ValueError for a step that names what is not there."""
    functions = [_function(number, kernel) for number, kernel in enumerate(kernels)]
    rows = [f'    {{"{_kinds(kernel.params)}", stays{number}}},' for number, kernel in enumerate(kernels)]
    table = ["static const kernel kernels[] = {", *(rows or ['    {"", NULL},']), "};", f"enum {{ KERNELS = {len(kernels)} }};"]
    return "\n".join(['#include "extents.h"', _QUICKLY, *functions, *table, _ENTRY])


def _kinds(params: Sequence[Param]) -> str:
    return "".join(_KINDS[p.kind] for p in params)


def fields(params: Sequence[Param]) -> dict[str, int]:
    """The field of a record where each parameter begins."""
    found, field = {}, 1
    for p in params:
        found[p.name] = field
        field += 3 if p.kind == "act" else 1
    return found


def _function(number: int, kernel: Source) -> str:
    places = fields(kernel.params)
    lines = [f"static bool stays{number}(call *c) {{ /* {kernel.symbol} */"]
    if kernel.touches is None:
        lines.append("    return refuse(c, 0);")
    else:
        lines.append("    const wide begin = c->begin, end = c->end;")
        lines += [f"    const wide {p.name} = c->record[{places[p.name]}];" for p in kernel.params if p.kind == "i32"]
        lines += [f"    {line}" for line in _steps(kernel, places, kernel.touches)]
        unused = " ".join(f"(void){name};" for name in ("begin", "end", *(p.name for p in kernel.params if p.kind == "i32")))
        lines += [f"    {unused}", "    return true;"]
    return "\n".join([*lines, "}"])


def _steps(kernel: Source, places: dict[str, int], steps: Sequence[Step]) -> Iterator[str]:
    types, scans = {p.name: p.dtype for p in kernel.params if p.kind in ("act", "ptr")}, 0
    for step in steps:
        match step:
            case Need(condition):
                yield f"if (!({condition})) return refuse(c, 0);"
            case Let(name, value):
                yield f"const wide {name} = {value};"
            case Touch(pointer, spans, width, writes):
                terms = ", ".join(f"{{{s.first}, {s.end}, {s.step}}}" for s in spans)
                arguments = f"{places[pointer]}, {_BYTES[types[pointer]]}, {str(writes).lower()}, {width}, {len(spans)}"
                yield f"if (!touch(c, {arguments}, (const term[]){{{terms}}})) return false;"
            case Scan(table, first, end, ordered):
                arguments = f"{scans}, {places[table]}, '{_TABLES[types[table]]}', {str(ordered).lower()}, {first}, {end}"
                yield f"range {table}_found;"
                yield f"if (!scan(c, {arguments}, &{table}_found)) return false;"
                yield f"const wide {table}_low = {table}_found.low, {table}_high = {table}_found.high;"
                scans += 1
    if scans > _MOST_SCANS:
        raise ValueError(f"{kernel.symbol} scans {scans} tables, at most {_MOST_SCANS} are kept")
