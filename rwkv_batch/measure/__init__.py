"""Measurements of this machine: speed, and what it can do."""
