"""The interactive pages: every record, and every claim down to its records."""
