"""The switchboard process: one user's network namespace and all that happens in it.

It plugs machines in (`links`), decides who may speak to whom (`firewall`), answers their questions
for names (`names`, `resolver`) and carries forwarded connections (`forwarder`, `datagrams`). The
helper asks it over a socket (`messages`, `server`); it goes on when the helper dies.
"""
