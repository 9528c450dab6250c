"""Zero-shot concept bottleneck models."""
