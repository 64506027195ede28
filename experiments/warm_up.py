"""Which passes, of those timed by the wall clock, come before the ones that count.

The first passes of a process fill the heap and the caches, and were found to take up to 2.2 times
as long as the others, on a CPU (2 cores, all experiments, three rounds).
"""

# How long passes are made that are not timed.
WARM_UP_MS = 200.0
# A first pass of this is timed: what it fills is little beside it.
LONG_MS = 2000.0
