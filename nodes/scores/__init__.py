"""The scores' nodes: load a scorer, score pictures, compare models, make the report."""
