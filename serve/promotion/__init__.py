"""A new model in the place of the old one: stages, comparison, verdict."""
