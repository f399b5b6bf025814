"""Operators with a naive truth beside each fast form, one folder an operator."""
