"""Which machine may ask for which names, and reach what they mean.

The resolver shows each question and each answer of a machine to the guard. A machine with an
allow-list gets answers about domains on it alone, and the addresses in an answer are pinned in the
machine's rules before it hears of them, for as long as the answer may be kept and a little longer.
A domain that means an address of a LAN does not open that LAN to a machine that is kept from it
(DNS rebinding): such an address is taken out of the answer. Of all machines it is remembered which
name an address came from, so that a denial can say it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from vmgr.switchboard.allowlist import Pin, is_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmgr.switchboard.messages import Plug, Rule

__all__ = ["HOST_NAME", "Guard", "matches"]

HOST_NAME: Final = "host.vmgr.internal"
_KEPT_MOST: Final = 3_600  # seconds for which a machine is told to keep an answer, at most
_GRACE: Final = 60  # seconds an address may be reached after its answer has run out
_PINS: Final = 4_096  # of one machine
_NAMES: Final = 1_024  # of which the addresses are remembered, of one machine
_ADDRESSES: Final = 64  # of one answer
_CHAIN: Final = 16  # aliases that lead from one name to the next
_INTERNAL: Final = ".vmgr.internal"
# They say where to connect, by addresses that would be denied: without them A and AAAA are asked.
_HINTS: Final = {dns.rdatatype.HTTPS, dns.rdatatype.SVCB}
_ADDRESS_TYPES: Final = {dns.rdatatype.A, dns.rdatatype.AAAA}


@dataclass
class _Guarded:
    """A machine."""

    interface: str
    plug: Plug
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """By address."""
    pins: dict[Pin, tuple[str, float]] = field(default_factory=dict)
    """The name that each came from, and until when it lasts."""

    @property
    def rules(self) -> list[Rule] | None:
        """What counts. Names leak too: without a network, it asks for this computer at most."""
        return [] if self.plug.access == "none" else self.plug.rules


class Guard:
    """All machines'.

    Args:
        pin: lets the machine behind an interface reach addresses, by their names, for seconds.
        on_denied: told of a name that a machine may not ask for: interface and facts.
        hosts: this computer's own addresses, as they are now.
    """

    def __init__(
        self,
        pin: Callable[[str, list[tuple[Pin, str, int]]], None],
        on_denied: Callable[[str, dict[str, Any]], None],
        hosts: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._pin = pin
        self._on_denied = on_denied
        self._hosts = hosts
        self._machines: dict[str, _Guarded] = {}
        self._by_interface: dict[str, _Guarded] = {}
        self._recovered: dict[str, dict[Pin, tuple[str, float]]] = {}

    # -- machines --------------------------------------------------------------------------------

    def admit(self, interface: str, plug: Plug) -> None:
        """A machine is there, or its rules have changed: what they still permit stays pinned."""
        before = self._by_interface.get(interface)
        pins = self._recovered.pop(interface, {}) if plug.interface is not None else {}
        machine = _Guarded(interface, plug)
        if before is not None:
            machine.names, pins = before.names, before.pins
        now = asyncio.get_running_loop().time()
        kept = {
            pin: (name, until)
            for pin, (name, until) in pins.items()
            if until > now
            and self._may_be(machine, pin.address)
            and pin in self._pins(machine, name, [pin.address])
        }
        if kept:
            self._pin(interface, [(p, n, max(1, int(u - now))) for p, (n, u) in kept.items()])
            machine.pins = kept
            machine.names.update({pin.address: name for pin, (name, _) in kept.items()})
        self._by_interface[interface] = machine
        for address in (plug.address4, plug.address6):
            self._machines[address] = machine

    def recover(self, pins: Iterable[tuple[str, Pin, str, int]]) -> None:
        """An earlier switchboard pinned these; they count for machines that hold their taps."""
        now = asyncio.get_running_loop().time()
        for interface, pin, name, seconds in pins:
            self._recovered.setdefault(interface, {})[pin] = (name, now + seconds)

    def dismiss(self, interface: str) -> None:
        """It has gone."""
        machine = self._by_interface.pop(interface, None)
        if machine is not None:
            for address in (machine.plug.address4, machine.plug.address6):
                self._machines.pop(address, None)

    def name_of(self, interface: str, address: str) -> str | None:
        """The name under which a machine came to know an address."""
        machine = self._by_interface.get(interface)
        return None if machine is None else machine.names.get(address)

    # -- questions and answers ---------------------------------------------------------------------

    def reaches_host(self, client: str) -> bool:
        """Whether this computer has a name for the machine."""
        machine = self._machines.get(client)
        return machine is not None and _reaches_host(machine.plug)

    def refusal(self, client: str, query: dns.message.Message) -> bytes | None:
        """What a machine is told instead of an answer; None: it may ask.

        The name does not exist for it. "Refused" would end a search through domains early, and
        sounds to programs as if it would pass.
        """
        machine = self._machines.get(client)
        if machine is None:  # the rules let nobody else ask
            reply = dns.message.make_response(query)
            reply.set_rcode(dns.rcode.REFUSED)
            return reply.to_wire()
        if machine.rules is None:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        if name == HOST_NAME and _reaches_host(machine.plug):
            return None
        if any(rule.domain is not None and matches(rule.domain, name) for rule in machine.rules):
            if question.rdtype not in _HINTS:
                return None
            return dns.message.make_response(query, recursion_available=True).to_wire()
        # Programs ask by themselves for names of addresses, and our own domain is searched.
        if not name.endswith((".arpa", _INTERNAL)):
            self._on_denied(machine.interface, {"name": name, "protocol": "dns"})
        reply = dns.message.make_response(query, recursion_available=True)
        reply.set_rcode(dns.rcode.NXDOMAIN)
        if query.edns >= 0:
            reply.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode.BLOCKED)])
        return reply.to_wire()

    def pass_on(self, client: str, wire: bytes) -> bytes:
        """An answer as the machine may have it; the addresses in it are pinned."""
        machine = self._machines.get(client)
        if machine is None:
            return wire
        try:
            answer = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            # One that cannot be read cannot be guarded.
            return wire if machine.rules is None else b""
        if len(answer.question) != 1:
            return wire if machine.rules is None else b""
        name = answer.question[0].name.to_text(omit_final_dot=True).lower()
        chain, ttl = _chain(answer)
        addresses = [
            item.to_text() for rrset in chain if rrset.rdtype in _ADDRESS_TYPES for item in rrset
        ][:_ADDRESSES]
        for address in addresses:
            machine.names[address] = name
            machine.names.move_to_end(address)
        while len(machine.names) > _NAMES:
            machine.names.popitem(last=False)
        if machine.rules is None or name == HOST_NAME:
            return wire
        return self._guarded(machine, answer, chain, name, addresses, min(ttl, _KEPT_MOST))

    def _guarded(  # noqa: PLR0917 (one caller, above)
        self,
        machine: _Guarded,
        answer: dns.message.Message,
        chain: list[dns.rrset.RRset],
        name: str,
        addresses: list[str],
        ttl: int,
    ) -> bytes:
        fit = [address for address in addresses if self._may_be(machine, address)]
        for address in addresses:
            if address not in fit:
                self._on_denied(
                    machine.interface, {"name": name, "address": address, "protocol": "dns"}
                )
        reply = dns.message.Message(id=answer.id)
        # The AD flag is not ours to give once we have changed something.
        reply.flags = answer.flags & ~dns.flags.AD
        reply.question = answer.question
        reply.set_rcode(answer.rcode())
        for rrset in chain:
            kept = [i for i in rrset if rrset.rdtype not in _ADDRESS_TYPES or i.to_text() in fit]
            if kept:
                reply.answer.append(
                    dns.rrset.from_rdata_list(rrset.name, min(ttl, rrset.ttl), kept)
                )
        if not reply.answer:  # how long there is to be none
            reply.authority = [r for r in answer.authority if r.rdtype == dns.rdatatype.SOA]
        if not self._let(machine, name, fit, ttl):
            reply.answer.clear()
            reply.set_rcode(dns.rcode.SERVFAIL)
        return reply.to_wire()

    def _may_be(self, machine: _Guarded, address: str) -> bool:
        if machine.plug.access == "full":
            return True
        return not is_private(address) and address not in self._hosts()

    def _let(self, machine: _Guarded, name: str, addresses: list[str], ttl: int) -> bool:
        pins = self._pins(machine, name, addresses)
        if not pins:
            return True
        now = asyncio.get_running_loop().time()
        if len(machine.pins) + len(pins) > _PINS:
            machine.pins = {pin: kept for pin, kept in machine.pins.items() if kept[1] > now}
            if len(machine.pins) + len(pins) > _PINS:
                return False
        seconds = ttl + _GRACE
        # What an earlier answer permits for longer stays permitted for so long.
        pinned = [
            (pin, max(seconds, int(machine.pins.get(pin, ("", now))[1] - now))) for pin in pins
        ]
        self._pin(machine.interface, [(pin, name, lasts) for pin, lasts in pinned])
        for pin, lasts in pinned:
            machine.pins[pin] = (name, now + lasts)
        return True

    @staticmethod
    def _pins(machine: _Guarded, name: str, addresses: list[str]) -> list[Pin]:
        found = [
            Pin(address, rule.protocol, rule.port)
            for rule in machine.rules or []
            if rule.domain is not None and matches(rule.domain, name)
            for address in addresses
        ]
        return list(dict.fromkeys(found))


def matches(pattern: str, name: str) -> bool:
    """Whether a domain of a rule means `name`, both in lower case."""
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) >= len(pattern)
    return name == pattern


def _reaches_host(plug: Plug) -> bool:
    return bool(plug.host_ports or plug.host_udp_ports)


def _chain(answer: dns.message.Message) -> tuple[list[dns.rrset.RRset], int]:
    """The records that answer the question, through aliases, and how long all of them last.

    What else a server put beside them is nobody's answer.
    """
    question = answer.question[0]
    name, found, ttl = question.name, [], _KEPT_MOST
    for _ in range(_CHAIN):
        alias = None
        for rrset in answer.answer:
            if rrset.name != name or rrset in found:
                continue
            if question.rdtype in {rrset.rdtype, dns.rdatatype.ANY}:
                found.append(rrset)
                ttl = min(ttl, rrset.ttl)
            elif rrset.rdtype == dns.rdatatype.CNAME:
                found.append(rrset)
                ttl = min(ttl, rrset.ttl)
                alias = rrset[0].target
        if alias is None:
            break
        name = alias
    return found, ttl
