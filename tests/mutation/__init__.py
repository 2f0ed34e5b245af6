"""Mutation tests, `make mutants`: small changes of the code that the tests should notice."""
