"""The command of the prediction: its tables, the bytes that a step needs, and what was measured beside it."""
