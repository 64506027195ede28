"""A ring over several nodes of a SLURM job: `torchrun` starts its ranks, as many on each node.

Its supervisor is on the first node and holds that one's cards. A step of the job has one process
per node (`node`), which holds the cards there and calls `torchrun`; a rank of that is `rank`, and
does what `experiments.procedures.ranks` does on one machine.
"""
