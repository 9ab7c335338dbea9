"""How a run goes, without torch: its learning rates, its pack, its spikes, its diagnoses and its verdict."""
