"""Adapters for evaluation harnesses. Each module imports its harness, and is imported only when it is needed."""
