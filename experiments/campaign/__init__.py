"""A card for half an hour, used to the last minute: look, trust, time, tune, measure, pack.

`python -m experiments campaign`. It needs torch and numpy, and Triton for our kernels; the process
that runs it never touches the device, so whatever happens there it goes on.
"""
