"""What the agent measures of itself and its board: latency, energy, health, and its exposition."""
