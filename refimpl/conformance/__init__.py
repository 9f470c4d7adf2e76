"""Testing implementations of these models: traces, comparisons, and a suite that any engine can be run against."""
