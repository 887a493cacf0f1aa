"""Tokens: the operators, what views and masks mean, and which values lose which tokens."""
