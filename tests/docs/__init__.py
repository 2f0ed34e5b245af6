"""Tests of the documentation: examples run, links resolve, generated pages are up to date."""
