"""Training language models on data that every machine has: sources of batches, and the loop.

A source gives a batch as a pure function of seed, split and number (`batch.py`), so shuffling,
streaming and going on after a stop are one thing. Text comes out of installed packages
(`corpus.py`, `windows.py`), questions with known answers from generators (`tasks.py`).
"""
