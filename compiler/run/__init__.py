"""What a compiled network needs in order to run and to travel: programs, runner, artifact, C loader. Neither torch nor TVM."""
