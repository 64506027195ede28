"""Records as one frame: one row per record, with its system, ranks and replica; units."""
