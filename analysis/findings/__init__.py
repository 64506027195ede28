"""What was found, as data, and whether it holds by the records of a machine."""
