"""edge-agent: quantized TFLite inference on camera frames, published over MQTT."""

__version__ = "0.1.0"
