"""Measuring a language model on a text: perplexity, and how far two runs are apart."""
