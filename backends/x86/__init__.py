"""x86-64: what its processors have and can do."""
