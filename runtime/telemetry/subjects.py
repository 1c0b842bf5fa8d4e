"""What each frame is published to: `trimtab.KIND.PLACE`.

Does not know: who publishes or subscribes, or what carries the frames (`transport.py`).
"""

from typing import Final
from urllib.parse import quote

ANY: Final = "*"
"""In place of a name: a pattern for all of them."""
STATE: Final = "trimtab.state"
"""The hub's state of the fleet."""


def hello(rack: str) -> str:
    """Probes of a rack say who they are."""
    return f"trimtab.hello.{_token(rack)}"


def sample(rack: str) -> str:
    """Probes of a rack send what they read."""
    return f"trimtab.sample.{_token(rack)}"


def ping(probe: str) -> str:
    """A rack's aggregator asks a probe for its clock."""
    return f"trimtab.ping.{_token(probe)}"


def pong(rack: str) -> str:
    """Probes of a rack answer pings."""
    return f"trimtab.pong.{_token(rack)}"


def rack(name: str) -> str:
    """A rack's aggregator sends its frames to the hub."""
    return f"trimtab.rack.{_token(name)}"


def key_request(rack_name: str) -> str:
    """The hub lost a frame of a rack and asks its aggregator for a key."""
    return f"trimtab.key_request.{_token(rack_name)}"


def _token(name: str) -> str:
    """Return a name as one token: dots, wildcards and white space are escaped as in URLs."""
    return name if name == ANY else quote(name, safe="").replace(".", "%2E")
