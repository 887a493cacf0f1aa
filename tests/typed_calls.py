"""Read by mypy (make lint), not run: what is wrong in a call is a type error. An ignore that nothing needs is an error too."""

import sparsec

options: sparsec.Options = {"tune": "quick", "threads": 2, "token_pruning": {"keep": 0.5, "after": [3]}}
misspelt: sparsec.Options = {"tuen": "quick"}  # type: ignore[typeddict-unknown-key]
compiled: sparsec.CompiledModel = sparsec.compile("net.onnx", tune="full", cache_dir="kernels", remove_padding=True)
sparsec.compile("net.onnx", **options)
sparsec.compile("net.onnx", tuen="full")  # type: ignore[call-arg]
sparsec.compile("net.onnx", tune="fast")  # type: ignore[arg-type]
sparsec.compile("net.onnx", threads="2")  # type: ignore[arg-type]
sparsec.compile("net.onnx", check_weights="all")  # type: ignore[arg-type]
loaded: sparsec.LoadedModel = sparsec.load("net.sparsec", threads=2)
explained: sparsec.Explanation = sparsec.explain(compiled)
