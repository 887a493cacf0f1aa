"""What sparsec says of a model and of a machine: layers, agreement with others, the pass that changes an answer, what is missing here."""
