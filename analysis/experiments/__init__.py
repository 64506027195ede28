"""One folder per experiment: what it shows (`contents.py`), and all that only it needs."""
