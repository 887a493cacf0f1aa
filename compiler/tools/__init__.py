"""What surrounds the work: child processes and their folders, packages that are missing, memory given back."""
