"""A budget that peers share without anybody counting peers: nobody can have all of it."""

import ipaddress
from dataclasses import dataclass

from s2ap_defend.serve.access_log import AccessLog

__all__ = ["Hold", "Limits", "Shares", "peer_of"]


class Shares:
    """A budget of bytes or connections; a peer may hold as much as is left for the others.

    Alone it gets half of the budget, with another greedy one a third, with n of them 1 / (n + 2); as much is left
    for whoever comes next. Choudhury and Hahne 1998, dynamic queue length thresholds with alpha = 1.

    Args:
        limit: The whole budget.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[str, int] = {}

    def fits(self, peer: str, amount: int) -> bool:
        """Whether `peer` may take `amount` now."""
        return self._held.get(peer, 0) + amount <= self.limit - self.total - amount

    def take(self, peer: str, amount: int) -> bool:
        """Take `amount` for `peer`, or nothing; whether it was taken."""
        if not self.fits(peer, amount):
            return False
        self._held[peer] = self._held.get(peer, 0) + amount
        self.total += amount
        return True

    def give_back(self, peer: str, amount: int) -> None:
        """Give back what was taken; peers that hold nothing are forgotten."""
        self.total -= amount
        self._held[peer] -= amount
        if not self._held[peer]:
            del self._held[peer]

    def hold(self, peer: str) -> "Hold":
        """What one request of `peer` takes little by little, given back at the end of the context."""
        return Hold(self, peer)


class Hold:
    """What one request holds of a budget."""

    __slots__ = ("_peer", "_shares", "amount")

    def __init__(self, shares: Shares, peer: str) -> None:
        self._shares = shares
        self._peer = peer
        self.amount = 0

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        if self.amount:
            self._shares.give_back(self._peer, self.amount)

    def fits(self, amount: int) -> bool:
        """Whether it may take `amount` now."""
        return self._shares.fits(self._peer, amount)

    def add(self, amount: int) -> bool:
        """Take more, or nothing; whether it was taken."""
        taken = self._shares.take(self._peer, amount)
        self.amount += amount * taken
        return taken


@dataclass
class Limits:
    """What all connections of a server share.

    Attributes:
        connections: How many there may be, and for each peer.
        head_timeout_s: Seconds a client has for the head of a request, from the first byte, or from connecting; and for
            what it still sends of a body that was refused.
        access_log: Where requests are logged that no application sees, None for nowhere.
        linger_s: Seconds that an idle connection stays when the server stops, for what is on its way.
        draining: Whether every answer ends its connection.
    """

    connections: Shares
    head_timeout_s: float
    access_log: AccessLog | None = None
    linger_s: float = 1.0
    draining: bool = False


def peer_of(client: tuple[str, int] | None) -> str:
    """Who shares a budget as one: an IPv4 address, or the /64 network of an IPv6 address, which one site owns."""
    host = client[0] if client else ""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))
