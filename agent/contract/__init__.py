"""What leaves the device: payload types, the topic table and their schemas. Pure."""
