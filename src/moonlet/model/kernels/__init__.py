"""Operators with a plain PyTorch truth beside each fast form: one file or folder an operator, C++ in `native`."""
