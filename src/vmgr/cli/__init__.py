"""The command line: one file per verb under `verbs`, which parses, calls the client and prints."""

import signal

# A Ctrl-C while modules are still being imported ends the process as it ends any other, without a
# trace on the screen. `main` takes over from here.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
