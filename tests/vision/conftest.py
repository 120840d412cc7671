"""Puts this folder on the path of tests in the folders below: `made_models`, `fakes`."""
