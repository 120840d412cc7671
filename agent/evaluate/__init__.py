"""`edge-agent eval`: what a model finds in pictures, held against what should be found.

`evaluate` is the command, `expected` and its neighbours read what should be found, `run` lets
one model look at the pictures through the pipeline's own pre and post code, `matching`, `pose`
and `masks` compare, `report` prints. Everything but `run` and `masks` is plain arithmetic on
records; nothing here knows a camera, a broker or the daemon.
"""
