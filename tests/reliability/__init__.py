"""Proof by injected faults: real components, a real broker, and a checker that trusts neither."""
