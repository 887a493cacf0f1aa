"""A differential search over programs: random modules of everyday idioms, through every door, against eager in float64.

A case is plain data (`case`). It is drawn by running each idiom (`idioms`, one table) on real tensors (`emit`), so that every program that
is drawn runs in eager; any subset of its steps is a program again, which is all that the shrinker (`shrink`) needs. A case becomes one
Python script (`script`) that needs torch and sparsec only; a forked child runs it (`child`), and what fails is that script.
"""
