"""The proof: padded back, the pruned weights give the same outputs in the dense graph."""
