"""Measure the agent against the bare interpreter, in one run on one machine."""
