"""Several engines, each in a process and on a device of its own, that serve the calls of one `LLM`."""
