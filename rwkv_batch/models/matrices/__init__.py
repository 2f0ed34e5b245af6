"""Weight matrices: the weight formats, and the ops that multiply them."""
