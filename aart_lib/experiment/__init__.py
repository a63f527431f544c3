"""The whole experiment: one pass that judges a model, and the main job that compares all defenses."""
