"""The engine inside evaluation harnesses. Each module imports its host, and is imported only when it is asked for."""
