"""The command that says what an artifact is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsec.cli.console import say, say_json
from sparsec.cli.options import ArtifactArgument, JsonOption

if TYPE_CHECKING:
    from sparsec.run.inspection import Inspection


def inspect(artifact: ArtifactArgument, json: JsonOption = False) -> None:
    """Say what an artifact holds and which machine it needs, without running it."""
    from sparsec.run.inspection import inspect as inspected

    found = inspected(artifact)
    if json:
        say_json(**found.plain())
        return
    say(f"{artifact}: format {found.format}, written by sparsec {found.sparsec}, {_size(found)} in {len(found.files)} files")
    for each in found.variants:
        say(f"variant {each.variant}, {_machine(each)}: {_size(each)}. {each.not_here or 'It runs here.'}")
    if not found.variants:
        say(_machine(found))
    runs = f"runs the variant {found.variant}" if found.variants else "runs"
    say(f"here: {runs if not found.not_here else f'does not run. {found.not_here}'}")
    for kind, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            follows = f", its first axis follows {tensor.follows.symbol}" if tensor.follows else ""
            say(f"{kind} {tensor.name}: {tensor.dtype} {list(tensor.shape)}{follows}")
    for size in found.sizes:
        say(f"size {size.name}: {size.least} to {size.most}")
    first, last = found.batches
    batches = f"{first} to {last}" if last is not None else f"{first} and more" if first else "any"
    say(f"batch: {batches}; threads: {found.threads or 'any number'}; memory of a call: {found.arena_bytes / 2**20:.1f} MiB")
    say(f"kernels: {len(found.kernels)}")
    for name, nbytes in found.files.items():
        say(f"  {nbytes:>10,} bytes  {name}")


def _size(found: Inspection) -> str:
    return f"{sum(found.files.values()) / 2**20:.1f} MiB"


def _machine(found: Inspection) -> str:
    return f"for {found.arch}{f' ({found.cpu})' if found.cpu else ''} with {', '.join(found.features) or 'nothing besides'}"
