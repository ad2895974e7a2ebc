"""The contract between helper and clients: typed models, the table of operations, stream messages."""
