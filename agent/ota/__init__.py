"""Models over the air: what a bundle is, whom a board believes, where models lie, when they run."""
