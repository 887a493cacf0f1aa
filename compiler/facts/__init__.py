"""What is proved of values: the lattice, measuring a tensor, the rules of operators forward and backward, channels that go together."""
