"""Numbers, text, tables in their forms, the one plot style, a figure's CSV."""
