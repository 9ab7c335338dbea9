"""How compute is split between parameters and tokens: isoFLOP optima, envelopes, countings."""
