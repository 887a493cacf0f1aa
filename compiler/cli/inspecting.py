"""The command that says what an artifact is."""

from __future__ import annotations

import typer

from sparsec.cli.console import say
from sparsec.cli.options import ArtifactArgument, JsonOption


def inspect(artifact: ArtifactArgument, json: JsonOption = False) -> None:
    """Say what an artifact holds and which machine it needs, without running it."""
    import json as text

    from sparsec.run.inspection import inspect as inspected

    found = inspected(artifact)
    if json:
        typer.echo(text.dumps(found.plain()))
        return
    total = sum(found.files.values())
    say(f"{artifact}: format {found.format}, written by sparsec {found.sparsec}, {total / 2**20:.1f} MiB in {len(found.files)} files")
    say(f"for {found.arch}{f' ({found.cpu})' if found.cpu else ''} with {', '.join(found.features) or 'nothing besides'}")
    say(f"here: {'runs' if not found.not_here else f'does not run. {found.not_here}'}")
    for kind, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            follows = f", as long as {tensor.follows}" if tensor.follows else ""
            say(f"{kind} {tensor.name}: {tensor.dtype} {list(tensor.shape)}{follows}")
    for name, least, most in found.sizes:
        say(f"size {name}: {least} to {most}")
    first, last = found.batches
    batches = f"{first} to {last}" if last is not None else f"{first} and more" if first else "any"
    say(f"batch: {batches}; threads: {found.threads or 'any number'}; memory of a call: {found.arena_bytes / 2**20:.1f} MiB")
    say(f"kernels: {len(found.kernels)}")
    for name, size in found.files.items():
        say(f"  {size:>10,} bytes  {name}")
