"""The control process: supervises the worker and speaks MQTT. No numpy, OpenCV or TFLite here."""
