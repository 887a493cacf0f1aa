"""ARM, 64 bits: what its processors have and can do."""
