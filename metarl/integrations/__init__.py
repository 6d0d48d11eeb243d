"""Families and policies in other libraries; nothing of ours imports this."""
