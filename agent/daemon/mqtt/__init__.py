"""The link to the broker; see `link`."""

from agent.daemon.mqtt.connect import probe
from agent.daemon.mqtt.delivery import OnDelivered
from agent.daemon.mqtt.link import Connection, MqttLink, Timing

__all__ = ["Connection", "MqttLink", "OnDelivered", "Timing", "probe"]
