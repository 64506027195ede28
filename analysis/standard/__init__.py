"""The numbers, tables and figures that every experiment gets."""
