"""What the board says of itself. Unknown is None, never 0."""
