"""Which small changes of the code the tests would not notice: `make mutants`."""
