"""What a graph is and how it may change: forms, the editor, the pipeline, one record per operator, sizes known at run time."""
