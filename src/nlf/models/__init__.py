"""The policy and its reference: loading them, reading text with them, identifying their weights."""
