"""Medians, speed-ups and their intervals; fits over length; the curves that are fitted."""
