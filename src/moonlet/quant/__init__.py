"""4-bit grids for the routed experts: MXFP4 (K3) and INT4 group 32 (K2 Thinking), fake quantisation, packing."""
