"""The operator's side: a repository of signed models, and orders to a fleet of boards.

Runs on a laptop or a server, never on a board. Needs the extra `operator`.
"""
