"""Two machines, or two sets of records of one, side by side: what differs, and ratios by case."""
