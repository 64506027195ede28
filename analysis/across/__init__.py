"""What takes the records of all experiments together."""
