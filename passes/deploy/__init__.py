"""A proven graph for a runtime: attention as one node, 8 bits."""
