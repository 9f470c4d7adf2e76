"""Modules at the places where users of transformers look for them."""
