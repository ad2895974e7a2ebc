"""The contract of helper and clients: typed models, the table of operations, stream messages."""
