"""What programs mean: every kernel is the reference of its spec, on values read out of the arena and written back."""
