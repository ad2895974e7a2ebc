"""The helper's half of the network: processes that make it, the line to the switchboard, ports."""

from vmgr.network.addresses import Identity, identity_of
from vmgr.network.egress_choice import EgressChoice
from vmgr.network.network import Network, Plugged
from vmgr.network.reach import Access, Reach, canonical
from vmgr.network.strays import strays

__all__ = [
    "Access",
    "EgressChoice",
    "Identity",
    "Network",
    "Plugged",
    "Reach",
    "canonical",
    "identity_of",
    "strays",
]
