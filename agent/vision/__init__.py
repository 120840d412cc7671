"""The vision worker: frames in, encoded results out. No network, no disk writes, no MQTT."""
