"""Model files: their formats, tensor names and conversion."""
