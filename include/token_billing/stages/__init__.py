"""What each step of the pipeline does: one module a stage, named like its task."""
