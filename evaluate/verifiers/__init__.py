"""Verifiers: programs that give each response a number."""
