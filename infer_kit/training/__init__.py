"""Companion methods that train something before inference: rewards (`infer_kit.training.prt`)."""
