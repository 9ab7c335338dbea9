"""The small language models; the one package that imports torch."""
