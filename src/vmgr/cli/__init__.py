"""The command line: one file per verb under `verbs`, which parses, calls the client and prints."""
