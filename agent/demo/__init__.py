"""`edge-agent demo`: the real daemon, a local broker and a clip that needs no camera.

Top to bottom in `demo.py`. What it shows comes from the daemon's own topics, received by a
plain MQTT client, so it is what any subscriber gets. This room sees the agent from outside:
it imports the contract and nothing of the daemon or the worker, and no numpy or OpenCV.
"""
