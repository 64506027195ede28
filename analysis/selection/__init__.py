"""Which records answer a question, and what was published there."""
