"""Records as one frame: a row per case of a machine, with its system, ranks and replica; units."""
