"""`edge-agent check`: what every promise of the agent needs, and what to do where it is missing."""
