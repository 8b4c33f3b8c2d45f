"""How fast this is, as ratios measured within one run: ours beside the floor, and beside the job it replaces."""
