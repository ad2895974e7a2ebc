"""Tests of the host half of the agent protocol."""
