"""Files that hold weights: formats, names, conversion."""
