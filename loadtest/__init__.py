"""Benchmarks and load: programs that print figures, never tests that depend on them."""
