"""What a machine is: how it may be called, what it is made of, and the life it leads."""
