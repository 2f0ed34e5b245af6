"""The bundled demo model: a small byte-level RWKV-7, with the scripts that made it and its prompts."""
