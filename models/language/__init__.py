"""The parts of the LongNet language model: see `models.longnet`."""
