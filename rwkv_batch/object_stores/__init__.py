"""Addresses in object stores, their clients, and what goes wrong there."""
