"""Two models against each other, and which kernels their attentions get."""
